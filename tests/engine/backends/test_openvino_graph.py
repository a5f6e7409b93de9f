"""Factors per channel before a quantizer: the engine computes what the file says, wherever the factor stands."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engine.backend import BuildOptions, get_backend
from engine.backends.onnxruntime.backend import plain_session
from engine.backends.openvino.backend import compile_config
from engine.backends.openvino.graph import keep_channel_factors_apart
from engine.hardware import cpu_flags, saturates
from tests.engine.graphs import make_model, quantize

SIZE = 32
SCALE = 0.02


def factor_model(*, is_shared: bool, op: str = "Mul", per_channel: bool = True) -> onnx.ModelProto:
    """Return x (batch, length, SIZE) -> product -> factor -> Q/DQ; `is_shared`: the product is an output too."""
    rng = np.random.default_rng(0)
    factor = rng.uniform(0.3, 2, SIZE if per_channel else ()).astype(np.float32)
    constants = {"w": rng.normal(size=(SIZE, SIZE)).astype(np.float32) * 0.2, "s": factor,
                 "scale": np.float32(SCALE), "zero": np.int8(0)}  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"], name="product"),
        helper.make_node(op, ["xw", "s"], ["xws"], name="factor"),
        *quantize("xws", "y", "scale", "zero", "y"),
    ]
    sizes = ["batch", "length", SIZE]
    outputs = [(name, TensorProto.FLOAT, sizes) for name in (("y", "xw") if is_shared else ("y",))]
    return make_model(nodes, [("x", TensorProto.FLOAT, sizes)], outputs, constants)


def step_errors(y: np.ndarray, expected: np.ndarray) -> float:
    """Return the share of elements that are more than one rounding of a near tie off."""
    return float((np.abs(y - expected) > 1.01 * SCALE).mean())


@pytest.mark.parametrize("op", ["Mul", "Div"])
@pytest.mark.parametrize("is_shared", [True, False])
def test_an_engine_computes_a_factor_per_channel_before_a_quantizer_as_written(tmp_path, is_shared, op):
    path = tmp_path / "factor.onnx"
    onnx.save(factor_model(is_shared=is_shared, op=op), path)
    x = np.random.default_rng(1).normal(size=(3, 5, SIZE)).astype(np.float32)
    expected = plain_session(path).run(["y"], {"x": x})[0]
    assert np.abs(expected).max() > 1 and len(np.unique(expected)) > 50  # a tensor that has something to lose
    backend = get_backend("openvino")
    backend.build(path, tmp_path / "engine", BuildOptions())
    with backend.load(tmp_path / "engine") as runner:
        y = runner({"x": x})["y"]
    # A sum of 32 products in another order may round a near tie the other way: one step, in few elements.
    assert step_errors(y, expected) == 0 and (y != expected).mean() < 0.02


def test_only_factors_that_openvino_cannot_fuse_are_kept_apart():
    import openvino

    def kept(**kinds: bool) -> list[str]:
        model = openvino.Core().read_model(factor_model(**kinds).SerializeToString())
        return keep_channel_factors_apart(model)

    assert kept(is_shared=True) == ["factor"]
    assert kept(is_shared=False) == []  # fused into the product: nothing is paid
    assert kept(is_shared=True, per_channel=False) == []


def test_openvino_still_needs_it():
    """When this fails, a newer OpenVINO is right by itself: `engine/backends/openvino/graph.py` may go."""
    if not saturates(cpu_flags()):
        pytest.skip("the wrong kernel was seen on CPUs without VNNI")
    import openvino

    file = factor_model(is_shared=True).SerializeToString()
    core, x = openvino.Core(), np.random.default_rng(1).normal(size=(3, 5, SIZE)).astype(np.float32)
    answers = []
    for is_kept in (True, False):
        model = core.read_model(file)
        if is_kept:
            keep_channel_factors_apart(model)
        answers.append(core.compile_model(model, "CPU", compile_config("fp32", 1, "avoided"))([x])["y"])
    assert step_errors(*answers) > 0.1
