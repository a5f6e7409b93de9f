"""INT8 arithmetic on NVIDIA GPUs: Triton kernels behind torch ops (`torch.ops.int8kit.*`), floor 1 of the house.

`linear` multiplies, `attention` attends, `rows` leads from half precision to INT8 (quantize, norm and quantize);
`tiles` says which tile each may run with and `tune` times them. Made for compute capability 8.0 to 12.0, measured on
9.0. Needs the package triton.
"""
