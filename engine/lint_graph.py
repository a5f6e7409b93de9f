"""What the linter's rules look at: the products of an ONNX graph with what stands behind each of their sides, and the
attentions and residual sums they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import onnx
import onnx_ir as ir

from engine.graph import constant_shape, constant_tensor, permutation, users
from engine.products import PRODUCT_OPS, readable

# Operators that move numbers and leave them as they are: consumers carry integers through them.
MOVES = ("Transpose", "Reshape", "Identity", "Expand", "Unsqueeze", "Squeeze", "Flatten", "Slice", "Split", "Gather")
# What may stand between the first product of attention and its softmax, and between the softmax and the second product.
BEFORE_SOFTMAX = ("Add", "Sub", "Mul", "Div", "Where", "Cast", "Reshape", "Identity", "Clip", "Max", "Min", "Tanh")
AFTER_SOFTMAX = ("Cast", "Dropout", "Mul", "Where", "Reshape", "Identity", "Expand")
STANDARD_DOMAINS = ("", "ai.onnx", "com.microsoft")  # ONNX Runtime's tool writes 16-bit Q/DQ in its own domain


@dataclass(frozen=True)
class Operand:
    """One side of a product: what it reads, and what stands behind it."""

    value: ir.Value
    dequantize: ir.Node | None  # the DequantizeLinear behind moves and casts, None for a float side
    casts: tuple[ir.Node, ...]  # Cast nodes between that and the product
    transposed: tuple[tuple[int, ...], ...]  # the permutations between, from the product back
    weight: ir.Value | None  # the constant at the end of the path, also behind Q/DQ

    @property
    def is_quantized(self) -> bool:
        """Whether the side comes from integers."""
        return self.dequantize is not None


@dataclass(frozen=True)
class ProductSite:
    """One MatMul, Gemm or Conv with its two sides; a linear has a constant weight on one of them."""

    node: ir.Node
    name: str
    sides: tuple[Operand, Operand]

    @property
    def is_linear(self) -> bool:
        return any(side.weight is not None for side in self.sides)

    @property
    def is_int8(self) -> bool:
        return all(side.is_quantized for side in self.sides)

    @property
    def is_float(self) -> bool:
        """Whether no side comes from integers made for it; one that others read as integers too does not count."""
        return not any(side.is_quantized for side in self.sides) or self._reads_shared_integers()

    def _reads_shared_integers(self) -> bool:
        x, weight = self.sides if self.sides[1].weight is not None else self.sides[::-1]
        if not self.is_linear or weight.is_quantized or x.dequantize is None:
            return False
        codes = x.dequantize.inputs[0]
        return codes is not None and sum(len(users(each.outputs[0])) for each in users(codes)) > 1


@dataclass(frozen=True)
class AttentionSite:
    """softmax(Q K^T) V: its two products, its softmax, and what decides whether it is fused."""

    scores: ProductSite
    softmax: ir.Node
    context: ProductSite
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
    product: ProductSite
    is_product_quantized: bool  # Q/DQ between the product and the sum
    is_other_quantized: bool


class LintGraph:
    """An ONNX model as the rules see it."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.model = ir.from_proto(_with_shapes(proto))
        self.opset = next((each.version for each in proto.opset_import if each.domain in STANDARD_DOMAINS[:2]), 0)
        self.metadata = {entry.key: entry.value for entry in proto.metadata_props}

    def nodes(self, *op_types: str) -> list[ir.Node]:
        """Return the nodes of these operators, in graph order."""
        return [n for n in self.model.graph if n.op_type in op_types and n.domain in STANDARD_DOMAINS]

    @cached_property
    def products(self) -> list[ProductSite]:
        """Every MatMul, Gemm and Conv in graph order."""
        return [site for node in self.nodes(*PRODUCT_OPS) if (site := _product(node)) is not None]

    @cached_property
    def attentions(self) -> list[AttentionSite]:
        """Every softmax with a product of two activations before and behind it."""
        by_node = {site.node: site for site in self.products if not site.is_linear}
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


def label(node: ir.Node) -> str:
    """Return a node's name, or its first output's where it has none."""
    return node.name or node.outputs[0].name or node.op_type


def shape_of(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """Return the sizes of `value` that the file tells, None for those it does not, or None without a known rank."""
    if value is None or value.shape is None:
        return None if value is None else constant_shape(value)
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def operand_of(value: ir.Value) -> Operand:
    """Return what stands behind one side of a product."""
    casts: list[ir.Node] = []
    transposed: list[tuple[int, ...]] = []
    source = value
    while (node := source.producer()) is not None and constant_tensor(source) is None:
        if node.op_type == "DequantizeLinear":
            return Operand(value, node, tuple(casts), tuple(transposed), weight_behind(node.inputs[0]))
        if node.op_type == "Cast":
            casts.append(node)
        elif node.op_type not in MOVES:
            break
        if node.inputs[0] is None:
            break
        if node.op_type == "Transpose":
            shape = shape_of(node.inputs[0])
            transposed.append(tuple(permutation(node, len(shape) if shape else 2)))
        source = node.inputs[0]
    weight = source if constant_tensor(source) is not None else None
    return Operand(value, None, tuple(casts), tuple(transposed), weight)


def weight_behind(value: ir.Value | None) -> ir.Value | None:
    """Return the constant that `value` is, or is quantized from."""
    while value is not None and constant_tensor(value) is None:
        node = value.producer()
        if node is None or node.op_type not in ("QuantizeLinear", "Cast", *MOVES):
            return None
        value = node.inputs[0]
    return value


def is_quantized_next(value: ir.Value) -> bool:
    """Return whether some reader of `value`, behind moves and casts, is a QuantizeLinear."""
    return any(
        node.op_type == "QuantizeLinear"
        or (node.op_type in (*MOVES, "Cast") and node.inputs[0] is value and is_quantized_next(node.outputs[0]))
        for node in users(value)
    )


def _product(node: ir.Node) -> ProductSite | None:
    a, b = node.inputs[0], node.inputs[1]
    if a is None or b is None:
        return None
    sides = (operand_of(a), operand_of(b))
    weight = sides[1].weight or sides[0].weight
    name = weight.name if weight is not None else None
    is_named = name is not None and not name.startswith(("val_", "onnx::")) and any(c.isalpha() for c in name)
    return ProductSite(node, readable(name.removesuffix("_quantized")) if name and is_named else label(node), sides)


def _product_before(softmax: ir.Node, by_node: dict) -> tuple[ProductSite | None, ir.Node | None]:
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


def _product_behind(softmax: ir.Node, by_node: dict) -> ProductSite | None:
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


def _linear_behind(value: ir.Value, by_output: dict) -> tuple[ProductSite | None, bool]:
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
    if all(name in told for node in graph.node if node.op_type in PRODUCT_OPS for name in (*node.input, *node.output)):
        return proto
    try:
        return onnx.shape_inference.infer_shapes(proto)
    except Exception:  # its errors share no base; the rules that need shapes then say nothing
        return proto
