"""Passes for TensorRT 8, whose parser ends at opset 17 and knows fewer operators: what it lacks, in primitive ones.

Source of what it takes: the support matrix of onnx-tensorrt 8.4 and 8.5 (docs/operators.md there).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from engine.graph import (
    add_constant,
    constant,
    int_attribute,
    is_op,
    numbers,
    operand,
    replace,
    set_type,
    users,
)
from engine.passes.half import MASKED_SCORE

OPSET = 17
# A lowest float of a mask; every score is far above it.
LOWEST = -1e30
NEWER_ATTRIBUTES = ("num_outputs", "saturate")
# What TensorRT 8.4's parser takes and our files use; an operator outside is refused when a file is exported.
SUPPORTED_OPS = frozenset(
    {"Abs", "Add", "And", "ArgMax", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "Constant",
     "ConstantOfShape", "Conv", "Cos", "CumSum", "DequantizeLinear", "Div", "Equal", "Erf", "Exp", "Expand", "Flatten",
     "Gather", "GatherElements", "GatherND", "Gemm", "GlobalAveragePool", "Greater", "GreaterOrEqual", "Identity",
     "Less", "LessOrEqual", "Log", "MatMul", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pad", "Pow", "QuantizeLinear",
     "Range", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Resize", "Shape", "Sigmoid", "Sign", "Sin",
     "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where"}
)  # fmt: skip
INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
# Of Resize: what the parser takes, and what opset 18 added, at the defaults that 17 computes.
RESIZE_MODES = {
    "mode": ("nearest", "linear"),
    "coordinate_transformation_mode": ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"),
}
RESIZE_ADDED = {"antialias": 0, "keep_aspect_ratio_policy": "stretch"}


def own_mask(model: ir.Model) -> int:
    """Turn Where(mask, 0, lowest float) into (1 - mask) x -10000, which fp16 holds; return how many there were."""
    changed = 0
    for node in list(model.graph):
        if not is_op(node, "Where"):
            continue
        kept, masked = constant(operand(node, 1)), constant(operand(node, 2))
        if kept is None or masked is None or kept.any() or masked.size != 1 or float(masked.reshape(-1)[0]) > LOWEST:
            continue
        one = add_constant(model.graph, "mask_one", np.array(1, np.float32))
        factor = add_constant(model.graph, "mask_score", np.array(MASKED_SCORE, np.float32))
        is_seen = _as_float_mask(operand(node, 0))
        new = []
        if is_seen is None:
            cast = ir.node("Cast", [operand(node, 0)], {"to": int(ir.DataType.FLOAT)}, name=f"{node.name}_float")
            set_type(cast.outputs[0], ir.DataType.FLOAT, operand(node, 0).shape)
            new, is_seen = [cast], cast.outputs[0]
        hidden = ir.node("Sub", [one, is_seen], name=f"{node.name}_hidden")
        scores = ir.node("Mul", [hidden.outputs[0], factor], name=node.name)
        for each in (hidden, scores):
            set_type(each.outputs[0], ir.DataType.FLOAT, node.outputs[0].shape)
        model.graph.insert_before(node, [*new, hidden, scores])
        replace(node.outputs[0], scores.outputs[0])
        changed += 1
    return changed


def _as_float_mask(value: ir.Value) -> ir.Value | None:
    """Let a 0/1 mask that is only moved between its Cast to bool and its Where be float instead; None if it is not."""
    chain = []
    node = value.producer()
    while node is not None and is_op(node, "Unsqueeze", "Slice", "Reshape", "Squeeze"):
        chain.append(node)
        node = operand(node, 0).producer()
    is_cast = is_op(node, "Cast") and node.attributes["to"].as_int() == ir.DataType.BOOL
    if not is_cast or node is None or any(len(users(each.outputs[0])) != 1 for each in (*chain[1:], node)):
        return None
    if len(users(value)) != 1:
        return None
    node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
    for each in (node, *chain):
        each.outputs[0].dtype = ir.DataType.FLOAT
    return value


def expand_operators(model: ir.Model) -> int:
    """Turn LayerNormalization, Gelu, Reciprocal, and what is taken in float alone but computed in integers, into what
    TensorRT 8 takes; return how many nodes were replaced.
    """
    expanded = 0
    for node in list(model.graph):
        rule = EXPANSIONS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        new = None if rule is None else rule(_Builder(model, node))
        if new is not None:
            replace(node.outputs[0], new)
            expanded += 1
    return expanded


class _Builder:
    """Puts new fp32 nodes before the one that they stand for."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self.model, self.node = model, node
        self.count = 0

    def __call__(self, op_type: str, *inputs: ir.Value | float, **attributes: int | list[int]) -> ir.Value:
        values = [self.number(x) if isinstance(x, float) else x for x in inputs]
        new = ir.node(op_type, values, attributes, name=f"{self.node.name}_{op_type}_{self.count}")
        self.count += 1
        new.outputs[0].dtype = ir.DataType.FLOAT
        self.model.graph.insert_before(self.node, new)
        return new.outputs[0]

    def number(self, x: float) -> ir.Value:
        return add_constant(self.model.graph, f"{self.node.name}_constant", np.array(x, np.float32))


