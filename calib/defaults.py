"""What `python -m calib` does unless told otherwise, without an import: its --help names it."""

IMPORT_RECIPE = "int8_linear"  # with --import-amax: an import brings its own SmoothQuant, or none
SAMPLE_FLAGS = {"task": None, "method": None, "num_samples": 256, "column": None, "seed": 0, "batch_size": 32,
                "max_length": None, "skip_bad": False, "bias_correction": None, "rounding": None}  # fmt: skip
STATISTICS_FILE = "statistics.safetensors"
