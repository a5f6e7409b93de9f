"""A checkpoint as a torch program on real INT8 weights: `export.py --target inductor`.

`modules` puts program modules into a copy of the model, `export` traces it with `torch.export`, the passes (`views`,
`products`, `attention_results`, `norms`) fuse what stands around each product into the ops of `kernels/`, and `lower`
writes what is left as plain torch for the compiler. What no pass knows still computes what the quantized model does.
"""
