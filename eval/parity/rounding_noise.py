"""How far a quantized model's outputs move when nothing is wrong: another order of the same float32 sums.

One value that falls to the other side of a rounding moves all layers behind it. So the outputs of two right programs
differ by much more than float32 does, and a check of one against the other has to know by how much.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quant.tensor_quantizer import named_quantizers

# One rounding of float32 (2^-24) of the largest value that the site holds: what a sum in another order leaves. On
# MiniLM (int8_smoothquant) it moves the logits by 0.017 in the mean; ONNX Runtime, file as written, by 0.012.
STEP = 2.0**-24


@contextmanager
def rounding_noise(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Add normal numbers of STEP x amax to what every activation quantizer reads, inside the block."""
    generator = torch.Generator().manual_seed(seed)

    def disturb(quantizer: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = arguments[0]
        noise = torch.randn(x.shape, generator=generator).to(x.device)
        amax = quantizer.current_amax().max()
        factor = quantizer.pre_quant_scale  # x is multiplied by it before it is rounded to amax's grid
        step = STEP * (amax if factor is None else amax / factor)
        return ((x.float() + noise * step).to(x.dtype), *arguments[1:])

    weights = {id(module.weight_quantizer) for module in model.modules() if hasattr(module, "weight_quantizer")}
    hooks = [
        quantizer.register_forward_pre_hook(disturb)
        for _, quantizer in named_quantizers(model)
        if quantizer.is_active and id(quantizer) not in weights
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
