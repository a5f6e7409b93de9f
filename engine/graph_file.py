"""Reads and writes graphs as ONNX files whose weights may stand in a second file, since one cannot hold over 2 GB."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor, uses_external_data

if TYPE_CHECKING:  # it brings sympy, half a second that every --help would wait for
    import onnx_ir as ir

# protobuf ends at 2 GiB, and one file is built in memory twice before it is written: far below that, weights are
# streamed into a file of their own.
MAX_FILE_BYTES = 2**29
IN_FLIGHT_BYTES = 2**26  # of weights on their way to the disk
# What passes read the numbers of (scales, zero points, shapes) is smaller; a weight is larger.
SMALL_BYTES = 2**16


def save_graph(model: ir.Model, path: str | Path, *, full_check: bool = False, limit: int = MAX_FILE_BYTES) -> int:
    """Write a graph and check it; return the bytes written. Weights are streamed, tensor by tensor.

    Args:
        path: the ONNX file. Over `limit` bytes of weights, they go to `path` with .data appended, which must then stay
            beside it.
        full_check: infer the types of every node too.
    Raises: onnx.checker.ValidationError: an invalid graph.
    """
    import onnx_ir as ir

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


def load_graph(path: str | Path, limit: int) -> onnx.ModelProto:
    """Return an ONNX model, with over `limit` bytes of weights without those that stand in a file of their own.

    Such a model can be serialized at any size; who runs it must know the folder of `path`. Constants of at most
    SMALL_BYTES are always there.
    Raises: FileNotFoundError: no file of weights; ValueError: one that is too short.
    """
    path = Path(path)
    model = onnx.load(str(path), load_external_data=False)
    sizes: dict[str, int] = {}
    largest = limit if weight_bytes(model) <= limit else SMALL_BYTES
    for tensor in _external(model):
        info = ExternalDataInfo(tensor)
        if info.location not in sizes:
            sizes[info.location] = (path.parent / info.location).stat().st_size
        size_bytes = _tensor_bytes(tensor)
        if sizes[info.location] < (end := (info.offset or 0) + size_bytes):
            raise ValueError(
                f"{info.location} has {sizes[info.location]} bytes, and weight {tensor.name} ends at byte {end}"
            )
        if size_bytes <= largest:
            load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    return model


def weight_files(path: str | Path) -> list[Path]:
    """Return the files beside an ONNX file that hold its weights, sorted; none where it holds them itself."""
    if zipfile.is_zipfile(path):  # a program's archive (.pt2), which holds its weights
        return []
    model = onnx.load(str(path), load_external_data=False)
    return sorted({Path(path).parent / ExternalDataInfo(tensor).location for tensor in _external(model)})


def weight_bytes(model: onnx.ModelProto) -> int:
    """Return the bytes of all weights of a model, wherever they stand."""
    return sum(_tensor_bytes(tensor) for tensor in model.graph.initializer)


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    from onnx_ir.serde import deserialize_tensor

    return deserialize_tensor(tensor).nbytes


def _external(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    return (tensor for tensor in model.graph.initializer if uses_external_data(tensor))
