"""The one quantizer: simulates INT8 in training and evaluation, and becomes Q/DQ nodes at export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

QMIN, QMAX = -128, 127


def amax_to_scale(amax: Tensor) -> Tensor:
    """Return scale = amax / 127 in float32; a channel that is all zero gets 1/127, which keeps its zeros exact."""
    amax = amax.float()
    return torch.where(amax > 0, amax, torch.ones_like(amax)) / QMAX


def quantize(x: Tensor, scale: Tensor) -> Tensor:
    """Return clamp(round_half_even(x / scale), -128, 127) as float32; the division is not replaced by a multiplication.

    Args:
        x: any float tensor. scale: broadcastable to x, float32, positive.
    """
    return torch.clamp(torch.round(x.float() / scale), QMIN, QMAX)


def fake_quantize(x: Tensor, scale: Tensor) -> Tensor:
    """Return x rounded to the INT8 grid of `scale`, in x's dtype; the arithmetic is float32 also under autocast.

    The rounding passes gradients straight through, the clamp stops them outside the range; the gradient that reaches
    `scale` is that of LSQ (Esser et al. 2020, arXiv:1902.08153, eq. 3). A plain formula: torch.compile fuses it.
    """
    steps = x.float() / scale
    rounded = steps + (torch.round(steps) - steps).detach()  # exact: the difference of neighbours has no rounding error
    return (torch.clamp(rounded, QMIN, QMAX) * scale).to(x.dtype)


class TensorQuantizer(nn.Module):
    """Quantizes one tensor (per tensor, or per channel along `axis`) from its stored amax.

    `amax` has shape (1,) or (channels,) and is None until calibrated. `pre_quant_scale`, shape (last axis,),
    is SmoothQuant's 1/s: x is multiplied by it before rounding, and the layer that reads x multiplies its weight by s.
    """

    amax: Tensor | None
    pre_quant_scale: Tensor | None
    export_scale: Tensor | None
    export_zero_point: Tensor | None

    def __init__(self, axis: int | None = None, enabled: bool = True, name: str = "") -> None:
        super().__init__()
        self.axis = axis
        self.enabled = enabled
        self.name = name
        self.is_bypassed = False
        self.register_buffer("amax", None)
        self.register_buffer("pre_quant_scale", None)
        self.register_buffer("export_scale", None, persistent=False)
        self.register_buffer("export_zero_point", None, persistent=False)

    @property
    def is_calibrated(self) -> bool:
        """Whether an amax is stored."""
        return self.amax is not None

    @property
    def is_active(self) -> bool:
        """Whether forward changes its input: switched on by the recipe and not bypassed."""
        return self.enabled and not self.is_bypassed

    @property
    def scale(self) -> Tensor:
        """amax / 127, float32, shape of amax. Raises: RuntimeError: no amax yet."""
        if self.amax is None:
            raise RuntimeError(
                f"{self.name or 'quantizer'} has no amax. Run 'python -m calib', or switch it off in the "
                f"recipe (rules: - {{match: '{self.name}', enable: false}})"
            )
        return amax_to_scale(self.amax)

    def set_amax(self, amax: Tensor) -> None:
        """Store amax (shape (1,) or (channels,), float32). Raises: ValueError: negative, NaN or infinite values."""
        amax = amax.detach().float().reshape(-1).clone()
        if not torch.isfinite(amax).all() or (amax < 0).any():
            raise ValueError(f"{self.name}: amax must be finite and not negative, got {amax.min():g} to {amax.max():g}")
        self.amax = amax

    def set_pre_quant_scale(self, pre_quant_scale: Tensor | None) -> None:
        """Store SmoothQuant's 1/s, shape (channels,), float32; None removes it."""
        self.pre_quant_scale = None if pre_quant_scale is None else pre_quant_scale.detach().float().clone()

    def broadcast_scale(self, x: Tensor) -> Tensor:
        """Return the scale shaped to divide x: (1,) per tensor, or (1, .., channels, .., 1) along `axis`."""
        return along_axis(self.scale, x, self.axis)

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_active:
            return x
        if self.pre_quant_scale is not None:
            x = (x.float() * self.pre_quant_scale).to(x.dtype)
        if self.export_scale is not None and torch.compiler.is_exporting():
            return self._export(x)
        return fake_quantize(x, self.broadcast_scale(x))

    def _export(self, x: Tensor) -> Tensor:
        """Return x through QuantizeLinear and DequantizeLinear nodes of ONNX (opset 19 to 20's operators)."""
        attributes: dict[str, Any] = {} if self.axis is None else {"axis": self.axis}
        grid = (self.export_scale, self.export_zero_point)
        codes = torch.onnx.ops.symbolic("QuantizeLinear", (x, *grid), attributes, dtype=torch.int8, shape=x.shape)
        return torch.onnx.ops.symbolic("DequantizeLinear", (codes, *grid), attributes, dtype=x.dtype, shape=x.shape)

    def prepare_export(self, dtype: torch.dtype = torch.float32) -> None:
        """Store the constants that the exported nodes read; scales per tensor are scalars there, as ONNX wants them."""
        scale = self.scale.to(dtype)
        self.export_scale = scale.reshape(()) if self.axis is None else scale
        self.export_zero_point = torch.zeros_like(self.export_scale, dtype=torch.int8)

    def finish_export(self) -> None:
        """Drop the constants of `prepare_export`."""
        self.export_scale = self.export_zero_point = None

    def extra_repr(self) -> str:
        state = "off" if not self.enabled else "uncalibrated" if self.amax is None else f"amax {self.amax.max():.4g}"
        return f"{state}, axis={self.axis}" + (", smoothed" if self.pre_quant_scale is not None else "")


def along_axis(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """Return per-channel `values` (channels,) reshaped to broadcast over x along `axis`; unchanged if axis is None."""
    if axis is None:
        return values
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)


def named_quantizers(model: nn.Module) -> Iterator[tuple[str, TensorQuantizer]]:
    """Yield (name, quantizer) once for each quantizer of the model; a shared one under its own first name."""
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, TensorQuantizer) and id(module) not in seen:
            seen.add(id(module))
            yield module.name, module


@contextmanager
def quantizers_disabled(model: nn.Module) -> Iterator[None]:
    """Let the model compute as the float model inside the block (exact folds stay; they do not change its outputs)."""
    quantizers = [quantizer for _, quantizer in named_quantizers(model)]
    before = [quantizer.is_bypassed for quantizer in quantizers]
    for quantizer in quantizers:
        quantizer.is_bypassed = True
    try:
        yield
    finally:
        for quantizer, state in zip(quantizers, before, strict=True):
            quantizer.is_bypassed = state
