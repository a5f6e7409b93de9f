"""Which weights a model holds, as one digest: statistics say by it which model they were taken from."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from quant.checkpoint import float_state_dict


def weights_digest(model: nn.Module) -> str:
    """Return the sha256 of the float state: names, shapes, dtypes and values of all that is no quantizer's, 64 digits.

    One pass over the tensors in their own memory, no copy (a GPU's come over one by one). The dtype counts: a model in
    bf16 computes other activations than its copy in float32. The layout in memory and the device do not.
    """
    total = hashlib.sha256()
    seen: dict[tuple, str] = {}  # tied weights are read once
    for name, tensor in sorted(float_state_dict(model, model.state_dict()).items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        place = (tensor.device, tensor.data_ptr(), tensor.stride(), tensor.numel())
        if place not in seen:
            plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            seen[place] = hashlib.sha256(plain.numpy().data).hexdigest()
        total.update(seen[place].encode())
    return total.hexdigest()
