"""Layers that carry quantizers. Each subclasses the float layer it stands for and keeps its parameters' names."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from quant.fake_quantize import along_axis, channel_amax
from quant.tensor_quantizer import TensorQuantizer, product_dtype


class QuantLayer:
    """What the quantized layers with a weight share: an `input_quantizer` and a `weight_quantizer`."""

    input_quantizer: TensorQuantizer
    weight_quantizer: TensorQuantizer
    weight: Any
    kind = "linear"
    weight_axis = 0  # the axis of the output channels in `weight`
    input_axis = 1  # the axis of the input channels in `weight`, along which SmoothQuant's s is multiplied
    is_weight_smoothed = False  # whether `weight` holds the product already (during export)

    def smoothed_weight(self, weight: Tensor | None = None) -> Tensor:
        """Return weight x s where SmoothQuant multiplies the input by 1/s, else the weight itself.

        Args:
            weight: the whole weight where the layer itself holds a shard of it (FSDP).
        """
        weight = self.weight if weight is None else weight
        quantizer = self.input_quantizer
        if not quantizer.is_active or quantizer.pre_quant_scale is None or self.is_weight_smoothed:
            return weight
        return weight.float() * along_axis(1 / quantizer.pre_quant_scale.to(weight.device), weight, self.input_axis)

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return input and weight as the product sees them: smoothed, on the INT8 grid, in the product's dtype."""
        dtype = product_dtype(x)
        return self.input_quantizer(x, dtype), self.weight_quantizer(self.smoothed_weight(), dtype)


class QuantLinear(QuantLayer, nn.Linear):
    """nn.Linear with quantized input and weight; weight (out_features, in_features)."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(*self.operands(input), self.bias)


class QuantConv1D(QuantLayer, Conv1D):
    """Transformers' Conv1D (GPT-2), a linear layer whose weight is stored (in_features, out_features)."""

    weight_axis = 1
    input_axis = 0

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.operands(x)
        return x @ weight + self.bias


class QuantConv2d(QuantLayer, nn.Conv2d):
    """nn.Conv2d (patch embedding) with quantized input and weight; weight (out, in / groups, height, width)."""

    kind = "conv"

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(*self.operands(input), self.bias)


class QuantConv1d(QuantLayer, nn.Conv1d):
    """nn.Conv1d (Whisper's first layers) with quantized input and weight; weight (out, in / groups, length)."""

    kind = "conv"

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(*self.operands(input), self.bias)


class QuantEmbedding(nn.Embedding):
    """nn.Embedding whose table is quantized per column: the scales lie along the last axis of what it gives."""

    weight_quantizer: TensorQuantizer
    kind = "embedding"
    weight_axis = -1

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_exporting() or self.weight_quantizer.retakes_range:  # its maximum is the whole table's
            return F.embedding(input, self.weight_quantizer(self.weight), self.padding_idx)
        return self.weight_quantizer(F.embedding(input, self.weight, self.padding_idx))  # only the rows looked up


class QuantNorm:
    """Mixed into any norm class by `quant_norm_class`: rounds the norm's output with `output_quantizer`."""

    output_quantizer: TensorQuantizer
    kind = "norm_output"

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.output_quantizer(super().forward(*args, **kwargs))  # type: ignore[misc]


def weight_range(layer: Any, weight: Tensor | None = None) -> Tensor:
    """Return the exact maximum of |weight| for each of a layer's scales, SmoothQuant's factor included, (channels,).

    Args:
        layer: one with a `weight_quantizer`. weight: its whole weight where it holds a shard (FSDP).
    """
    whole = layer.weight if weight is None else weight
    product = layer.smoothed_weight(whole) if isinstance(layer, QuantLayer) else whole
    return channel_amax(product.detach(), layer.weight_quantizer.axis)


QUANT_LAYERS: dict[type, Any] = {
    nn.Linear: QuantLinear,
    Conv1D: QuantConv1D,
    nn.Conv2d: QuantConv2d,
    nn.Conv1d: QuantConv1d,
}
QUANT_LAYER_TYPES = (QuantLinear, QuantConv1D, QuantConv2d, QuantConv1d)


def is_norm(module: nn.Module) -> bool:
    """Return whether the module is a LayerNorm or RMSNorm, of torch or of a model's own file."""
    return isinstance(module, nn.LayerNorm | nn.RMSNorm) or type(module).__name__.endswith(("RMSNorm", "LayerNorm"))


@cache
def quant_norm_class(norm_class: Any) -> type:
    """Return the subclass of `norm_class` that rounds its output."""
    return type(f"Quant{norm_class.__name__}", (QuantNorm, norm_class), {"__doc__": QuantNorm.__doc__})
