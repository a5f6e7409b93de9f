"""The truth report: real engines of both CPU runtimes, and TensorRT's JSON in the layouts of 8, 10 and 11."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.backend import BuildOptions, get_backend
from engine.backends.onnxruntime import inspect as inspect_ort
from engine.inspect.__main__ import main
from engine.inspect.diff import compare_engines
from engine.inspect.layers import Inspection, Layer
from engine.inspect.report import inspect_engine
from engine.shapes import parse_shapes
from tests.engine.graphs import samples

ROOT = Path(__file__).parents[3]


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
