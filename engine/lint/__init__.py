"""The linter of Q/DQ ONNX files: what will not run in INT8, or not fuse, and why."""
