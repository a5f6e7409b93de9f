"""Is the ONNX file, site by site, what the PyTorch modules say?

Weights and scales to the bit, activations integer by integer. The first half of the parity check; `parity.py` holds
the outputs of the whole model against each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from engine.integers import symmetric_zero
from eval.parity.onnx_constants import Constants
from quant.fake_quantize import quantize
from quant.modules import QuantLayer
from quant.sites.site import Site, site_quantizers
from quant.tensor_quantizer import TensorQuantizer

# A site's inputs of the check: 64 rows of normal numbers that reach past both ends of the range (amax at 2 sigma).
NUM_ROWS = 64
DEFAULT_CHANNELS = 256
SIGMAS_AT_AMAX = 2.0


@dataclass(frozen=True)
class StoredWeight:
    """One INT8 constant of the file, channels first: integers (channels, rest), scale (channels,) or (1,)."""

    name: str
    integers: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True)
class StoredSite:
    """One QuantizeLinear of an activation.

    Scale and zero point, the constant it is multiplied by before (SmoothQuant), and the ends it is clipped to.
    """

    name: str
    scale: np.ndarray
    zero_point: np.ndarray
    multiplier: np.ndarray | None
    limits: tuple[np.ndarray, np.ndarray] | None


@dataclass(frozen=True)
class SiteReport:
    """What was compared: numbers of weights and activation sites, and the share of equal integers at the worst site."""

    num_weights: int
    num_activations: int
    min_equal_integers: float


def check_sites(proto: onnx.ModelProto, model: nn.Module, folder: str | Path = "") -> SiteReport:
    """Return the report of a file whose weights, scales and rounding are those of the model.

    Args:
        folder: where the weights stand that the file refers to; they are read one by one.

    Raises: ValueError: naming every weight or scale that is not equal to the bit, every zero point that is not the
        target's, and
        every site where fewer than 99.99 % of the integers are equal or one is more than 1 away.
    """
    constants = Constants(proto, folder)
    stored_weights, stored_sites = list(weights_of(proto, constants)), list(activation_sites_of(proto, constants))
    problems: list[str] = []
    num_weights = 0
    pairs: list[tuple[TensorQuantizer, StoredSite]] = []
    for site, quantizer in active_quantizers(model):
        name = site.name
        if site.is_weight:
            num_weights += 1
            problem = weight_problem(site, *expected_weight(model, site, quantizer), stored_weights)
            problems += [problem] if problem else []
        else:
            found = find_site(quantizer, stored_sites)
            if found is None:
                problems.append(
                    f"{name}: no QuantizeLinear has its scale {float(quantizer.scale):.9g}{_before(quantizer)}"
                )
            else:
                pairs.append((quantizer, found))
    problems += _zero_point_problems(stored_sites)
    equal = 1.0
    for (quantizer, _), (share, largest) in zip(pairs, integer_parity(pairs), strict=True):
        equal = min(equal, share)
        if share < 0.9999 or largest > 1:  # facts of rounding: ties of x / scale may fall either way, by one step
            problems.append(
                f"{quantizer.name}: {share:.4%} of the integers are equal, the largest difference is {largest}"
            )
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ValueError(
            f"the ONNX file is not the quantized model in {len(problems)} places: {shown}. Export it again"
        )
    return SiteReport(num_weights, len(pairs), equal)


def active_quantizers(model: nn.Module) -> Iterator[tuple[Site, TensorQuantizer]]:
    """Yield the sites whose quantizers round something in the model."""
    return ((site, quantizer) for site, quantizer in site_quantizers(model) if quantizer.is_active)


def expected_weight(model: nn.Module, site: Site, quantizer: TensorQuantizer) -> tuple[np.ndarray, np.ndarray]:
    """Return what the file must hold: integers (channels, rest), int8, and scale (channels,) or (1,), float32."""
    owner: Any = model.get_submodule(site.module)
    with torch.no_grad():
        weight = owner.smoothed_weight() if isinstance(owner, QuantLayer) else owner.weight
        codes = quantize(weight, quantizer.broadcast_scale(weight), quantizer.format)
        integers = codes.to(getattr(torch, quantizer.format.torch_type))
        return channels_first(integers.cpu().numpy(), quantizer.axis or 0), quantizer.scale.detach().cpu().numpy()


def channels_first(array: np.ndarray, axis: int) -> np.ndarray:
    """Return the array as (channels, rest), the other axes in their order."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def weight_problem(site: Site, integers: np.ndarray, scale: np.ndarray, stored: list[StoredWeight]) -> str | None:
    """Return what is wrong with one weight in the file, None if it stands there to the bit.

    It may be a block of rows of a larger constant, since a target may join Q, K and V.
    """
    same_width = [weight for weight in stored if weight.integers.shape[1] == integers.shape[1]]
    for weight in same_width:
        for start in _places(scale, weight.scale):
            if np.array_equal(weight.integers[start : start + len(integers)], integers):
                return None
    name, parameter = site.name, f"{site.module}.weight"
    named = [w for w in same_width if parameter in w.name and w.integers.shape == integers.shape]
    near = min(named, key=lambda w: np.count_nonzero(w.integers != integers), default=None)
    if near is None:
        return f"{name}: the file holds no INT8 constant with its {integers.size} integers and {scale.size} scales"
    num_integers = int(np.count_nonzero(near.integers != integers))
    num_scales = int(np.count_nonzero(near.scale != scale)) if near.scale.shape == scale.shape else scale.size
    return (
        f"{name}: {num_integers} of {integers.size} integers and {num_scales} of {scale.size} scales differ from "
        f"{near.name}"
    )


