"""Which quantized class stands for a layer: by what its forward computes, where it is a subclass of a known layer."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from quant.modules import QUANT_LAYERS, QuantEmbedding

# Another order of a sum is allowed (Falcon's x @ W.T + b); a weight that is standardized first, or a scaled output, is
# off by far more.
TOLERANCE = 1e-4


def quant_class(module: Any) -> Any:
    """Return the class that carries quantizers in place of the module's own; None where the module takes none.

    A subclass counts as its base (a linear layer or convolution) if both give the same on a random input, in training
    mode too; one with another forward keeps it. What such a class adds beside its forward stays.
    """
    if "forward" in vars(module):  # set on the module itself: a class put in its place would never be asked
        return None
    if type(module) in QUANT_LAYERS:
        return QUANT_LAYERS[type(module)]
    if isinstance(module, nn.Embedding):
        float_class: Any = type(module)
        return _subclass(QuantEmbedding, float_class) if float_class.forward is nn.Embedding.forward else None
    base = next((each for each in QUANT_LAYERS if isinstance(module, each)), None)
    if base is None or isinstance(module, QUANT_LAYERS[base]) or not _computes_as(module, base):
        return None
    float_class = type(module)
    return _subclass(QUANT_LAYERS[base], float_class)


@cache
def _subclass(quantized: Any, float_class: Any) -> Any:
    """Return the quantized class with all that `float_class` adds to its base."""
    if issubclass(quantized, float_class):
        return quantized
    return type(f"Quant{float_class.__name__}", (quantized, float_class), {"__doc__": quantized.__doc__})


def _computes_as(module: Any, base: Any) -> bool:
    """Return whether the module's forward gives what the base's product of its weight and bias gives."""
    weight, was_training = module.weight, module.training
    if not (isinstance(weight, Tensor) and weight.is_floating_point()) or weight.is_meta:
        return False
    x = torch.randn(_input_shape(module), generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        with torch.no_grad():
            expected, given = _product(module, base, x), []
            for mode in (False, True):
                module.training = mode
                given.append(type(module).forward(module, x))
    except Exception:  # it takes other inputs, or has no such weight: a class of which nothing is known
        return False
    finally:
        module.training = was_training
    largest = float(expected.abs().max().clamp_min(1e-6))
    return all(
        isinstance(y, Tensor) and y.shape == expected.shape and float((y - expected).abs().max()) <= TOLERANCE * largest
        for y in given
    )


def _product(module: Any, base: Any, x: Tensor) -> Tensor:
    if base in (nn.Conv1d, nn.Conv2d):
        return base._conv_forward(module, x, module.weight, module.bias)
    return base.forward(module, x)


def _input_shape(module: Any) -> tuple[int, ...]:
    if isinstance(module, nn.Linear | Conv1D):
        return (3, module.weight.shape[1 if isinstance(module, nn.Linear) else 0])
    size = [d * (k - 1) + 1 + s for d, k, s in zip(module.dilation, module.kernel_size, module.stride, strict=True)]
    return (1, module.in_channels, *size)
