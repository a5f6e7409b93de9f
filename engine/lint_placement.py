"""Rules about where Q/DQ stand: products with one integer side, casts between, chains, attention, residual sums."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from engine.graph import constant, constant_tensor, users
from engine.lint_findings import CONSUMERS, TENSORRT, Hit, Rule
from engine.lint_graph import LintGraph, Operand, operand_of, weight_behind

# Operators that compute with integers by themselves: other formats than Q/DQ.
INTEGER_OPS = (
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "ConvInteger",
    "QLinearMatMul",
    "QLinearConv",
    "QLinearAdd",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QGemm",
    "QAttention",
    "QEmbedLayerNormalization",
    "QLinearSoftmax",
    "MatMulNBits",
)


def nothing_quantized(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield the first product of a file without any quantization."""
    if graph.products and not graph.nodes("QuantizeLinear", "DequantizeLinear", *INTEGER_OPS):
        yield Hit(graph.products[0], "the file holds no Q/DQ at all: none of its products runs in INT8")


def integer_operators(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every operator that TensorRT has no importer for since it holds integers without Q/DQ."""
    for node in graph.nodes(*INTEGER_OPS):
        yield Hit(node, f"{node.op_type} computes with integers without Q/DQ; TensorRT cannot import it")


def float_product(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every product that the file leaves float."""
    if not graph.nodes("QuantizeLinear", "DequantizeLinear"):
        return
    for site in graph.products:
        if site.is_float:
            kind = "linear layer" if site.is_linear else "attention product"
            yield Hit(site, f"this {kind} has no Q/DQ: it stays float")


def one_sided(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every product of which one side comes from integers and the other does not."""
    contexts = {attention.context.node for attention in graph.attentions}
    for site in graph.products:
        if site.is_int8 or site.is_float:
            continue
        if site.node in contexts and not site.sides[0].is_quantized:
            continue  # the softmax: `attention-softmax` says it with its own mend
        if site.is_linear:
            is_weight = any(side.is_quantized and side.weight is not None for side in site.sides)
            what = "its weight is INT8 and its input float" if is_weight else "its input is INT8 and its weight float"
        else:
            what = "one of its two activations is INT8 and the other float"
        yield Hit(site, f"{what}: the INT8 side is dequantized first and the product runs in float")


def cast_between(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every product with a Cast between a DequantizeLinear and itself."""
    for site in graph.products:
        if any(side.is_quantized and side.casts for side in site.sides):
            yield Hit(site, "a Cast stands between its DequantizeLinear and the product, so the two are not fused")


def attention_softmax(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every attention with some INT8 side whose softmax output is float."""
    for site in graph.attentions:
        is_meant = site.scores.is_int8 or any(side.is_quantized for side in site.context.sides)
        if is_meant and not site.context.sides[0].is_quantized:
            yield Hit(
                site.context,
                "the softmax's output has no Q/DQ: the product with V runs in float and the attention is "
                "not fused in INT8",
            )


def attention_output(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every INT8 attention without Q/DQ behind its second product."""
    for site in graph.attentions:
        if site.scores.is_int8 and site.context.is_int8 and not site.has_quantized_output:
            yield Hit(
                site.context,
                "no QuantizeLinear follows the product with V, which INT8 fused attention needs; the "
                "products run apart",
            )


def attention_scaling(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every INT8 attention whose scores are scaled after the product."""
    for site in graph.attentions:
        if site.scores.is_int8 and site.scaling is not None:
            yield Hit(
                site.scores,
                "the scores are scaled behind Q K^T; TensorRT fuses attention whose Q is scaled before "
                "its QuantizeLinear",
            )


def double_rounding(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every QuantizeLinear that reads, behind moves alone, what was just dequantized."""
    for node in graph.nodes("QuantizeLinear"):
        before = _dequantizer_before(node.inputs[0])
        if before is None or weight_behind(before.inputs[0]) is not None:
            continue
        if _same_grid(node, before):
            yield Hit(
                node,
                "it rounds again what was just dequantized with the same scale: no harm to the numbers, but "
                "one node too many",
                "note",
            )
        else:
            yield Hit(
                node,
                "it rounds a second time, with another scale, what was just dequantized: twice the rounding "
                "error and a conversion between two integer grids",
            )


def quantized_twice(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every tensor that several QuantizeLinear nodes read."""
    readers: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    for node in graph.nodes("QuantizeLinear"):
        if node.inputs[0] is not None and constant_tensor(node.inputs[0]) is None:
            readers[node.inputs[0]].append(node)
    for nodes in readers.values():
        if len(nodes) < 2:
            continue
        if all(_same_grid(nodes[0], each) for each in nodes[1:]):
            yield Hit(
                nodes[0],
                "one tensor is quantized several times with the same scale; one QuantizeLinear would do",
                "note",
            )
        else:
            yield Hit(
                nodes[0],
                "one tensor is quantized several times with different scales: its consumers cannot share "
                "its integers, and their products (Q, K and V) cannot be joined",
            )


def residual(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield the sums of a residual branch by what each of their sides is."""
    for site in graph.residuals:
        if site.is_other_quantized and not site.product.is_int8 and not site.is_product_quantized:
            yield Hit(
                site.node,
                "its skip branch is INT8 and the linear layer it is added to float: the branch is "
                "dequantized for nothing",
            )
        elif site.is_product_quantized and not site.is_other_quantized:
            yield Hit(
                site.node,
                "the linear layer's output is rounded to INT8 before a sum whose skip branch is float: "
                "the sum is not fused into the product",
            )
        elif site.product.is_int8 and not site.is_other_quantized:
            yield Hit(
                site.node,
                "a float residual by design (int8_linear, int8_attention, pre-LayerNorm models): it is read and "
                "written in float",
                "note",
                "none needed; int8_full rounds the branch of post-LayerNorm models",
            )


def table_dequantized_whole(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every INT8 embedding table that is dequantized before its rows are looked up."""
    for node in graph.nodes("DequantizeLinear"):
        if constant_tensor(node.inputs[0]) is None:
            continue
        if any(user.op_type == "Gather" and user.inputs[0] is node.outputs[0] for user in users(node.outputs[0])):
            yield Hit(node, "it dequantizes a whole embedding table at each call before a few rows are looked up")


def _dequantizer_before(value: ir.Value | None) -> ir.Node | None:
    operand: Operand | None = None if value is None else operand_of(value)
    return None if operand is None or operand.casts else operand.dequantize


def _same_grid(a: ir.Node, b: ir.Node) -> bool:
    """Return whether two Q/DQ nodes have the same constant scale and zero point."""
    for x, y in zip(a.inputs[1:], b.inputs[1:], strict=False):
        if x is not y:
            left, right = constant(x), constant(y)
            if left is None or right is None or not np.array_equal(left, right):
                return False
    return len(a.inputs) == len(b.inputs)


PLACEMENT_RULES = (
    Rule("nothing-quantized", "warning", CONSUMERS, "export a checkpoint of 'python -m calib'", nothing_quantized),
    Rule(
        "integer-operators",
        "error",
        TENSORRT,
        "quantize into Q/DQ (ONNX Runtime's tool: quant_format=QuantFormat.QDQ and static quantization)",
        integer_operators,
    ),
    Rule("one-sided", "error", CONSUMERS, "quantize both sides of the product, or neither", one_sided),
    Rule(
        "cast-between",
        "error",
        CONSUMERS,
        "export with --target tensorrt (scales in the compute type), so that "
        "DequantizeLinear gives the product's own type",
        cast_between,
    ),
    Rule(
        "attention-softmax",
        "error",
        CONSUMERS,
        "quantize the softmax output too (its amax is 1; recipe int8_attention), or leave Q, K and V float",
        attention_softmax,
    ),
    Rule(
        "attention-output",
        "warning",
        TENSORRT,
        "quantize the input of the layer behind attention (recipe int8_attention)",
        attention_output,
    ),
    Rule(
        "attention-scaling",
        "warning",
        TENSORRT,
        "multiply Q by the scale before its QuantizeLinear; this project's exports do",
        attention_scaling,
    ),
    Rule(
        "double-rounding",
        "warning",
        CONSUMERS,
        "keep one of the two quantizers (either the norm's output or its consumers' inputs)",
        double_rounding,
    ),
    Rule(
        "quantized-twice",
        "warning",
        CONSUMERS,
        "let all readers of one tensor share one QuantizeLinear",
        quantized_twice,
    ),
    Rule(
        "residual",
        "warning",
        TENSORRT,
        "quantize both sides of the sum or neither (recipe int8_full rounds the branch)",
        residual,
    ),
    Rule(
        "table-dequantized",
        "warning",
        CONSUMERS,
        "look the rows up first: Gather, then DequantizeLinear; this project's exports do",
        table_dequantized_whole,
    ),
    Rule(
        "float-product",
        "note",
        CONSUMERS,
        "none needed where the recipe says so; else add a rule to the recipe",
        float_product,
    ),
)
