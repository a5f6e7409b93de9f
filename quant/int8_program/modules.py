"""A copy of the quantized model whose layers hold INT8 weights and mark what the passes fuse."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from kernels.reference import TORCH_ACTIVATIONS
from quant.fake_quantize import along_axis, quantize
from quant.int8_program.attention import PROGRAM_ATTENTION, program_attention
from quant.int8_program.markers import ACTIVATION, DEQUANTIZE, PRODUCT, QUANTIZE
from quant.modules import (
    QUANT_LAYER_TYPES,
    QuantConv1D,
    QuantConv2d,
    QuantEmbedding,
    QuantLinear,
    QuantNorm,
    is_norm,
)
from quant.own_attention import OwnAttention, set_attention, swap_attention
from quant.tensor_quantizer import TensorQuantizer


class ProgramQuantizer(TensorQuantizer):
    """Marks quantize → dequantize; `number`, the scale, is a constant of the graph, the factor float32."""

    number: float

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return x on its grid, in `dtype`."""
        if not self.is_active:
            return x if dtype is None else x.to(dtype)
        codes = QUANTIZE(x, self.number, self.pre_quant_scale, *self.format.ends)
        return DEQUANTIZE(codes, self.number, dtype or x.dtype)


class Coded:
    """What holds its weight as INT8 `codes` with `weight_scale` along an axis; models ask a weight for its type."""

    codes: Any
    weight_scale: Any
    code_axis = 0
    dtype: torch.dtype
    weight: Any = property(
        lambda self: (self.codes.float() * along_axis(self.weight_scale, self.codes, self.code_axis)).to(self.dtype)
    )


class ProgramLayer(Coded):
    """A layer that is a linear one: codes (N, K), `weight_scale` (N,) and `bias` float32."""

    input_quantizer: TensorQuantizer
    bias: Any

    def multiply(self, x: Tensor) -> Tensor:
        """Return the marked product of x (..., K), which its quantizer has rounded."""
        return PRODUCT(x, self.codes, self.weight_scale, self.bias)


class ProgramLinear(ProgramLayer, QuantLinear):
    """A linear layer."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the product, (..., N)."""
        return self.multiply(self.input_quantizer(input))


class ProgramConv1D(ProgramLayer, QuantConv1D):
    """GPT-2's layer; its codes are stored (N, K)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the product, (..., N)."""
        return self.multiply(self.input_quantizer(x))


