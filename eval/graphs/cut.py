"""Takes quantizers, or SmoothQuant's factors alone, out of an exported graph."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

SCALE, FACTOR = ".export_scale", ".pre_quant_scale"
PREFIX = "model."  # of all names of the model in a graph: the exporter sees it inside a wrapper


def cut(model: onnx.ModelProto, quantizers: Iterable[frozenset[str]], factors: Iterable[frozenset[str]] = ()) -> None:
    """Take the Q/DQ pairs of some quantizers out of an exported graph, in place, and what only they read.

    Args: quantizers: each by the names that it may have there. factors: quantizers that only lose their factor.
    Raises: LookupError: one of them has no pair of its own there.
    """
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    pairs: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1].endswith(SCALE):
            pairs.setdefault(node.input[1].removesuffix(SCALE).removeprefix(PREFIX), []).append(node)

    def found(names: frozenset[str]) -> list[onnx.NodeProto]:
        if not (own := [quantize for name in names for quantize in pairs.get(name, [])]):
            raise LookupError(f"the graph has no quantizer {min(names)} of its own")
        return own

    def before_factor(source: str) -> str:
        factor = made_by.get(source)
        if factor is None or not any(each.endswith(FACTOR) for each in factor.input):
            return source
        return next(each for each in factor.input if not each.endswith(FACTOR))

    replaced: dict[str, str] = {}
    gone: list[onnx.NodeProto] = []
    for names in factors:
        for quantize in found(names):
            quantize.input[0] = before_factor(quantize.input[0])
    for names in quantizers:
        for quantize in found(names):
            source = before_factor(quantize.input[0])
            gone.append(quantize)
            for reader in graph.node:
                if reader.op_type == "DequantizeLinear" and reader.input[0] == quantize.output[0]:
                    replaced[reader.output[0]] = source
                    gone.append(reader)
    for node in graph.node:
        for index, name in enumerate(node.input):
            while name in replaced:
                name = replaced[name]
            node.input[index] = name
    for node in gone:
        graph.node.remove(node)
    _drop_unread(graph)


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Remove factors that nothing reads any more, and constants of what is gone."""
    outputs = {output.name for output in graph.output}
    read = {name for node in graph.node for name in node.input} | outputs
    for node in list(graph.node):
        if any(name.endswith(FACTOR) for name in node.input) and not read & set(node.output):
            graph.node.remove(node)
    read = {name for node in graph.node for name in node.input} | outputs
    for constant in list(graph.initializer):
        if constant.name not in read:
            graph.initializer.remove(constant)
