"""Rules about shapes and versions: what a consumer has kernels for, and where INT8 cannot pay."""

from __future__ import annotations

from collections.abc import Iterator

from engine.graph import int_attribute, shape_of
from engine.lint.claims import COST, REFUSED, TENSORRT
from engine.lint.findings import Hit, Rule
from engine.lint.graph import LintGraph
from engine.operands import Operand
from engine.products import Product

# INT8 fused attention by TensorRT's guide: compute capability 7.5 and above, these heads, up to this length.
FUSED_HEAD_SIZES = (16, 32, 64)
FUSED_LENGTH = 512
# INT8 tensor cores read 16 numbers (bytes) at a time; the fast kernels' tiles and 32-wide formats want 32.
WIDTH, FULL_WIDTH = 16, 32
NEWEST_OPSET = {"tensorrt8": 17}


def attention_size(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every INT8 attention outside the rule of fused attention."""
    for site in graph.attentions:
        if not (site.scores.is_int8 and site.context.is_int8):
            continue
        if site.head_size is not None and site.head_size not in FUSED_HEAD_SIZES:
            allowed = ", ".join(map(str, FUSED_HEAD_SIZES))
            yield Hit(site.scores, f"heads of {site.head_size}: INT8 fused attention has kernels for {allowed}")
        if site.length is not None and site.length > FUSED_LENGTH:
            yield Hit(site.scores, f"length {site.length}: INT8 fused attention reaches to {FUSED_LENGTH}")


def width(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every INT8 layer with a width that the kernels have to pad."""
    for site in graph.products:
        sizes = _widths(site) if site.is_int8 and site.is_linear else None
        if sizes is None or _is_gemv(site):
            continue
        for word, size in zip(("input", "output"), sizes, strict=True):
            if size % WIDTH:
                yield Hit(
                    site, f"{word} width {size} is not divisible by {WIDTH}: INT8 kernels pad it or are not found"
                )
            elif size % FULL_WIDTH:
                yield Hit(
                    site,
                    f"{word} width {size} is not divisible by {FULL_WIDTH}: the fastest INT8 kernels do not fit",
                    "note",
                )


def gemv(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every layer that multiplies one row a sample, beside layers that multiply many."""
    ranks = [len(shape) for site in graph.products if (shape := shape_of(_activation(site).value)) is not None]
    for site in graph.products:
        if not site.is_linear or site.node.op_type == "Conv" or not _is_gemv(site, max(ranks, default=0)):
            continue
        reason = "it multiplies one row a sample (GEMV): reading the weight decides its time"
        yield Hit(site, f"{reason}, and INT8 tensor cores idle", None if not site.is_float else "note")


def opset(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield the first product of a file whose operator set is newer than the consumer takes."""
    if graph.products and graph.opset > NEWEST_OPSET[consumer]:
        reason = "TensorRT 8.5 to 9 import LayerNormalization, Gelu and Q/DQ of opset 17 at most"
        mend = f"export with --target {consumer}"
        yield Hit(graph.products[0], f"the file has opset {graph.opset}; {reason}", None, mend)


def _activation(site: Product) -> Operand:
    return site.sides[1] if site.sides[0].weight is not None and site.sides[1].weight is None else site.sides[0]


def _widths(site: Product) -> tuple[int, int] | None:
    """Return (input, output) width of a linear layer, or of a convolution's implied product, None if untold."""
    shape = shape_of(site.sides[1].value)
    if shape is None or None in shape or len(shape) < 2:
        return None
    sizes = [size for size in shape if size is not None]
    if site.node.op_type == "Conv":
        inputs = 1
        for size in sizes[1:]:
            inputs *= size
        return inputs, sizes[0]
    return (sizes[-1], sizes[-2]) if int_attribute(site.node, "transB", 0) else (sizes[-2], sizes[-1])


def _is_gemv(site: Product, top_rank: int = 0) -> bool:
    """Return whether one row a sample is multiplied: one in all, or rank 2 where the other layers have 3."""
    shape = shape_of(_activation(site).value)
    if not shape or site.node.op_type == "Conv":
        return False
    rows = shape[:-1]
    return all(size == 1 for size in rows) or (len(shape) == 2 and top_rank > 2)


SPEED_RULES = (
    Rule(
        "attention-size",
        "warning",
        COST,
        TENSORRT,
        "it still runs, product by product; for a fused one leave attention float (recipe int8_linear)",
        attention_size,
    ),
    Rule("width", "warning", COST, TENSORRT, "leave the layer float, or pad the weight to the next multiple", width),
    Rule(
        "gemv",
        "warning",
        COST,
        TENSORRT,
        "leave it float (match: '*pooler*', enable: false); nothing is to be gained in INT8",
        gemv,
    ),
    Rule("opset", "error", REFUSED, tuple(NEWEST_OPSET), "export at the opset named", opset),
)
