"""Writes a graph as an ONNX file; the weights go into a second file where one cannot hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

# protobuf ends at 2 GiB, and one file is built in memory twice before it is written: far below that, weights are
# streamed into a file of their own.
MAX_FILE_BYTES = 2**29
IN_FLIGHT_BYTES = 2**26  # of weights on their way to the disk


def save_graph(model: ir.Model, path: str | Path, *, full_check: bool = False, limit: int = MAX_FILE_BYTES) -> int:
    """Write a graph and check it; return the bytes written. Weights are streamed, tensor by tensor.

    Args:
        path: the ONNX file. Over `limit` bytes of weights, they go to `path` with .data appended, which must then stay
            beside it.
        full_check: infer the types of every node too.
    Raises: onnx.checker.ValidationError: an invalid graph.
    """
    path = Path(path)
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    is_large = sum(tensor.nbytes for tensor in tensors) > limit
    beside: dict[str, Any] = {}
    if is_large:
        beside = {"external_data": data_path(path).name, "max_in_flight_bytes": IN_FLIGHT_BYTES}
    ir.save(model, path, **beside)
    onnx.checker.check_model(str(path), full_check=full_check)
    return onnx_bytes(path)


def onnx_bytes(path: str | Path) -> int:
    """Return the bytes of an ONNX file and of the weights beside it."""
    return sum(each.stat().st_size for each in (Path(path), data_path(path)) if each.exists())


def data_path(path: str | Path) -> Path:
    """Return where the weights of a large ONNX file stand."""
    return Path(f"{path}.data")