def take_sizes(model: ir.Model) -> int:
    """Turn Shape with start and end into Shape and Gather; return how many there were.

    TensorRT 8.5's parser reads past the two attributes (opset 15) and gives the whole shape.
    """
    changed = 0
    for node in list(model.graph):
        if not is_op(node, "Shape") or not {"start", "end"} & set(node.attributes):
            continue
        rank = len(operand(node, 0).shape or ())
        start, end, _ = slice(int_attribute(node, "start", 0), int_attribute(node, "end", rank)).indices(rank)
        whole = ir.node("Shape", [operand(node, 0)], name=f"{node.name}_whole")
        set_type(whole.outputs[0], ir.DataType.INT64, ir.Shape([rank]))
        places = add_constant(model.graph, f"{node.name}_places", np.arange(start, end, dtype=np.int64))
        sizes = ir.node("Gather", [whole.outputs[0], places], {"axis": 0}, name=f"{node.name}_sizes")
        set_type(sizes.outputs[0], ir.DataType.INT64, ir.Shape([end - start]))
        model.graph.insert_before(node, [whole, sizes])
        replace(node.outputs[0], sizes.outputs[0])
        changed += 1
    return changed


def _expand_layer_norm(build: _Builder) -> ir.Value:
    """(x - mean) / sqrt(variance + epsilon) x gamma + beta over the last axis; x is kept for a shared Sub."""
    node = build.node
    axis = int_attribute(node, "axis", -1)
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    if axis != -1 and (operand(node, 0).shape is None or axis != len(operand(node, 0).shape or ()) - 1):
        raise ValueError(f"LayerNormalization {node.name} runs over axis {axis}; only the last one is supported")
    x = operand(node, 0)
    centred = build("Sub", x, build("ReduceMean", x, axes=[-1], keepdims=1))
    variance = build("ReduceMean", build("Mul", centred, centred), axes=[-1], keepdims=1)
    normal = build("Div", centred, build("Sqrt", build("Add", variance, float(epsilon))))
    y = build("Mul", normal, operand(node, 1))
    return build("Add", y, operand(node, 2)) if len(node.inputs) > 2 and node.inputs[2] is not None else y


def _expand_gelu(build: _Builder) -> ir.Value:
    """x/2 x (1 + erf(x / sqrt 2)), or with tanh where the file says so."""
    x = operand(build.node, 0)
    attribute = build.node.attributes.get("approximate")
    if attribute is not None and attribute.as_string() == "tanh":
        cube = build("Mul", build("Mul", x, x), x)
        inner = build("Mul", build("Add", x, build("Mul", cube, 0.044715)), math.sqrt(2 / math.pi))
        curve = build("Tanh", inner)
    else:
        curve = build("Erf", build("Div", x, math.sqrt(2)))
    return build("Mul", build("Mul", x, 0.5), build("Add", curve, 1.0))


def _expand_reciprocal(build: _Builder) -> ir.Value:
    return build("Div", 1.0, operand(build.node, 0))


def _in_float(build: _Builder) -> ir.Value | None:
    """CumSum or ArgMax of integers in float, the only type it is taken in: positions and ids are exact below 2^24."""
    node, source = build.node, operand(build.node, 0)
    if source.dtype not in INTEGERS:
        return None
    x = build("Cast", source, to=int(ir.DataType.FLOAT))
    if node.op_type == "ArgMax":
        node.replace_input_with(0, x)
        return None
    total = build(node.op_type, x, *[operand(node, i) for i in range(1, len(node.inputs))], **_ints(node))
    return build("Cast", total, to=int(source.dtype))


