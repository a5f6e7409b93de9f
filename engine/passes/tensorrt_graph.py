"""Passes for every TensorRT: Q/DQ where INT8 fused attention wants them, and masks that hide nothing removed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from engine.graph import constant, constant_tensor, is_op, operand, replace, set_type, users


def drop_true_masks(model: ir.Model) -> int:
    """Remove a mask that hides nothing (a ViT's: every patch is seen) and its Add; return how many Adds went."""
    removed = 0
    for node in list(model.graph):
        if not is_op(node, "Where"):
            continue
        seen, kept = _constant_behind(operand(node, 0)), constant(operand(node, 1))
        if seen is None or not seen.all() or kept is None or kept.any():
            continue
        for add in users(node.outputs[0]):
            if is_op(add, "Add") and not add.outputs[0].is_graph_output():
                other = operand(add, 1) if operand(add, 0) is node.outputs[0] else operand(add, 0)
                if is_op(other.producer(), "MatMul"):  # the scores have their full shape, the mask only stretches
                    replace(add.outputs[0], other)
                    removed += 1
    return removed


def _constant_behind(value: ir.Value) -> np.ndarray | None:
    node = value.producer()
    if is_op(node, "Expand", "Unsqueeze", "Identity"):
        return _constant_behind(operand(node, 0))
    return constant(value)


def quantize_attention_outputs(model: ir.Model) -> int:
    """Put the Q of an attention's output right behind its second product; the integers are moved to their linear.

    product → Transpose → Reshape → Q becomes product → Q → Transpose → Reshape: the same numbers to the bit, and the
    place that INT8 fused attention asks for. The DQ stays right before its linear. A narrow format's Clip moves with
    its Q. Returns how many were moved.
    """
    moved = 0
    for node in list(model.graph):
        if not is_op(node, "QuantizeLinear") or constant_tensor(operand(node, 0)) is not None:
            continue
        clip = _clip_before(node)
        movers, value = [], operand(node if clip is None else clip, 0)
        while len(users(value)) == 1 and is_op(mover := value.producer(), "Transpose", "Reshape"):
            if constant_tensor(operand(mover, 0)) is not None:
                break
            movers.append(mover)
            value = operand(mover, 0)
        product = value.producer()
        if not movers or not is_op(product, "MatMul") or len(users(value)) != 1:
            continue
        if any(constant_tensor(operand(product, i)) is not None or _is_weight(operand(product, i)) for i in (0, 1)):
            continue
        _move_before(model, node, clip, movers, value)
        moved += 1
    return moved


def _is_weight(value: ir.Value) -> bool:
    node = value.producer()
    while is_op(node, "DequantizeLinear", "QuantizeLinear", "Transpose"):
        if constant_tensor(operand(node, 0)) is not None:
            return True
        node = operand(node, 0).producer()
    return False


def _clip_before(quantize: ir.Node) -> ir.Node | None:
    """Return the Clip between constants that `quantize` alone reads, or None."""
    clip = operand(quantize, 0).producer()
    if not is_op(clip, "Clip") or len(users(clip.outputs[0])) != 1:
        return None
    ends = clip.inputs[1:]
    return clip if all(end is not None and constant_tensor(end) is not None for end in ends) else None


def _move_before(
    model: ir.Model, quantize: ir.Node, clip: ir.Node | None, movers: list[ir.Node], value: ir.Value
) -> None:
    """Put `quantize`, and the Clip before it, behind `value` and repeat the movers (last first) over its integers."""
    new = []
    if clip is not None:
        new.append(ir.node("Clip", [value, *clip.inputs[1:]], name=clip.name))
        set_type(new[0].outputs[0], value.dtype, value.shape)
    source = new[0].outputs[0] if new else value
    first = ir.node("QuantizeLinear", [source, *quantize.inputs[1:]], name=quantize.name)
    set_type(first.outputs[0], ir.DataType.INT8, value.shape)
    new, last = [*new, first], first.outputs[0]
    for mover in reversed(movers):
        copy = ir.node(mover.op_type, [last, *mover.inputs[1:]], mover.attributes.copy(), name=mover.name)
        set_type(copy.outputs[0], ir.DataType.INT8, mover.outputs[0].shape)
        new.append(copy)
        last = copy.outputs[0]
    model.graph.insert_before(quantize, new)
    replace(quantize.outputs[0], last)
    model.graph.remove([quantize, *([clip] if clip is not None else []), *movers], safe=True)
