"""What the linter's rules look at beside the products: the attentions and residual sums that they belong to, and the
whole graph with local functions put where they are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import onnx
import onnx_ir as ir

from engine.graph import MOVES, constant_shape, constant_tensor, shape_of, users
from engine.operands import operand_of
from engine.products import FLOAT_PRODUCTS, MICROSOFT, STANDARD_DOMAINS, Product, inlined, products_of

# What may stand between the first product of attention and its softmax, and between the softmax and the second product.
BEFORE_SOFTMAX = ("Add", "Sub", "Mul", "Div", "Where", "Cast", "Reshape", "Identity", "Clip", "Max", "Min", "Tanh")
AFTER_SOFTMAX = ("Cast", "Dropout", "Mul", "Where", "Reshape", "Identity", "Expand")


@dataclass(frozen=True)
class AttentionSite:
    """softmax(Q K^T) V: its two products, its softmax, and what decides whether it is fused."""

    scores: Product
    softmax: ir.Node
    context: Product
    head_size: int | None
    length: int | None  # of keys, where the file fixes it
    has_quantized_output: bool
    scaling: ir.Node | None  # a multiplication by a constant between Q K^T and the softmax

    @property
    def is_float(self) -> bool:
        return self.scores.is_float and self.context.is_float


@dataclass(frozen=True)
class ResidualSite:
    """A sum of a linear layer's output and another activation."""

    node: ir.Node
    product: Product
    is_product_quantized: bool  # Q/DQ between the product and the sum
    is_other_quantized: bool


class LintGraph:
    """An ONNX model as the rules see it."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.functions = tuple(function.name for function in proto.functions)
        self.model = inlined(_with_shapes(proto))
        self.opset = next((each.version for each in proto.opset_import if each.domain in STANDARD_DOMAINS), 0)
        self.metadata = {entry.key: entry.value for entry in proto.metadata_props}

    @cached_property
    def all_nodes(self) -> list[ir.Node]:
        """Every node in graph order, those in the bodies of If, Loop and Scan too."""
        return list(self.model.graph.all_nodes())

    def nodes(self, *op_types: str) -> list[ir.Node]:
        """Return the nodes of these operators, in graph order; ONNX Runtime's tool writes 16-bit Q/DQ in its own
        domain."""
        return [n for n in self.all_nodes if n.op_type in op_types and n.domain in (*STANDARD_DOMAINS, MICROSOFT)]

    @cached_property
    def products(self) -> list[Product]:
        """Every product in graph order."""
        return products_of(self.model)

    @cached_property
    def attentions(self) -> list[AttentionSite]:
        """Every softmax with a product of two activations before and behind it."""
        by_node = {site.node: site for site in self.products if not site.is_linear and site.node.op_type == "MatMul"}
        found = []
        for softmax in self.nodes("Softmax"):
            scores, scaling = _product_before(softmax, by_node)
            context = _product_behind(softmax, by_node)
            if scores is not None and context is not None:
                query, out = shape_of(scores.sides[0].value), shape_of(scores.node.outputs[0])
                found.append(
                    AttentionSite(
                        scores,
                        softmax,
                        context,
                        query[-1] if query else None,
                        out[-1] if out else None,
                        is_quantized_next(context.node.outputs[0]),
                        scaling,
                    )
                )
        return found

    @cached_property
    def residuals(self) -> list[ResidualSite]:
        """Every Add of two activations of which one is a linear layer's output."""
        by_output = {site.node.outputs[0]: site for site in self.products if site.is_linear}
        found = []
        for node in self.nodes("Add"):
            sides = [value for value in node.inputs if value is not None and constant_tensor(value) is None]
            traced = [_linear_behind(value, by_output) for value in sides]
            if len(sides) != 2 or not any(product for product, _ in traced):
                continue
            index = 1 if traced[1][0] else 0  # torch writes x + f(x) either way; the later side where both are linears
            product, is_quantized = traced[index]
            other = operand_of(sides[1 - index])
            assert product is not None
            found.append(ResidualSite(node, product, is_quantized, other.is_quantized))
        return found


def is_quantized_next(value: ir.Value) -> bool:
    """Return whether some reader of `value`, behind moves and casts, is a QuantizeLinear."""
    return any(
        node.op_type == "QuantizeLinear"
        or (node.op_type in (*MOVES, "Cast") and node.inputs[0] is value and is_quantized_next(node.outputs[0]))
        for node in users(value)
    )


def _product_before(softmax: ir.Node, by_node: Mapping[ir.Node, Product]) -> tuple[Product | None, ir.Node | None]:
    """Return the product whose scores reach the softmax, and the node that scales them by a constant on the way."""
    waiting: list[tuple[ir.Value | None, ir.Node | None]] = [(softmax.inputs[0], None)]
    for _ in range(32):  # a mask's own branch is short; a longer search would leave the attention
        if not waiting:
            break
        value, scaling = waiting.pop(0)
        node = value.producer() if value is not None else None
        if node is None:
            continue
        if node in by_node:
            return by_node[node], scaling
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            waiting.append((node.inputs[0], scaling))
        elif node.op_type in BEFORE_SOFTMAX:
            is_scaling = node.op_type in ("Mul", "Div") and any(_is_number(each) for each in node.inputs)
            waiting += [(each, node if is_scaling else scaling) for each in node.inputs]
    return None, None


def _product_behind(softmax: ir.Node, by_node: Mapping[ir.Node, Product]) -> Product | None:
    waiting = [softmax.outputs[0]]
    for _ in range(32):
        if not waiting:
            break
        for node in users(waiting.pop(0)):
            if node in by_node:
                return by_node[node]
            if node.op_type in (*AFTER_SOFTMAX, "QuantizeLinear", "DequantizeLinear"):
                waiting.append(node.outputs[0])
    return None


def _linear_behind(value: ir.Value, by_output: Mapping[ir.Value, Product]) -> tuple[Product | None, bool]:
    """Return the linear layer whose output `value` is, behind bias, layer scale and Q/DQ, and whether Q/DQ stand
    between."""
    is_quantized = False
    while value not in by_output:
        node = value.producer()
        if node is None:
            return None, False
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            is_quantized = True
        elif node.op_type in ("Add", "Mul"):
            computed = [x for x in node.inputs if x is not None and constant_tensor(x) is None]
            if len(computed) != 1:
                return None, False
            value = computed[0]
            continue
        elif node.op_type not in ("Dropout", "Identity", "Cast", "Reshape"):
            return None, False
        if node.inputs[0] is None:
            return None, False
        value = node.inputs[0]
    return by_output[value], is_quantized


def _is_number(value: ir.Value | None) -> bool:
    shape = None if value is None else constant_shape(value)
    return shape is not None and all(size == 1 for size in shape)


def _with_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the shapes of its values, inferred where the file tells none."""
    graph = proto.graph
    told = {each.name for part in (graph.value_info, graph.input, graph.output, graph.initializer) for each in part}
    products = [node for node in graph.node if node.op_type in FLOAT_PRODUCTS]
    if not proto.functions and all(name in told for node in products for name in (*node.input, *node.output)):
        return proto
    try:
        return onnx.shape_inference.infer_shapes(proto)
    except Exception:  # its errors share no base; the rules that need shapes then say nothing
        return proto
