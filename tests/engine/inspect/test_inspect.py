"""The truth report: real engines of both CPU runtimes, and TensorRT's JSON in the layouts of 8, 10 and 11."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from engine.backend import BuildOptions, get_backend
from engine.backends.onnxruntime import inspect as inspect_ort
from engine.backends.tensorrt import inspect as inspect_trt
from engine.backends.tensorrt.inspect import inspect_layers, layers_from_engine
from engine.inspect.__main__ import main
from engine.inspect.arithmetic import product_work
from engine.inspect.diff import compare_engines
from engine.inspect.kernel_trace import Kernel
from engine.inspect.layers import Inspection, Layer, Share
from engine.inspect.report import inspect_engine
from engine.passes.qdq import prepare_for_target
from engine.shapes import parse_shapes
from tests.engine.graphs import WIDTH, linear_model, samples
from tests.engine.inspect.kernel_names import HALF_TACTIC, INT8_TACTIC

ROOT = Path(__file__).parents[3]


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


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    return int(stopped.value.code or 0)


def row_of(capsys, *arguments: object) -> dict:
    assert call(*arguments, "--json", "--iterations", 3) == 0
    return json.loads(capsys.readouterr().out)


def test_an_engine_tells_its_int8_share_its_arithmetic_and_its_times(folder, capsys):
    row = row_of(capsys, folder / "int8", "--onnx", folder / "model.onnx")
    products = [each for each in row["layers"] if each["kind"] == "product"]
    # 4 rows through 16 x 16 and 16 x 20
    assert sorted(each["macs"] for each in products) == [4 * 16 * 16, 4 * 16 * 20]
    assert row["int8_percent"] == 100 and all(each["precision"] == "int8" for each in products)
    assert sorted(each["name"] for each in products) == ["lin0", "lin1"]
    assert all(each["time_ms"] is not None and each["kernel"] for each in products) and row["call_ms"] > 0
    float_row = row_of(capsys, folder / "float")
    assert float_row["int8_percent"] == 0
    assert {each["precision"] for each in float_row["layers"] if each["kind"] == "product"} == {"fp32"}


def test_int8_weights_alone_are_no_int8_product(folder, capsys, monkeypatch):
    """Without VNNI OpenVINO multiplies floats by dequantized INT8 weights, and calls the layer i8 all the same."""
    backend = get_backend("onnxruntime" if "onnxruntime" in str(folder) else "openvino")
    monkeypatch.setattr("engine.backend.cpu_flags", lambda: ("avx2",))
    options = BuildOptions(parse_shapes(["x:4x16"]), threads=1, force=True)
    backend.build(folder / "model.onnx", folder / "avoided", options)
    row = row_of(capsys, folder / "avoided")
    assert row["int8_percent"] == (100 if backend.name == "onnxruntime" else 0)


def test_a_convolution_whose_weight_is_dequantized_tells_its_arithmetic():
    event = {"args": {"op_name": "Conv", "provider": "CPUExecutionProvider",
                      "input_type_shape": [{"float": [8, 3, 32, 32]}, {"float": [48, 3, 4, 4]}],
                      "output_type_shape": [{"float": [8, 48, 8, 8]}]}}  # fmt: skip
    layer = inspect_ort._layer("patches", [1.0, 3.0, 2.0], event, None, {})
    assert (layer.macs, layer.time_ms, layer.precision) == (8 * 48 * 8 * 8 * 3 * 4 * 4, 2.0, "fp32")


def test_given_feeds_decide_the_sizes_of_a_dynamic_engine(folder, capsys, tmp_path):
    np.savez(tmp_path / "feeds.npz", **samples(6))
    row = row_of(capsys, folder / "dynamic", "--feeds", tmp_path / "feeds.npz")
    assert "x 8x16" in row["conditions"] and "made-up" not in row["conditions"]
    assert row["macs"]["int8"] == 8 * 16 * (16 + 20) and row["macs"]["uncounted"] == 0


def test_the_text_fits_60_columns_and_names_every_layer_on_demand(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert call(folder / "int8", "--iterations", 2, "--all") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60 and any("100.0 % of" in line for line in lines)
    assert call("--diff", folder / "float", folder / "int8", "--iterations", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60 and any(line.startswith("product ") for line in lines)


def test_wrong_feeds_engines_and_usage_end_in_one_line(folder, capsys, tmp_path):
    np.savez(tmp_path / "other.npz", z=np.ones((2, 3), np.float32))
    np.savez(tmp_path / "wide.npz", x=np.ones((4, 17), np.float32))
    (tmp_path / "lonely").write_bytes(b"plan")
    (tmp_path / "broken.json").write_text('{"Layers": [')
    (tmp_path / "else.json").write_text('{"a": 1}')
    for arguments, code, message in (
        ([tmp_path / "missing"], 1, "no engine"),
        ([tmp_path / "lonely"], 1, "has no lonely.json beside it"),
        ([tmp_path / "broken.json"], 1, "is not JSON"),
        ([tmp_path / "else.json"], 1, "holds no list of Layers"),
        ([folder / "int8", "--feeds", tmp_path / "other.npz"], 1, "the feeds lack input x"),
        ([folder / "int8", "--feeds", tmp_path / "wide.npz"], 1, "has shape 4x17, the engine's 4x16"),
        ([folder / "int8", "--iterations", "0"], 2, "--iterations 0 must be at least 1"),
        ([], 2, "name one engine, or two with --diff"),
    ):
        assert call(*arguments) == code
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_an_engine_of_another_version_is_refused(folder, tmp_path, capsys):
    for name in ("int8", "int8.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    manifest = json.loads((tmp_path / "int8.json").read_text())
    manifest["versions"][manifest["backend"]] = "0.1"
    (tmp_path / "int8.json").write_text(json.dumps(manifest))
    assert call(tmp_path / "int8") == 1 and "was built by" in capsys.readouterr().err


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


def engine_of(*layers: Layer) -> Inspection:
    return Inspection("e", "tensorrt", None, "", layers)


def test_a_comparison_names_conversions_lost_fusions_and_slower_products():
    fast = engine_of(
        Layer("fc1", "product", "FusedGemm", "fp16", None, 1.0, 100, ("fc1", "add", "gelu")),
        Layer("mha", "attention", "kgen", "fp16", "fmha", 1.0, 50),
        Layer("head", "product", "Gemm", "fp16", None, 0.5, 10),
    )
    slow = engine_of(
        Layer("fc1", "product", "gemm", "int8", None, 1.5, 100, ("fc1",)),
        Layer("q", "reformat", "Reformat", "fp16", None, 2.0),
        Layer("gelu", "elementwise", "pw", "fp16", None, 0.4),
        Layer("head", "product", "Gemm", "fp16", None, 0.5, 10),
    )
    found = compare_engines(fast, slow)
    reasons = "\n".join(found.reasons)
    assert found.reasons[0].startswith("1 conversions between types and layouts instead of 0 take 2.000 ms more")
    assert "1 INT8 products are slower" in reasons and "1 products run as before, not in INT8: 0.500 ms" in reasons
    assert "1 fused attentions are gone" in reasons and "2 operators that were fused into products" in reasons
    assert "1 of 1 FusedGemm are gone" in reasons
    assert found.layers[0].name == "fc1" and found.layers[0].delta_ms == 0.5
    assert compare_engines(engine_of(), engine_of()).reasons == (
        "no layer has a time, so nothing can be said of what is slower",
    )


def test_inspect_as_a_module_does_not_shadow_pythons_own():
    done = subprocess.run([sys.executable, "-m", "engine.inspect", "--help"], cwd=ROOT, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0 and "--diff" in done.stdout
    assert inspect_engine.__module__ == "engine.inspect.report"
