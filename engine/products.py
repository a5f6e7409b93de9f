"""Which products of a model there are, and which of them a consumer really runs in INT8.

A product is a MatMul, Gemm or Conv: "linear" where one factor is a constant weight, "attention" where both are
activations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx

PRODUCT_OPS = ("MatMul", "Gemm", "Conv")
# What stands between a product and the initializer it reads.
WEIGHT_PATH = ("DequantizeLinear", "QuantizeLinear", "Transpose", "Reshape", "Identity", "Cast")
# What may stand between a DequantizeLinear and the product that it feeds.
MOVES = ("Transpose", "Reshape", "Identity", "Expand", "Unsqueeze", "Squeeze", "Slice", "Split", "Concat")
SUFFIXES = ("_half", "_merged", "_transposed", "_int8", ".weight")


@dataclass(frozen=True)
class Product:
    """One product of an ONNX model: its readable name, its kind, and the node and output names by which a consumer
    knows it."""

    name: str
    is_linear: bool
    is_quantized: bool  # both factors come from DequantizeLinear
    aliases: frozenset[str]
    readers: frozenset[str]  # names of the nodes that read it: all that is left of a product inside a fused operator


@dataclass(frozen=True)
class Products:
    """Names of the products a consumer runs in INT8 and those it left float, linears and attention apart."""

    int8: tuple[str, ...] = ()
    float: tuple[str, ...] = ()
    attention_int8: tuple[str, ...] = ()
    attention_float: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return one line such as "36 of 38 linears and 0 of 12 attention products in INT8; float: classifier"."""
        linears, attention = len(self.int8) + len(self.float), len(self.attention_int8) + len(self.attention_float)
        line = f"{len(self.int8)} of {linears} linears and {len(self.attention_int8)} of {attention} attention products"
        line += " in INT8"
        if self.int8 and self.float:
            shown = ", ".join(self.float[:5])
            line += f"; float: {shown}" + (f" and {len(self.float) - 5} more" if len(self.float) > 5 else "")
        return line


def find_products(model: onnx.ModelProto) -> list[Product]:
    """Return every product of `model` in graph order; a linear is named by its weight, the others by their node."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, frozenset[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, frozenset()) | {node.name}
    found = []
    for node in model.graph.node:
        if node.op_type not in PRODUCT_OPS:
            continue
        weight = next((name for x in reversed(node.input[:2]) if (name := _weight(x, producers, initializers))), None)
        name = readable(weight) if weight and not weight.startswith("val_") else (node.name or node.output[0])
        aliases = frozenset(filter(None, (node.name, node.output[0])))
        is_quantized = all(_is_dequantized(x, producers) for x in node.input[:2])
        found.append(Product(name, weight is not None, is_quantized, aliases, readers.get(node.output[0], frozenset())))
    return found


def _is_dequantized(name: str, producers: dict[str, onnx.NodeProto]) -> bool:
    while name in producers:
        node = producers[name]
        if node.op_type == "DequantizeLinear":
            return True
        if node.op_type not in MOVES:
            return False
        name = node.input[0]
    return False


def _weight(name: str, producers: dict[str, onnx.NodeProto], initializers: set[str]) -> str | None:
    while name in producers:
        node = producers[name]
        if node.op_type == "Constant":
            return name
        if node.op_type not in WEIGHT_PATH:
            return None
        name = node.input[0]
    return name if name in initializers else None


def readable(weight: str) -> str:
    """Return a weight's name without what the passes and the exporter put at its end."""
    for suffix in SUFFIXES:
        weight = weight.removesuffix(suffix)
    return weight


def sort_products(products: Iterable[Product], int8_names: set[str], fused_names: Iterable[str] = ()) -> Products:
    """Return which products ran in INT8, given every name that the consumer's INT8 operators bear.

    `fused_names` are the names inside INT8 operators that swallow a whole attention: there a product may be known
    by its reader alone. A product with a float factor, and one that the consumer no longer names, counts as float.
    """
    fused = set(fused_names)
    lists: dict[tuple[bool, bool], list[str]] = {
        (linear, int8): [] for linear in (True, False) for int8 in (True, False)
    }
    for product in products:
        is_named = bool(product.aliases & (int8_names | fused)) or bool(product.readers & fused)
        lists[product.is_linear, product.is_quantized and is_named].append(product.name)
    return Products(
        tuple(lists[True, True]), tuple(lists[True, False]), tuple(lists[False, True]), tuple(lists[False, False])
    )
