"""Everything after ONNX: Q/DQ graph passes, build, run, inspect. Imports no torch and nothing of the other packages."""
