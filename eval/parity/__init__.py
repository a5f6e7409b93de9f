"""Whether a file and its engines compute what the fake-quantized model computes."""
