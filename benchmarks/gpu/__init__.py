"""INT8 on NVIDIA GPUs."""
