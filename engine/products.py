"""Which products of a model there are, with the types of what they multiply, and which of them a consumer really runs
in INT8.

The linter, every backend's build and the inspector share this one view. A product is "linear" where one factor is a
constant weight, "attention" where both are activations; it is found wherever it stands: in local functions (inlined
here), in the bodies of If, Loop and Scan, inside operators that hold two products, and in the operators that compute
with integers by themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from engine.graph import label, users
from engine.manifest import Products
from engine.operands import Operand, float_type, integers_of, operand_of, weight_behind

MICROSOFT = "com.microsoft"
STANDARD_DOMAINS = ("", "ai.onnx")
# Operators that multiply floats (also dequantized ones) → where their two factors stand.
FLOAT_PRODUCTS = {
    "MatMul": (0, 1), "Gemm": (0, 1), "Conv": (0, 1), "ConvTranspose": (0, 1), "Einsum": (0, 1), "LSTM": (0, 1),
    "GRU": (0, 1), "RNN": (0, 1), "FusedMatMul": (0, 1), "FusedGemm": (0, 1), "FusedConv": (0, 1),
}  # fmt: skip
# Operators that multiply integers.
INTEGER_PRODUCTS = {
    "MatMulInteger": (0, 1), "ConvInteger": (0, 1), "QLinearMatMul": (0, 3), "QLinearConv": (0, 3), "QGemm": (0, 3),
    "MatMulIntegerToFloat": (0, 1), "DynamicQuantizeMatMul": (0, 1), "MatMulNBits": (0, 1),
}  # fmt: skip
# ... and where their zero points stand, which tell the type where nothing else does.
ZERO_POINTS = {
    "MatMulInteger": (2, 3), "ConvInteger": (2, 3), "QLinearMatMul": (2, 5), "QLinearConv": (2, 5), "QGemm": (2, 5),
    "MatMulIntegerToFloat": (4, 5), "DynamicQuantizeMatMul": (3, 3),
}  # fmt: skip
# ONNX Runtime's operators that hold products nobody can see from outside.
HIDING_OPS = frozenset({
    "Attention", "QAttention", "MultiHeadAttention", "GroupQueryAttention", "PagedAttention", "SparseAttention",
    "PackedAttention", "PackedMultiHeadAttention", "DecoderAttention", "DecoderMaskedMultiHeadAttention",
    "DecoderMaskedSelfAttention", "LongformerAttention", "LinearAttention", "RelPosAttention", "QOrderedMatMul",
    "QOrderedAttention", "QOrderedLongformerAttention", "MoE", "QMoE", "MatMulBnb4", "MatMulFpQ4", "GemmFloat8",
    "GatedRelativePositionBias", "DynamicQuantizeLSTM", "AttnLSTM", "BeamSearch", "GreedySearch", "Sampling",
    "WhisperBeamSearch", "CausalConvWithState", "FusedMatMulActivation", "SparseToDenseMatMul", "TransposeMatMul",
})  # fmt: skip
SUFFIXES = ("_half", "_merged", "_transposed", "_int8", ".weight")


@dataclass(frozen=True)
class Product:
    """One product of an ONNX model.

    Attributes:
        name: what a reader knows it by: its weight's name, else its node's.
        node: the node that multiplies.
        sides: what its two factors are.
        aliases: the node and output names by which a consumer knows it.
        readers: names of the nodes that read it: all that is left of a product inside a fused operator.
    """

    name: str
    node: ir.Node = field(repr=False)
    sides: tuple[Operand, Operand] = field(repr=False)
    aliases: frozenset[str]
    readers: frozenset[str] = frozenset()

    @property
    def is_linear(self) -> bool:
        """Whether one factor is a constant weight."""
        return any(side.weight is not None for side in self.sides)

    @property
    def is_quantized(self) -> bool:
        """Whether both factors come from integers or FP8 codes, of whatever width."""
        return all(side.is_quantized for side in self.sides)

    @property
    def is_int8(self) -> bool:
        """Whether both factors come from INT8 or UINT8."""
        return all(side.is_int8 for side in self.sides)

    @property
    def is_float(self) -> bool:
        """Whether no side comes from integers made for it; one that others read as integers too does not count."""
        return not any(side.is_quantized for side in self.sides) or self._reads_shared_integers()

    @property
    def types(self) -> str:
        """The types of both factors, such as "int8 x int4"."""
        return " x ".join(side.dtype.name.lower() for side in self.sides)

    @property
    def has_integer_operator(self) -> bool:
        """Whether its operator computes with integers by itself, without Q/DQ."""
        return self.node.op_type in INTEGER_PRODUCTS

    def _reads_shared_integers(self) -> bool:
        x, weight = self.sides if self.sides[1].weight is not None else self.sides[::-1]
        if not self.is_linear or weight.is_quantized or x.dequantize is None:
            return False
        codes = x.dequantize.inputs[0]
        return codes is not None and sum(len(users(each.outputs[0])) for each in users(codes)) > 1


def find_products(model: onnx.ModelProto) -> list[Product]:
    """Return every product of `model` in graph order, those of its local functions and subgraphs too."""
    return products_of(inlined(model))


def inlined(model: onnx.ModelProto) -> ir.Model:
    """Return a model in onnx-ir with its local functions put where they are called."""
    graph_model = ir.from_proto(model)
    if graph_model.functions:
        InlinePass()(graph_model)
    return graph_model


def products_of(model: ir.Model) -> list[Product]:
    """Return every product of an inlined model in graph order."""
    return [product for node in model.graph.all_nodes() for product in _products_of_node(node)]


def hides_products(node: ir.Node) -> str | None:
    """Return why the products inside a node cannot be seen, None where there are none or they are seen."""
    if node.domain == MICROSOFT and node.op_type in HIDING_OPS:
        return f"{node.op_type} of {MICROSOFT} holds several products"
    if node.domain not in (*STANDARD_DOMAINS, MICROSOFT):
        if node.op_type in ("TRT_QuantizeLinear", "TRT_DequantizeLinear"):
            return f"{node.op_type} of {node.domain} is another writing of Q/DQ"
        return f"{node.op_type} is an operator of the domain {node.domain}, which only its own library knows"
    if node.op_type == "Einsum" and len(node.inputs) != 2:
        return f"Einsum multiplies {len(node.inputs)} factors in an order that each consumer chooses itself"
    return None


def _products_of_node(node: ir.Node) -> list[Product]:
    if hides_products(node) or node.domain not in (*STANDARD_DOMAINS, MICROSOFT):
        return []
    if node.op_type == "Attention":
        return _attention_products(node)
    places = FLOAT_PRODUCTS.get(node.op_type) or INTEGER_PRODUCTS.get(node.op_type)
    if places is None or len(node.inputs) <= max(places):
        return []
    a, b = (node.inputs[place] for place in places)
    if a is None or b is None:
        return []
    return [_product(node, _sides(node, a, b))]


def _sides(node: ir.Node, a: ir.Value, b: ir.Value) -> tuple[Operand, Operand]:
    if node.op_type not in INTEGER_PRODUCTS:
        return operand_of(a), operand_of(b)
    if node.op_type == "MatMulNBits":
        bits = node.attributes["bits"].as_int() if "bits" in node.attributes else 4
        types = {2: ir.DataType.UINT2, 4: ir.DataType.UINT4, 8: ir.DataType.UINT8}
        return operand_of(a), Operand(b, types.get(bits, ir.DataType.UNDEFINED), weight=weight_behind(b))
    left, right = (node.inputs[i] if i < len(node.inputs) else None for i in ZERO_POINTS[node.op_type])
    if node.op_type == "DynamicQuantizeMatMul":  # it rounds its activation to uint8 itself
        return Operand(a, ir.DataType.UINT8), integers_of(b, right)
    return integers_of(a, left), integers_of(b, right)


def _attention_products(node: ir.Node) -> list[Product]:
    """Return the two products of opset 23's Attention; its softmax stays float inside, nothing can be put around it."""
    query, key, value = [*node.inputs, None, None, None][:3]
    if query is None or key is None or value is None:
        return []
    output = node.outputs[0]
    probabilities = Operand(output, float_type(output))
    return [
        _product(node, (operand_of(query), operand_of(key)), "/scores"),
        _product(node, (probabilities, operand_of(value)), "/context"),
    ]


