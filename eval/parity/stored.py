"""What an ONNX file holds of quantization: its integer weights, and the Q/DQ of its activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx


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


def channels_first(array: np.ndarray, axis: int) -> np.ndarray:
    """Return the array as (channels, rest), the other axes in their order."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
