"""Passes over weights: QuantizeLinear of an initializer becomes an INT8 initializer, and a Transpose after it
disappears.

Without them the file holds float weights and each consumer's optimizer has to fold them by its own rounding.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from engine.graph import (
    add_constant,
    constant,
    constant_shape,
    int_attribute,
    is_op,
    only_user,
    operand,
    permutation,
    replace,
)


def quantize(w: np.ndarray, scale: np.ndarray, axis: int) -> np.ndarray:
    """Return clamp(round_half_even(w / scale)) to int8's ends as int8, in fp32 throughout.

    A narrower format's weights come clipped (`quant.onnx_export`), so that their codes lie within it.

    Args:
        w: the float weight, any shape.
        scale: one scale, or one for each index of `axis`, > 0.
        axis: the axis of `w` that `scale` runs along; unused for one scale.
    Raises: ValueError: if the number of scales is neither 1 nor the length of `axis`.
    """
    w, scale = np.asarray(w, dtype=np.float32), np.asarray(scale, dtype=np.float32)
    if scale.size != 1 and (not -w.ndim <= axis < w.ndim or scale.shape != (w.shape[axis],)):
        raise ValueError(
            f"{scale.size} scales do not fit axis {axis} of a weight of shape {w.shape}; give 1 or one per index"
        )
    shape = [1] * w.ndim
    if scale.size != 1:
        shape[axis] = -1
    quotient = w / scale.reshape(shape)
    np.rint(quotient, out=quotient)
    ends = np.iinfo(np.int8)
    return np.clip(quotient, ends.min, ends.max, out=quotient).astype(np.int8)


def fold_weights(model: ir.Model) -> int:
    """Turn each QuantizeLinear(initializer) into an INT8 initializer; return how many were folded.

    Raises: ValueError: if a weight's zero point is not 0 or its scale is not a positive number.
    """
    folded = 0
    for node in model.graph:
        if not is_op(node, "QuantizeLinear"):
            continue
        w, scale = constant(operand(node, 0)), constant(operand(node, 1))
        if w is None or scale is None:
            continue
        source = operand(node, 0)
        zero_point = constant(operand(node, 2)) if len(node.inputs) > 2 else np.zeros((), np.uint8)
        if zero_point is None or zero_point.dtype != np.int8 or zero_point.any():
            raise ValueError(
                f"weight {source.name} has a zero point other than int8 0; "
                "INT8 weights here are symmetric: export it again"
            )
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError(
                f"weight {source.name} has a scale that is not a positive number; "
                "calibrate it again ('python -m calib')"
            )
        integers = quantize(w, scale, int_attribute(node, "axis", 1))
        replace(node.outputs[0], add_constant(model.graph, f"{source.name}_int8", integers))
        folded += 1
    return folded


def fold_transposes(model: ir.Model) -> int:
    """Turn DequantizeLinear(INT8 initializer) -> Transpose into one of the transposed initializer; return how many."""
    folded = 0
    for node in model.graph:
        transpose = only_user(node.outputs[0]) if is_op(node, "DequantizeLinear") else None
        if not is_op(transpose, "Transpose"):
            continue
        integers, scale_shape = constant(operand(node, 0)), constant_shape(operand(node, 1))
        if integers is None or scale_shape is None or integers.dtype != np.int8:
            continue
        axes = permutation(transpose, integers.ndim)
        attributes = {}
        if len(scale_shape) == 1 and scale_shape[0] != 1:
            attributes["axis"] = axes.index(int_attribute(node, "axis", 1) % integers.ndim)
        moved = add_constant(model.graph, f"{operand(node, 0).name}_transposed", integers.transpose(axes))
        new = ir.node("DequantizeLinear", [moved, *node.inputs[1:]], attributes, name=node.name)
        model.graph.insert_before(transpose, new)
        replace(transpose.outputs[0], new.outputs[0])
        if len(operand(node, 0).uses()) == 1:  # by the node that nothing reads now: a large model has no room for both
            operand(node, 0).const_value = None
        folded += 1
    return folded