def _product(node: ir.Node, sides: tuple[Operand, Operand], part: str = "") -> Product:
    weight = sides[1].weight or sides[0].weight
    name = None if weight is None else weight.name
    is_named = name is not None and not name.startswith(("val_", "onnx::")) and any(c.isalpha() for c in name)
    title = readable(name.removesuffix("_quantized")) if name and is_named else label(node)
    readers = frozenset(each.name for each in users(node.outputs[0]) if each.name)
    return Product(title + part, node, sides, frozenset(filter(None, (node.name, node.outputs[0].name))), readers)


def readable(weight: str) -> str:
    """Return a weight's name without what the passes and the exporter put at its end."""
    for suffix in SUFFIXES:
        weight = weight.removesuffix(suffix)
    return weight


def sort_products(
    products: Iterable[Product],
    int8_names: Collection[str],
    fused_names: Iterable[str] = (),
    float_names: Collection[str] | None = None,
) -> Products:
    """Return which products ran in INT8, given every name that the consumer's INT8 operators bear.

    Args:
        products: all products of the file.
        int8_names: what the consumer's INT8 products are called.
        fused_names: the names inside INT8 operators that swallow a whole attention: there a product may be known by
            its reader alone.
        float_names: what the consumer's other products are called, None where it does not tell. One that neither these
            nor `int8_names` name has taken its reader's name: a bias that was added to it.
    A product with a side of another type than INT8, and one that the consumer no longer names, counts as float.
    """
    fused, known = set(fused_names), {*int8_names, *(float_names or ())}
    products = list(products)
    own_names = frozenset().union(*(product.aliases for product in products))
    lists: dict[tuple[bool, bool], list[str]] = {
        (linear, int8): [] for linear in (True, False) for int8 in (True, False)
    }
    for product in products:
        is_named = not product.aliases.isdisjoint({*int8_names, *fused}) or not product.readers.isdisjoint(fused)
        if float_names is not None and product.aliases.isdisjoint(known) and not product.readers & own_names:
            is_named = is_named or not product.readers.isdisjoint(int8_names)
        lists[product.is_linear, product.is_int8 and is_named].append(product.name)
    return Products(
        tuple(lists[True, True]), tuple(lists[True, False]), tuple(lists[False, True]), tuple(lists[False, False])
    )
