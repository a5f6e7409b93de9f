"""What is said of TensorRT engines: from the inspector's JSON, a kernel trace, or the file alone."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from engine.backends.tensorrt import inspect as inspect_trt
from engine.backends.tensorrt.inspect import inspect_layers, layers_from_engine
from engine.inspect.arithmetic import product_work
from engine.inspect.kernel_trace import Kernel
from engine.inspect.layers import Share
from engine.passes.qdq import prepare_for_target
from engine.shapes import parse_shapes
from tests.engine.graphs import WIDTH, linear_model
from tests.engine.inspect.kernel_names import HALF_TACTIC, INT8_TACTIC
from tests.engine.inspect.test_inspect import call, row_of


def tensor(name: str, kind: str, dims: list[int], layout: str) -> dict:
    """One input or output in the layout of TensorRT 8 to 10 (one field) or 11 (two)."""
    if layout == "11":
        return {"Name": name, "Dimensions": dims, "Format": "Row major linear", "Datatype": kind}
    words = {"Int8": "Row major linear INT8 format", "Half": "Row major linear FP16 format"}
    return {"Name": name, "Location": "Device", "Dimensions": dims,
            "Format/Datatype": words[kind] if layout == "8" else kind}  # fmt: skip


def inspector_json(layout: str) -> dict:
    """A small engine as the inspector prints it: a conversion, an INT8 product, a float one, a Myelin kernel."""
    dims = [8, 64, 384]
    metadata = "[ONNX Layer: node_MatMul_1]\x1e[ONNX Layer: node_add_1]"
    layers = [
        {"Name": "Reformatting CopyNode for Input Tensor 0 to first", "LayerType": "Reformat",
         "Inputs": [tensor("x", "Half", dims, layout)], "Outputs": [tensor("x8", "Int8", dims, layout)],
         "ParameterType": "Reformat", "Origin": "REFORMAT", "TacticValue": "0x0"},
        {"Name": "node_MatMul_1 + node_add_1", "LayerType": "gemm" if layout != "8" else "CaskGemmMatrixMultiply",
         "Inputs": [tensor("x8", "Int8", dims, layout)], "Outputs": [tensor("y", "Half", [8, 64, 1536], layout)],
         "TacticName": INT8_TACTIC, "StreamId": 0, "Metadata": metadata},
        {"Name": "node_MatMul_2", "LayerType": "MatrixMultiply", "Inputs": [tensor("y", "Half", [8, 64, 1536], layout)],
         "Outputs": [tensor("z", "Half", dims, layout)], "TacticName": "", "Metadata": "[ONNX Layer: node_MatMul_2]"},
        {"Name": "__myl_AddResMeanSubMul_myl0_5", "LayerType": "kgen", "Inputs": [tensor("z", "Half", dims, layout)],
         "Outputs": [tensor("n", "Half", dims, layout)], "TacticName": "__myl_AddResMeanSubMul", "Metadata": ""},
    ]  # fmt: skip
    if layout == "11":
        io = {"Name": "x", "IOMode": "Input", "DataType": "Half", "Dimensions": dims, "Location": "Device"}
        return {"Layers": layers, "I/O Tensors": [io]}
    return {"Layers": layers, "Bindings": ["x", "n"]}


@pytest.mark.parametrize("layout", ["8", "10", "11"])
def test_the_inspectors_json_of_every_version_is_read(layout):
    profile = [{"count": 100}, {"name": "node_MatMul_2", "timeMs": 5.0, "averageMs": 0.05, "medianMs": 0.04}]
    found = inspect_layers("plan", inspector_json(layout), profile)
    assert [layer.kind for layer in found.layers] == ["reformat", "product", "product", "elementwise"]
    assert [layer.precision for layer in found.layers] == ["fp16", "int8", "fp16", "fp16"]
    assert [layer.macs for layer in found.layers[1:3]] == [8 * 64 * 1536 * 384, 8 * 64 * 384 * 1536]
    assert found.share.percent == 50 and found.layers[2].time_ms == 0.04
    assert found.layers[1].sources == (("node_MatMul_1", "node_add_1")) and found.layers[1].kernel == INT8_TACTIC


def test_convolutions_tell_their_own_arithmetic_and_dynamic_ones_none():
    conv = {"Name": "conv1 + relu", "LayerType": "CaskConvolution", "Kernel": [1, 1], "OutMaps": 256, "Groups": 1,
            "Inputs": [{"Name": "a", "Dimensions": [16, 512, 28, 28],
                        "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
            "Outputs": [{"Name": "b", "Dimensions": [16, 256, 28, 28], "Format/Datatype": "Int8"}],
            "Weights": {"Type": "Int8", "Count": 131072},
            "TacticName": "sm80_xmma_fprop_implicit_gemm_i8i8_i8i32"}  # fmt: skip
    (layer,) = inspect_layers("plan", [conv]).layers
    assert (layer.kind, layer.precision, layer.macs) == ("product", "int8", 16 * 256 * 28 * 28 * 512)
    conv["Outputs"][0]["Dimensions"] = [-1, 256, 28, 28]
    found = inspect_layers("plan", [conv])
    assert found.layers[0].macs is None and found.share.percent is None and "unknown" in found.share.sentence()


def test_fused_attention_is_known_by_its_kernel_and_not_by_its_name():
    entries = [
        {"Name": "_gemm_mha_v2_myl0_4", "LayerType": "kgen", "TacticName": "_gemm_mha_v2_i8_tactic",
         "Inputs": [{"Name": "q", "Format/Datatype": "Int8"}]},
        {"Name": "/encoder/layer.0/attention/self/query/MatMul_myl0_1", "LayerType": "gemm", "TacticName": HALF_TACTIC},
    ]  # fmt: skip
    found = inspect_layers("plan", entries)
    assert [(each.kind, each.precision) for each in found.layers] == [("attention", "int8"), ("product", "fp16")]


def myelin() -> dict:
    dims = [4, WIDTH]
    node = "{ForeignNode[product0...add1]}"
    return {"Layers": [{"Name": node, "LayerType": "Myelin", "Inputs": [tensor("x", "Half", dims, "8")],
                        "Outputs": [tensor("y0", "Half", dims, "8")], "TacticName": ""}],
            "Bindings": ["x", "y0"]}  # fmt: skip


def test_what_myelin_hides_is_unknown_and_counted_by_the_onnx_file():
    works = product_work(prepare_for_target(linear_model(num_siblings=2), "openvino"), parse_shapes(["x:4x16"]))
    found = inspect_layers("plan", myelin(), works=works)
    assert found.layers[0].macs == 4 * 16 * (16 + 20) and found.layers[0].precision == "unknown"
    assert found.share == Share(int8=0, other=0, unknown=4 * 16 * 36, uncounted=0)
    assert found.share.percent is None and any("unknown without a kernel trace" in note for note in found.notes)
    kernels = [Kernel(INT8_TACTIC, 36, 3.0), Kernel(HALF_TACTIC, 2, 1.0), Kernel("void reduce_kernel<float>", 9, 9.0)]
    notes = inspect_layers("plan", myelin(), works=works, kernels=kernels).notes
    assert any("36 in int8 (75 % of their time), 2 in fp16 (25 %" in note for note in notes)


def test_an_engine_without_verbosity_gives_names_alone():
    found = inspect_layers("plan", {"Layers": ["conv1 + relu", "MatMul_1"], "Bindings": ["x"]})
    assert {layer.precision for layer in found.layers} == {"unknown"} and "detailed" in found.notes[0]


def test_the_command_reads_what_lies_beside_a_tensorrt_engine(tmp_path, capsys):
    engine, model = tmp_path / "plan", tmp_path / "model.onnx"
    engine.write_bytes(b"plan")
    Path(f"{engine}.layers.json").write_text(json.dumps(myelin()))
    Path(f"{engine}.kernels.json").write_text(json.dumps([INT8_TACTIC, INT8_TACTIC]))
    onnx.save(prepare_for_target(linear_model(num_siblings=2), "openvino"), model)
    row = row_of(capsys, engine, "--onnx", model, "--shapes", "x:4x16")
    assert row["backend"] == "tensorrt" and row["macs"]["unknown"] == 4 * 16 * 36 and row["int8_percent"] is None
    assert any("2 in int8" in note for note in row["notes"]) and any(
        "engine.lint says" in note for note in row["notes"]
    )


def test_what_lies_there_from_an_earlier_build_is_told_of(tmp_path, capsys):
    engine, layers = tmp_path / "plan", tmp_path / "plan.layers.json"
    layers.write_text(json.dumps(myelin()))
    engine.write_bytes(b"built after it")
    os.utime(layers, (1, 1))
    assert any("plan.layers.json is older than" in note for note in row_of(capsys, engine)["notes"])
    named = row_of(capsys, engine, "--layers", layers)
    assert not any("is older than" in note for note in named["notes"])
    os.utime(layers)
    assert not any("is older than" in note for note in row_of(capsys, engine)["notes"])


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_an_engine_that_cannot_be_deserialized_here_says_what_to_give(folder, tmp_path, capsys, monkeypatch, backend):
    monkeypatch.setitem(sys.modules, backend, None)  # as on a machine without it
    for name in ("int8", "int8.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    manifest = json.loads((tmp_path / "int8.json").read_text())
    manifest["backend"] = backend
    (tmp_path / "int8.json").write_text(json.dumps(manifest))
    assert call(tmp_path / "int8") == 1
    error = capsys.readouterr().err
    assert "can be deserialized only" in error and "--layers FILE" in error and error.count("\n") == 1
    assert ("RTX GPU" in error) == (backend == "tensorrt_rtx")


def test_of_an_engine_that_does_not_load_the_file_and_the_linter_are_heard(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    (tmp_path / "int8").write_bytes(b"plan")
    manifest = json.loads((folder / "int8.json").read_text())
    (tmp_path / "int8.json").write_text(json.dumps({**manifest, "backend": "tensorrt_rtx"}))
    onnx_file = next(folder.glob("*.onnx"))
    row = row_of(capsys, tmp_path / "int8", "--onnx", onnx_file)
    assert row["int8_percent"] is None and {each["precision"] for each in row["layers"]} == {"unknown"}
    assert "can be deserialized only" in row["notes"][0] and "engine.lint says" in row["notes"][1]
    assert call(onnx_file) == 2 and "engine.lint" in capsys.readouterr().err


class FakeRunner:
    """As much of a TensorRT runner as the inspection asks of it."""

    inputs, shapes, batch_size = {"x": (np.dtype(np.float32), (4, 16))}, {}, 4

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        return None

    def layer_information(self):
        return json.dumps(inspector_json("10"))

    def profile(self, feeds, iterations):
        assert feeds["x"].shape == (4, 16) and iterations == 5
        return [{"name": each["Name"], "medianMs": 0.25} for each in inspector_json("10")["Layers"]]


class FakeBackend:
    """The backend on a machine with the engine's GPU; an engine of other bytes than b"plan" is refused."""

    def version(self):
        return "10.9.0"

    def load(self, engine):
        if engine.read_bytes() != b"plan":
            raise RuntimeError("TensorRT 10.9.0 refused the engine: magic tag does not match")
        return FakeRunner()


def test_an_engine_that_can_be_loaded_is_asked_and_timed_and_a_refusal_is_told_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(inspect_trt, "get_backend", lambda name: FakeBackend())
    (tmp_path / "plan").write_bytes(b"plan")
    content, profile, version = layers_from_engine(tmp_path / "plan", "tensorrt", None, 5)
    found = inspect_layers("plan", content, profile)
    assert version == "10.9.0" and len(found.layers) == 4 and found.layers_ms == pytest.approx(1.0)
    (tmp_path / "plan").write_bytes(b"other")
    with pytest.raises(RuntimeError, match=r"version and GPU that it was built for \(.*magic tag does not match\)"):
        layers_from_engine(tmp_path / "plan", "tensorrt", None, 5)
