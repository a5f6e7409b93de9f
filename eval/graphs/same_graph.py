"""Which engines are the same but for their numbers: calibrators of one recipe run one graph, which is timed once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, TensorProto, numpy_helper

# Values of these decide shapes and branches; a float or an INT8 weight decides how large a result is, not what runs.
STRUCTURAL = (TensorProto.INT64, TensorProto.BOOL)
QUANTIZED = (TensorProto.INT8, TensorProto.UINT8)


def graph_digest(path: str | Path) -> str | None:
    """Return the sha256 of an ONNX file's graph with the values of its constants left out, 16 digits.

    Names do not count, only what is joined to what; types and shapes of constants do, and the values of 64-bit integers
    (shapes, axes) and of zero points (they choose the kernel). None: the file is no ONNX graph.
    """
    data, model = Path(path).read_bytes(), onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # protobuf's DecodeError: a plan, a blob or XML; onnx does not export its name
        return None
    if not model.graph.node:
        return None
    digest = hashlib.sha256(repr(sorted((o.domain, o.version) for o in model.opset_import)).encode())
    _add_graph(digest, model.graph, {})
    for function in model.functions:
        digest.update(repr((function.domain, function.name, len(function.input), len(function.output))).encode())
        ids: dict[str, int] = {}
        for name in function.input:
            _id(ids, name)
        _add_nodes(digest, function.node, {}, ids)
    return digest.hexdigest()[:16]


def _id(ids: dict[str, int], name: str) -> int:
    return ids.setdefault(name, len(ids)) if name else -1


def _add_graph(digest: hashlib._Hash, graph: GraphProto, outer: dict[str, int]) -> None:
    ids = dict(outer)  # a subgraph reads values of the graphs around it
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for each in graph.input:
        if each.name not in constants:
            digest.update(repr(("input", _id(ids, each.name))).encode())
            digest.update(each.type.SerializeToString(deterministic=True))
    _add_nodes(digest, graph.node, constants, ids)
    digest.update(repr(("outputs", [_id(ids, each.name) for each in graph.output])).encode())


def _add_nodes(
    digest: hashlib._Hash, nodes: Iterable[onnx.NodeProto], constants: dict[str, TensorProto], ids: dict[str, int]
) -> None:
    for node in nodes:
        for name in node.input:
            if name in constants and name not in ids:
                digest.update(repr((_id(ids, name), _described(constants[name]))).encode())
        names = [[_id(ids, name) for name in side] for side in (node.input, node.output)]
        digest.update(repr((node.domain, node.op_type, names)).encode())
        for attribute in sorted(node.attribute, key=lambda each: each.name):
            _add_attribute(digest, attribute, ids)


def _add_attribute(digest: hashlib._Hash, attribute: AttributeProto, ids: dict[str, int]) -> None:
    digest.update(repr((attribute.name, attribute.type)).encode())
    if attribute.type == AttributeProto.TENSOR:
        digest.update(repr(_described(attribute.t)).encode())
    elif attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
        for graph in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
            _add_graph(digest, graph, ids)
    else:
        digest.update(attribute.SerializeToString(deterministic=True))


def _described(tensor: TensorProto) -> tuple[int, tuple[int, ...], bytes]:
    """Return type, shape and what of the values counts."""
    kept = b""
    is_inside = tensor.data_location != TensorProto.EXTERNAL
    if tensor.data_type in STRUCTURAL and is_inside:
        kept = numpy_helper.to_array(tensor).tobytes()
    elif tensor.data_type in QUANTIZED and is_inside:
        values = numpy_helper.to_array(tensor)
        is_zero_point = values.size > 0 and bool(np.all(values == values.flat[0]))
        kept = values.flat[0].tobytes() if is_zero_point else b""
    return tensor.data_type, tuple(tensor.dims), kept
