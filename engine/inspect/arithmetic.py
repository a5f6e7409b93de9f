"""How much each product of an ONNX file computes at given shapes: for engines that do not tell it themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from engine.graph import label, shape_of
from engine.lint.graph import LintGraph
from engine.shapes import ShapeRange, check_shapes, set_static_sizes, spread


@dataclass(frozen=True)
class ProductWork:
    """One product: its readable name, its node, its multiply-accumulates (None where shapes are unknown), its Q/DQ."""

    name: str
    node: str
    output: str
    macs: int | None
    is_linear: bool
    has_int8_sides: bool


def product_work(model: onnx.ModelProto, shapes: Mapping[str, ShapeRange]) -> list[ProductWork]:
    """Return the arithmetic of every product at the usual size of each range.

    Raises: UsageError: if a range does not fit the model.
    """
    check_shapes(model, shapes)
    static = onnx.ModelProto()
    static.CopyFrom(model)
    usual = {name: ShapeRange(each.opt, each.opt, each.opt) for name, each in spread(model, shapes).items()}
    set_static_sizes(static, usual)
    del static.graph.value_info[:]  # they may hold the free sizes' names
    for output in static.graph.output:
        output.type.tensor_type.ClearField("shape")
    static = onnx.shape_inference.infer_shapes(static, data_prop=True)
    works = []
    for site in LintGraph(static).products:
        output, x = shape_of(site.node.outputs[0]), shape_of(site.sides[0].value)
        macs = None
        if output and x and None not in output and x[-1] is not None:
            elements = math.prod(size for size in output if size is not None)
            weight = shape_of(site.sides[1].value) if site.node.op_type == "Conv" else None
            length = x[-1] if weight is None else math.prod(size or 1 for size in weight[1:])
            macs = elements * length
        name = site.node.outputs[0].name or ""
        works.append(ProductWork(site.name, label(site.node), name, macs, site.is_linear, site.is_int8))
    return works
