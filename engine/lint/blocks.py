"""Rules about the blocks of a transformer: attention, whose products are fused together, and residual sums."""

from __future__ import annotations

from collections.abc import Iterator

from engine.lint.claims import CONSUMERS, COST, FLOAT, TENSORRT
from engine.lint.findings import Hit, Rule
from engine.lint.graph import LintGraph


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


BLOCK_RULES = (
    Rule(
        "attention-softmax",
        "error",
        FLOAT,
        CONSUMERS,
        "quantize the softmax output too (its amax is 1; recipe int8_attention), or leave Q, K and V float",
        attention_softmax,
    ),
    Rule(
        "attention-output",
        "warning",
        COST,
        TENSORRT,
        "quantize the input of the layer behind attention (recipe int8_attention)",
        attention_output,
    ),
    Rule(
        "attention-scaling",
        "warning",
        COST,
        ("tensorrt8",),
        "multiply Q by the scale before its QuantizeLinear; this project's exports do",
        attention_scaling,
    ),
    Rule(
        "residual",
        "warning",
        COST,
        TENSORRT,
        "quantize both sides of the sum or neither (recipe int8_full rounds the branch)",
        residual,
    ),
)
