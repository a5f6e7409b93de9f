"""The one quantizer: simulates integers in training and evaluation, and becomes Q/DQ nodes at export."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from quant.fake_quantize import along_axis, amax_to_scale, channel_amax, fake_quantize
from quant.formats import INT8, NumberFormat
from quant.memo import Memo, Source

HALF_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@cache
def fused_kernels() -> ModuleType | None:
    """Return `kernels.fake_quantize`, or None where Triton is not installed (a torch without a GPU)."""
    if importlib.util.find_spec("triton") is None:
        return None
    from kernels import fake_quantize as kernels

    return kernels


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a matrix product reads x: under autocast that of autocast, else x's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class TensorQuantizer(nn.Module):
    """Quantizes one tensor (per tensor, or per channel along `axis`) from its stored amax.

    `amax` has shape (1,) or (channels,) and is None until calibrated. `pre_quant_scale`, shape (last axis,),
    is SmoothQuant's 1/s: x is multiplied by it before rounding, and the layer that reads x multiplies its weight by s.
    `format` says which integers it may become.
    """

    amax: Tensor | None
    log2_amax: nn.Parameter | None
    pre_quant_scale: Tensor | None
    export_scale: Tensor | None
    export_zero_point: Tensor | None

    def __init__(
        self, axis: int | None = None, enabled: bool = True, name: str = "", number_format: NumberFormat = INT8
    ) -> None:
        super().__init__()
        self.axis = axis
        self.enabled = enabled
        self.name = name
        self.format = number_format
        self.is_bypassed = False
        self.retakes_range = False  # in training: the range is the maximum of each step's tensor
        self.num_readers = 1  # layers that read the same tensor through this quantizer, one after the other
        self.export_limits: tuple[float, float] | None = None
        self._memo: Memo | None = None
        self.register_buffer("amax", None)
        self.register_parameter("log2_amax", None)
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

    def current_amax(self) -> Tensor:
        """Return the amax in force, shape (1,) or (channels,): the learned one in training, else the stored one.

        Raises: RuntimeError: no amax yet.
        """
        if self.log2_amax is not None:
            return torch.exp2(self.log2_amax)
        if self.amax is None:
            raise RuntimeError(
                f"{self.name or 'quantizer'} has no amax. Run 'python -m calib', or switch it off in the "
                f"recipe (rules: - {{match: '{self.name}', enable: false}})"
            )
        return self.amax

    @property
    def scale(self) -> Tensor:
        """amax / qmax, float32, shape of amax. Raises: RuntimeError: no amax yet."""
        return amax_to_scale(self.current_amax(), self.format)

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
        stored_range, is_log2 = self._stored_range(x)
        scale = amax_to_scale(torch.exp2(stored_range) if is_log2 else stored_range, self.format)
        if is_log2:  # LSQ's gradient scale; the value of `scale` stays as it is, to the bit
            damped = scale * (scale.numel() / x.numel() / self.format.qmax) ** 0.5
            scale = scale.detach() + (damped - damped.detach())
        return along_axis(scale, x, self.axis)

    def start_learning(self) -> None:
        """Make the range a parameter, log2(amax) in amax's shape: a step of Adam changes any range by a like share.

        Source: Jain et al. 2020, TQT (arXiv:1903.08066), sec. 3.2, with LSQ's gradient.
        """
        amax = self.current_amax().detach()
        self.log2_amax = nn.Parameter(torch.log2(torch.where(amax > 0, amax, torch.ones_like(amax))))

    def finish_learning(self) -> None:
        """Store the learned range as amax, and train or retake it no more."""
        if self.log2_amax is not None:
            self.set_amax(self.current_amax())
        self.log2_amax = None
        self.retakes_range = False

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return x on the format's grid, in `dtype` (default: x's own); switched off or bypassed, x in that dtype."""
        if not self.is_active:
            return x if dtype is None else x.to(dtype)
        if self.num_readers == 1 or torch.compiler.is_compiling():  # a compiler finds the common expression itself
            return self._quantize(x, dtype or x.dtype)
        if x.is_inference() or torch.is_inference_mode_enabled():
            return self._quantize(x, dtype or x.dtype)  # such tensors count no versions: a change would go unseen
        made_of = (x, self.amax, self.log2_amax, self.pre_quant_scale)
        source, memo = Source(made_of, (dtype or x.dtype, self.retakes_range, self.format)), self._memo
        if memo is None or not memo.is_of(source):
            memo = Memo(source, self._quantize(x, dtype or x.dtype), self.num_readers)
        memo.left -= 1
        self._memo = memo if memo.left else None  # dropped after the last reader
        return memo.output

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy takes over: the memo stays, as activations are neither copied nor stored."""
        return {**self.__dict__, "_memo": None}

    def _quantize(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if self.pre_quant_scale is not None:
            x = (x.float() * self.pre_quant_scale).to(x.dtype)
        if self.export_scale is not None and torch.compiler.is_exporting():
            return self._export(x.to(dtype))
        kernels = fused_kernels() if x.is_cuda and not torch.compiler.is_compiling() else None
        if kernels is not None:
            stored_range, is_log2 = self._stored_range(x)
            if kernels.can_fuse(x, stored_range, self.axis):
                return kernels.fused_fake_quantize(
                    x, stored_range, self.format.ends, is_log2=is_log2, axis=self.axis, dtype=dtype
                )
        return fake_quantize(x, self.broadcast_scale(x), self.format, dtype)

    def _stored_range(self, x: Tensor) -> tuple[Tensor, bool]:
        """Return the range in force for x, shape (1,) or (channels,), and whether it is log2(amax) or amax."""
        if self.retakes_range:
            return channel_amax(x.detach(), self.axis), False
        return (self.current_amax(), False) if self.log2_amax is None else (self.log2_amax, True)

    def _export(self, x: Tensor) -> Tensor:
        """Return x through QuantizeLinear and DequantizeLinear nodes of ONNX (opset 19 to 20's operators)."""
        attributes: dict[str, Any] = {} if self.axis is None else {"axis": self.axis}
        grid = (self.export_scale, self.export_zero_point)
        if self.export_limits is not None:
            x = x.clamp(*self.export_limits)
        stored = getattr(torch, self.format.torch_type)
        codes = torch.onnx.ops.symbolic("QuantizeLinear", (x, *grid), attributes, dtype=stored, shape=x.shape)
        return torch.onnx.ops.symbolic("DequantizeLinear", (codes, *grid), attributes, dtype=x.dtype, shape=x.shape)

    def limits(self) -> tuple[Tensor, Tensor] | None:
        """Return the smallest and largest x that may be rounded, in scale's shape, where the format is narrower than
        its storage: QuantizeLinear itself clips to the storage alone. fl(qmax x scale) / scale rounds to qmax."""
        scale = self.scale.detach()
        return (scale * self.format.qmin, scale * self.format.qmax) if self.format.is_narrow else None

    def prepare_export(self, *, is_clipped: bool = False) -> None:
        """Store the constants that the exported nodes read; scales per tensor are scalars there, as ONNX wants them.

        Args: is_clipped: the tensor lies within `limits` already (a weight), so that no Clip is needed.
        """
        self.export_scale = self.scale.reshape(()) if self.axis is None else self.scale
        self.export_zero_point = torch.zeros_like(self.export_scale, dtype=getattr(torch, self.format.torch_type))
        limits = None if is_clipped else self.limits()
        self.export_limits = None if limits is None else (float(limits[0]), float(limits[1]))

    def finish_export(self) -> None:
        """Drop the constants of `prepare_export`."""
        self.export_scale = self.export_zero_point = self.export_limits = None

    def extra_repr(self) -> str:
        state = "off" if not self.enabled else "uncalibrated" if self.amax is None else f"amax {self.amax.max():.4g}"
        named = "" if self.format == INT8 else f", {self.format.name}"
        return f"{state}, axis={self.axis}{named}" + (", smoothed" if self.pre_quant_scale is not None else "")


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


@contextmanager
def rounded_scales(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let every scale and SmoothQuant factor be a number of `dtype` (fp16, bf16) inside the block.

    A scale below the type's smallest positive number becomes that number. scale = (scale x qmax) / qmax is exact: a
    half has at most 11 significant bits, times the 7 of INT8's 127 at most 18 of fp32's 24 (narrower formats: fewer).
    """
    smallest = 2.0**-24 if dtype == torch.float16 else 2.0**-126
    quantizers = [each for _, each in named_quantizers(model) if each.enabled and each.amax is not None]
    before = [(each.amax, each.pre_quant_scale) for each in quantizers]
    try:
        for each in quantizers:
            each.amax = each.scale.to(dtype).float().clamp(min=smallest) * each.format.qmax
            if each.pre_quant_scale is not None:
                each.pre_quant_scale = each.pre_quant_scale.to(dtype).float()
        yield
    finally:
        for each, (amax, pre_quant_scale) in zip(quantizers, before, strict=True):
            each.amax, each.pre_quant_scale = amax, pre_quant_scale
