"""Engines of both CPU runtimes that are looked into."""

from __future__ import annotations

import onnx
import pytest

from engine.backend import BuildOptions, get_backend
from engine.passes.qdq import prepare_for_target
from engine.shapes import parse_shapes
from tests.engine.graphs import linear_model


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def folder(request, tmp_path_factory):
    """An INT8 and a float engine of one backend, and the ONNX file of the first."""
    path = tmp_path_factory.mktemp(request.param)
    backend = get_backend(request.param)
    if reason := backend.check_run():
        pytest.skip(reason)
    onnx.save(prepare_for_target(linear_model(num_siblings=2), request.param), path / "model.onnx")
    onnx.save(linear_model(num_siblings=2, quantized=False), path / "float.onnx")
    # INT8 kernels are what is inspected, also where they saturate (a CPU without VNNI)
    options = BuildOptions(parse_shapes(["x:4x16"]), threads=1, saturation="allow")
    backend.build(path / "model.onnx", path / "int8", options)
    backend.build(path / "float.onnx", path / "float", options)
    backend.build(path / "model.onnx", path / "dynamic", BuildOptions(threads=1, saturation="allow"))
    return path