def _clip_integers(build: _Builder) -> ir.Value | None:
    """Clip of integers by Max and Min, which take them."""
    node, source = build.node, operand(build.node, 0)
    if source.dtype not in INTEGERS:
        return None
    for op_type, index in (("Max", 1), ("Min", 2)):
        limit = node.inputs[index] if len(node.inputs) > index else None
        if limit is not None:
            source = build(op_type, source, limit)
            set_type(source, node.outputs[0].dtype)
    return source


def _ints(node: ir.Node) -> dict[str, int]:
    return {name: attribute.as_int() for name, attribute in node.attributes.items()}


EXPANSIONS: dict[str, Callable[[_Builder], ir.Value | None]] = {
    "LayerNormalization": _expand_layer_norm,
    "Gelu": _expand_gelu,
    "Reciprocal": _expand_reciprocal,
    "CumSum": _in_float,
    "ArgMax": _in_float,
    "Clip": _clip_integers,
}


def to_opset_17(model: ir.Model) -> int:
    """Write what opset 18 changed as 17 has it (axes of a reduction as an attribute) and say 17; return the changes.

    The exporter's own way to 17 ends at 18 where a model has a reduction.

    Raises: ValueError: an operator that TensorRT 8 does not take is left.
    """
    changed = 0
    for node in model.graph:
        if is_op(node, "ReduceMean", "ReduceMax", "ReduceSum") and len(node.inputs) > 1 and node.op_type != "ReduceSum":
            axes = numbers(operand(node, 1)).reshape(-1).tolist()
            node.resize_inputs(1)
            node.attributes["axes"] = ir.AttrInt64s("axes", axes)
            node.attributes.pop("noop_with_empty_axes", None)
            changed += 1
        if is_op(node, "Resize"):
            _check_resize(node)
        for newer in NEWER_ATTRIBUTES:
            node.attributes.pop(newer, None)  # each at its default, which is what 17 does
    lacking = sorted({node.op_type for node in model.graph} - SUPPORTED_OPS)
    if lacking:
        raise ValueError(
            f"TensorRT 8 takes no {', '.join(lacking)}; export with --target tensorrt for TensorRT 10 and later"
        )
    model.graph.opset_imports[""] = OPSET
    return changed


def _check_resize(node: ir.Node) -> None:
    """Drop what opset 18 added to Resize. Raises: ValueError: TensorRT 8 does not resize in that way."""
    for name, default in RESIZE_ADDED.items():
        attribute = node.attributes.pop(name, None)
        if attribute is not None and attribute.value != default:
            raise ValueError(f"Resize {node.name}: TensorRT 8 has no {name}; export with --target tensorrt")
    for name, allowed in RESIZE_MODES.items():
        if name in node.attributes and node.attributes[name].as_string() not in allowed:
            raise ValueError(
                f"Resize {node.name}: TensorRT 8 has no {name} {node.attributes[name].as_string()}; it has "
                f"{', '.join(allowed)}. Export with --target tensorrt for TensorRT 10 and later"
            )


def float_weights(model: ir.Model) -> int:
    """Turn INT8 constant → DequantizeLinear into its float numbers → Q → DQ; return how many there were.

    TensorRT 8's parser refuses INT8 constants. The floats are integers x scale, so Q gives the same integers back
    however it rounds.
    """
    changed = 0
    for node in list(model.graph):
        source = node.inputs[0] if is_op(node, "DequantizeLinear") else None
        integers = constant(source) if source is not None else None
        if source is None or integers is None:
            continue
        scale, axis = numbers(operand(node, 1)), int_attribute(node, "axis", 1)
        shape = [1] * integers.ndim
        if scale.size != 1:
            shape[axis] = -1
        w = integers.astype(np.float32) * scale.reshape(shape)
        weight = add_constant(model.graph, (source.name or "weight").replace("_int8", ""), w)
        attributes = {"axis": axis} if scale.size != 1 else {}
        quantize = ir.node("QuantizeLinear", [weight, *node.inputs[1:]], attributes, name=f"{node.name}_quantize")
        set_type(quantize.outputs[0], ir.DataType.INT8, source.shape)
        model.graph.insert_before(node, quantize)
        node.replace_input_with(0, quantize.outputs[0])
        changed += 1
    return changed