def _places(scale: np.ndarray, stored: np.ndarray) -> list[int]:
    """Return where the scales stand within stored ones, bit for bit."""
    if scale.size == 1 or stored.size == 1:
        return [0] if np.array_equal(scale, stored) else []
    if len(stored) < len(scale):
        return []
    starts = np.flatnonzero(stored[: len(stored) - len(scale) + 1] == scale[0])
    return [int(start) for start in starts if np.array_equal(stored[start : start + len(scale)], scale)]


def weights_of(proto: onnx.ModelProto, constants: Mapping[str, np.ndarray]) -> Iterator[StoredWeight]:
    """Yield every INT8 constant of at least two axes with its scale, along the axis that its DequantizeLinear names.

    Behind a Gather (an embedding table) axes are counted otherwise: then once for each axis that the scale fits.
    """
    for name, (scale_name, axis) in _dequantized(proto, constants).items():
        integers, scale = constants[name], constants[scale_name].reshape(-1)
        if integers.dtype != np.int8 or integers.ndim < 2:
            continue
        axes = range(integers.ndim) if axis is None or scale.size == 1 else [axis % integers.ndim]
        for each in axes:
            if scale.size in (1, integers.shape[each]):
                yield StoredWeight(name, channels_first(integers, each), scale)


def _dequantized(proto: onnx.ModelProto, constants: Mapping[str, np.ndarray]) -> dict[str, tuple[str, int | None]]:
    """Return constant → (its scale's name, its DequantizeLinear's axis, or None with a node between the two)."""
    origin: dict[str, str] = {name: name for name in constants}
    found: dict[str, tuple[str, int | None]] = {}
    for node in proto.graph.node:
        source = origin.get(node.input[0]) if node.input else None
        if source is None:
            continue
        if node.op_type in ("Gather", "Transpose", "Reshape"):
            origin[node.output[0]] = source
        elif node.op_type == "DequantizeLinear" and node.input[1] in constants:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            found[source] = (node.input[1], axis if source == node.input[0] else None)
    return found


def activation_sites_of(proto: onnx.ModelProto, constants: Mapping[str, np.ndarray]) -> Iterator[StoredSite]:
    """Yield every QuantizeLinear whose input is computed, with the Mul by a constant and the Clip before it."""
    producers = {output: node for node in proto.graph.node for output in node.output}
    for node in proto.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in constants:
            continue
        scale = constants.get(node.input[1])
        if scale is None:
            raise ValueError(f"QuantizeLinear {node.name} has a computed scale; export the checkpoint again")
        zero_point = constants[node.input[2]] if len(node.input) > 2 else np.zeros((), np.uint8)
        before = producers.get(node.input[0])
        limits = _limits(before, constants)
        if before is not None and limits is not None:
            before = producers.get(before.input[0])
        factors = [constants[name] for name in before.input if name in constants] if before is not None else []
        is_scaled = before is not None and before.op_type == "Mul" and len(factors) == 1
        yield StoredSite(node.name, scale, zero_point, factors[0] if is_scaled else None, limits)


