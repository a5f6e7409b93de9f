"""The Q/DQ file that several tests build from."""

from __future__ import annotations

import onnx
import pytest

from engine.passes.qdq import prepare_for_target
from tests.engine.graphs import linear_model


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(prepare_for_target(linear_model(num_siblings=2), "tensorrt"), path)
    return path
