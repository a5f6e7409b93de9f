"""INT8 programs (`export.py --target inductor`) on NVIDIA GPUs: tuned, compiled by torch, replayed as CUDA graphs."""