def _limits(node: onnx.NodeProto | None, constants: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return both ends of a Clip node between constants; None of any other."""
    if node is None or node.op_type != "Clip" or not all(name in constants for name in node.input[1:]):
        return None
    return (constants[node.input[1]], constants[node.input[2]]) if len(node.input) == 3 else None


def find_site(quantizer: TensorQuantizer, stored: list[StoredSite]) -> StoredSite | None:
    """Return a QuantizeLinear with this quantizer's scale, SmoothQuant factor and Clip, equal to the bit, or None.

    Sites are found by value and not by name: exporters keep one of several equal constants.
    """
    scale = quantizer.scale.detach().cpu().numpy().reshape(-1)
    factor = None if quantizer.pre_quant_scale is None else quantizer.pre_quant_scale.detach().cpu().numpy()
    for site in stored:
        if not np.array_equal(site.scale.reshape(-1), scale) or not _is_clipped(site, quantizer):
            continue
        if factor is None:
            return site
        if site.multiplier is not None and np.array_equal(np.ravel(site.multiplier), np.ravel(factor)):
            return site
    return None


def _is_clipped(site: StoredSite, quantizer: TensorQuantizer) -> bool:
    """Return whether the Clip before a format narrower than its storage ends at its outermost codes.

    The ends themselves are rounded where the file is half precision. Other formats need none; the model may have one.
    """
    if not quantizer.format.is_narrow:
        return True
    codes = [] if site.limits is None else [float(np.rint(end / site.scale).item()) for end in site.limits]
    return codes == [quantizer.format.qmin, quantizer.format.qmax]


def integer_parity(pairs: list[tuple[TensorQuantizer, StoredSite]]) -> list[tuple[float, int]]:
    """Return for each pair (share of equal integers, largest difference), both sides fed the same random input.

    All QuantizeLinear nodes run as branches of one small model in ONNX Runtime, whatever the target.
    """
    if not pairs:
        return []
    import onnxruntime

    generator = np.random.default_rng(0)
    nodes, constants, inputs, outputs, feeds, expected = [], [], [], [], {}, []
    for i, (quantizer, site) in enumerate(pairs):
        factor = quantizer.pre_quant_scale
        channels = DEFAULT_CHANNELS if factor is None else factor.numel()
        sigma = float(quantizer.scale.max()) * quantizer.format.qmax / SIGMAS_AT_AMAX
        x = generator.normal(size=(NUM_ROWS, channels)).astype(np.float32) * np.float32(sigma)
        feeds[f"x{i}"] = x / np.float32(1) if factor is None else x / factor.detach().cpu().numpy()
        is_uint8 = site.zero_point.dtype == np.uint8
        constants += [numpy_helper.from_array(site.scale.reshape(()), f"s{i}")]
        constants += [numpy_helper.from_array(site.zero_point.reshape(()), f"z{i}")]
        source = f"x{i}"
        if factor is not None and site.multiplier is not None:
            constants.append(numpy_helper.from_array(np.ravel(site.multiplier), f"m{i}"))
            nodes.append(helper.make_node("Mul", [source, f"m{i}"], [f"p{i}"]))
            source = f"p{i}"
        if site.limits is not None and quantizer.format.is_narrow:
            names = [f"low{i}", f"high{i}"]
            constants += [numpy_helper.from_array(np.asarray(end, np.float32).reshape(()), name)
                          for end, name in zip(site.limits, names, strict=True)]  # fmt: skip
            nodes.append(helper.make_node("Clip", [source, *names], [f"c{i}"]))
            source = f"c{i}"
        nodes.append(helper.make_node("QuantizeLinear", [source, f"s{i}", f"z{i}"], [f"q{i}"]))
        inputs.append(helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, [NUM_ROWS, channels]))
        kind = TensorProto.UINT8 if is_uint8 else TensorProto.INT8
        outputs.append(helper.make_tensor_value_info(f"q{i}", kind, [NUM_ROWS, channels]))
        expected.append(_integers(quantizer, feeds[f"x{i}"]))
    graph = helper.make_graph(nodes, "sites", inputs, outputs, constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    parity = []
    for got, want, (_, site) in zip(session.run(None, feeds), expected, pairs, strict=True):
        difference = np.abs(got.astype(np.int64) - int(site.zero_point.ravel()[0]) - want)
        parity.append((float((difference == 0).mean()), int(difference.max())))
    return parity


@torch.no_grad()
def _integers(quantizer: TensorQuantizer, x: np.ndarray) -> np.ndarray:
    """Return the integers that the module rounds x to: its own output divided by its scale."""
    scale = quantizer.scale.detach().cpu().double()
    output = quantizer(torch.from_numpy(x).to(quantizer.scale.device)).cpu().double()
    return torch.round(output / scale).to(torch.int64).numpy()


def _zero_point_problems(stored: list[StoredSite]) -> list[str]:
    """Return the sites whose zero point is not the symmetric one: int8 0 and uint8 128 mean the same numbers."""
    problems = []
    for site in stored:
        right = symmetric_zero(site.zero_point.dtype)
        if right is None or (site.zero_point != right).any():
            problems.append(
                f"{site.name}: zero point {site.zero_point.ravel()[:1].tolist()} of {site.zero_point.dtype}"
            )
    return problems


def _before(quantizer: TensorQuantizer) -> str:
    """Return what must stand before the QuantizeLinear of this quantizer, in words."""
    smooth = "" if quantizer.pre_quant_scale is None else " behind a Mul by its pre_quant_scale"
    return smooth + (f" behind a Clip to {quantizer.format.name}'s codes" if quantizer.format.is_narrow else "")
