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
SUFFIXES = ("_merged", "_transposed", "_int8", ".weight")


@dataclass(frozen=True)
class Product:
    """One product of an ONNX model: its readable name, its kind, and the node and output names by which a consumer
    knows it."""

    name: str
    is_linear: bool
    aliases: frozenset[str]


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
    found = []
    for node in model.graph.node:
        if node.op_type not in PRODUCT_OPS:
            continue
        weight = next((name for x in reversed(node.input[:2]) if (name := _weight(x, producers, initializers))), None)
        name = readable(weight) if weight and not weight.startswith("val_") else (node.name or node.output[0])
        found.append(Product(name, weight is not None, frozenset(filter(None, (node.name, node.output[0])))))
    return found


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


def sort_products(products: Iterable[Product], int8_names: set[str]) -> Products:
    """Return which products ran in INT8, given every name that the consumer's INT8 operators bear.

    A product that the consumer no longer names counts as float.
    """
    lists: dict[tuple[bool, bool], list[str]] = {
        (linear, int8): [] for linear in (True, False) for int8 in (True, False)
    }
    for product in products:
        lists[product.is_linear, bool(product.aliases & int8_names)].append(product.name)
    return Products(
        tuple(lists[True, True]), tuple(lists[True, False]), tuple(lists[False, True]), tuple(lists[False, False])
    )