class ProgramPatches(ProgramLayer, QuantConv2d):
    """A convolution whose windows neither overlap nor leave gaps: a linear layer over patches."""

    def forward(self, input: Tensor) -> Tensor:
        """Return (B, N, H / height, W / width)."""
        height, width = self.kernel_size
        x = self.input_quantizer(input)
        rows, columns = x.shape[2] // height, x.shape[3] // width
        x = x[:, :, : rows * height, : columns * width]
        x = x.reshape(x.shape[0], self.in_channels, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
        return self.multiply(x.flatten(3)).permute(0, 3, 1, 2)


class ProgramEmbedding(Coded, QuantEmbedding):
    """An embedding whose table is INT8, `weight_scale` (columns,)."""

    code_axis = -1

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows that were looked up, dequantized."""
        return (F.embedding(input, self.codes, self.padding_idx).float() * self.weight_scale).to(self.dtype)


def program_model(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a copy of the model, float or quantized, in evaluation mode and `dtype`, that marks what can be fused.

    Its quantized weights are the codes of the model's own float32 weights; what computes from the configuration alone
    (buffers that are not saved, such as rotary frequencies) stays float32.
    """
    made: Any = copy.deepcopy(model).eval()
    codes = {
        name: _codes(layer) for name, layer in model.named_modules() if _is_coded(layer)
    }  # of the float32 weights, before the copy is rounded
    _cast(made, dtype)
    for name, each in list(made.named_modules()):
        module: Any = each
        if isinstance(each, TensorQuantizer):
            original: Any = model.get_submodule(name)
            module.__class__ = ProgramQuantizer
            module.pre_quant_scale = original.pre_quant_scale
            if module.is_active and module.axis is None:
                module.number = float(original.scale)
        elif name in codes:
            _hold_codes(module, *codes[name], bias=getattr(model.get_submodule(name), "bias", None), dtype=dtype)
        elif is_norm(module) and not isinstance(module, nn.LayerNorm):
            _as_rms_norm(module)
        elif not list(module.children()) and not list(module.parameters()) and (known := _known_activation(module)):
            module.__class__ = type(f"Program{type(module).__name__}", (type(module),), {"forward": _marks(known)})
    for module in made.modules():
        swap_attention(module)
        if isinstance(module, OwnAttention):
            module.__dict__["attend"] = program_attention
    set_attention(made, PROGRAM_ATTENTION)
    return made


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    for module in model.modules():
        for _, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and name not in module._non_persistent_buffers_set:
                setattr(module, name, buffer.to(dtype))


def _is_coded(layer: nn.Module) -> bool:
    """Return whether the program holds the layer's weight in INT8."""
    return isinstance(layer, (*QUANT_LAYER_TYPES, QuantEmbedding)) and layer.weight_quantizer.is_active


def _codes(layer: Any) -> tuple[Tensor, Tensor]:
    """Return a layer's weight as INT8 codes, shaped as the layer has it, and its scales (channels,)."""
    weight = layer.weight if isinstance(layer, QuantEmbedding) else layer.smoothed_weight()
    quantizer = layer.weight_quantizer
    scale = quantizer.broadcast_scale(weight).detach()
    return quantize(weight.detach(), scale, quantizer.format).to(torch.int8), quantizer.scale.detach()


def _hold_codes(layer: Any, codes: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
    """Put codes in the place of a layer's weight, in the shape that its program class reads."""
    kind = _program_class(layer)
    if kind is ProgramConv1D:
        codes = codes.t().contiguous()
    for name in ("weight", "bias"):
        layer._parameters.pop(name, None)
    layer.register_buffer("codes", codes.flatten(1) if kind is ProgramPatches else codes)
    layer.register_buffer("weight_scale", scale.float())
    if not isinstance(layer, nn.Embedding):  # a convolution that stays one has a half bias, as its input
        is_linear = issubclass(kind, ProgramLayer)
        layer.register_buffer("bias", None if bias is None else bias.detach().to(torch.float32 if is_linear else dtype))
    layer.__class__, layer.dtype = kind, dtype


def _program_class(layer: Any) -> type:
    """Return the class of a layer that holds its codes."""
    if isinstance(layer, QuantEmbedding):
        return ProgramEmbedding
    if isinstance(layer, QuantConv1D):
        return ProgramConv1D
    if isinstance(layer, QuantLinear):
        return ProgramLinear
    if isinstance(layer, QuantConv2d):
        plain = layer.padding in ((0, 0), "valid") and layer.groups == 1 and set(layer.dilation) == {1}
        if plain and tuple(layer.stride) == tuple(layer.kernel_size):
            return ProgramPatches
    return _windowed_class(type(layer))


def _windowed_class(kind: type) -> type:
    """Return the class of a convolution whose windows overlap: it multiplies floats made from its codes."""

    def operands(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.input_quantizer(x), self.weight

    return type(f"Program{kind.__name__}", (Coded, kind), {"operands": operands})


def _as_rms_norm(norm: Any) -> None:
    """Let a norm that computes what torch's RMS norm does compute it by torch's: found by trying, not by its name."""
    eps = next((getattr(norm, name) for name in ("variance_epsilon", "eps", "epsilon") if hasattr(norm, name)), None)
    weight = getattr(norm, "weight", None)
    if eps is None or weight is None or weight.dim() != 1:
        return
    x = torch.randn((4, len(weight)), generator=torch.Generator().manual_seed(0)).to(weight)
    plain = type(norm).__mro__[2] if isinstance(norm, QuantNorm) else type(norm)
    expected = plain.forward(norm, x).float()  # type: ignore[attr-defined]
    if not torch.allclose(F.rms_norm(x, x.shape[-1:], weight, float(eps)).float(), expected, rtol=0.02, atol=1e-3):
        return

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        y = F.rms_norm(hidden_states, hidden_states.shape[-1:], self.weight, float(eps))
        return self.output_quantizer(y) if isinstance(self, QuantNorm) else y

    norm.__class__ = type(f"Program{type(norm).__name__}", (type(norm),), {"forward": forward})


def _known_activation(module: nn.Module) -> str | None:
    """Return the name of the activation that a module without parameters computes, found by trying it."""
    x = torch.cat((torch.linspace(-6, 6, 97), torch.linspace(-100, 100, 201)))  # far out: some are clipped there
    if not type(module).__module__.startswith(("transformers.activations", "torch.nn.modules.activation")):
        return None
    try:
        y = module(x)
    except (TypeError, ValueError, RuntimeError):  # takes something else
        return None
    for name, function in TORCH_ACTIVATIONS.items():
        if name not in ("none", "gelu_fast") and torch.is_tensor(y) and torch.allclose(y, function(x), atol=2e-6):
            return name
    return None


def _marks(name: str) -> Any:
    def forward(self: Any, input: Tensor) -> Tensor:
        return ACTIVATION(input, name)

    return forward
