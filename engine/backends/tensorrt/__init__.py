"""TensorRT 8.5 to 11, and what TensorRT-RTX shares with it."""
