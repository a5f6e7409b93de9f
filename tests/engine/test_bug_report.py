"""The bug report: what it says of the machine and the model, that its reproduction runs, and its error statistics."""

from __future__ import annotations

import base64
import gzip
import json
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest

from engine.backend import get_backend
from engine.backends.openvino.backend import OpenVinoBackend
from engine.bug_report import environment
from engine.bug_report.__main__ import main
from engine.bug_report.errors import error_rows
from engine.bug_report.reproduction import FaultCase
from engine.passes.qdq import prepare_for_target
from tests.engine.graphs import WIDTH, linear_model


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(prepare_for_target(linear_model(), "openvino"), "model.onnx")
    return tmp_path / "model.onnx"


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    return int(stopped.value.code or 0)


def test_the_report_holds_every_part_and_its_reproduction_runs(model, capsys, tmp_path):
    arguments = ["--onnx", "model.onnx", "--backend", "openvino", "--shapes", "x:3x16", "--out", "bug.md", "--json"]
    assert call(*arguments) == 0
    row = json.loads(capsys.readouterr().out)
    text = (tmp_path / "bug.md").read_text()
    for part in ("Environment", "Model", "How to reproduce", "Expected behaviour", "Actual behaviour"):
        assert f"## {part}" in text
    assert f"| OpenVINO | {environment.importlib.metadata.version('openvino')} |" in text
    assert "`x` float batchx16" in text and "| y0 | 3x16 |" in text and row["failure"] is None
    script = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[0]) == pytest.approx(row["abs_max"], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("flags", [("avx2",), ("avx2", "avx512_vnni")])
def test_onnxruntimes_reproduction_is_built_as_its_engine_is(tmp_path, monkeypatch, flags):
    monkeypatch.setattr("engine.backend.cpu_flags", lambda: flags)
    has_vnni = "avx512_vnni" in flags
    for target, num_fused in (("onnxruntime", 1), ("openvino", 1 if has_vnni else 0)):  # int8 activations need VNNI
        onnx.save(prepare_for_target(linear_model(), target), tmp_path / "model.onnx")
        case = FaultCase(str(tmp_path / "model.onnx"), {}, f"feeds = {{'x': np.ones((2, {WIDTH}), np.float32)}}")
        text = get_backend("onnxruntime").reproduction(case).text
        assert ("session.x64quantprecision" in text) == (not has_vnni)
        assert "disabled_optimizers=['SkipLayerNormFusion']" in text
        assert (f"{num_fused} products already fused" in text) == bool(num_fused)
        done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_with_outputs_of_elsewhere_the_reproduction_is_the_backends_own(model, tmp_path):
    np.savez("out.npz", y0=np.ones((2, 3), np.float32))
    flags = ["--outputs", "out.npz", "--reference", "out.npz", "--out", "bug.md"]
    assert call("--onnx", model, "--backend", "openvino", *flags) == 0
    text = (tmp_path / "bug.md").read_text()
    assert 'np.load("feeds.npz")' in text and "ov.Core().compile_model" in text and "trtexec" not in text


def test_a_small_model_stands_in_the_text_and_can_be_taken_out_again(model, tmp_path):
    assert call("--onnx", model, "--backend", "onnxruntime", "--out", "bug.md") == 0
    text = (tmp_path / "bug.md").read_text()
    block = text.split("<details>")[1].split("```")[1]
    assert gzip.decompress(base64.b64decode(block)) == model.read_bytes()
    assert call("--onnx", model, "--backend", "onnxruntime", "--out", "small.md", "--no-model") == 0
    assert "<details>" not in (tmp_path / "small.md").read_text()


def test_a_model_whose_weights_stand_in_a_file_of_their_own_is_attached_with_it(model, tmp_path):
    content = onnx.load(model)
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(content, tmp_path / "two.onnx", **options)
    assert call("--onnx", tmp_path / "two.onnx", "--backend", "onnxruntime", "--out", "bug.md") == 0
    text = (tmp_path / "bug.md").read_text()
    assert "<details>" not in text and "attach `two.onnx`, `weights.bin`" in text


def test_a_backend_that_fails_is_the_actual_behaviour(model, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise RuntimeError("the kernel\n is missing")

    monkeypatch.setattr(OpenVinoBackend, "build", refuse)
    assert call("--onnx", model, "--backend", "openvino", "--out", "bug.md") == 0
    assert "It fails: `the kernel is missing`" in (tmp_path / "bug.md").read_text()
    assert "it fails: the kernel is missing" in capsys.readouterr().out


def test_outputs_of_another_machine_give_the_statistics_for_tensorrt(model, tmp_path):
    np.savez("out.npz", y0=np.full((2, 3), 1.5, np.float32), _labels=np.ones(2))
    np.savez("ref.npz", y0=np.ones((2, 3), np.float32))
    (tmp_path / "log.txt").write_text("\n".join(f"line {i}" for i in range(500)))
    arguments = [
        "--onnx",
        model,
        "--backend",
        "tensorrt",
        "--outputs",
        "out.npz",
        "--reference",
        "ref.npz",
        "--out",
        "bug.md",
    ]
    assert call(*arguments, "--shapes", "x:1x16:2x16:4x16", "--log", "log.txt", "--actual", "It is wrong.") == 0
    text = (tmp_path / "bug.md").read_text()
    assert "| y0 | 2x3 | 0.5 | 0.5 | 0.5 | 0.5 | 0.5 | 0.5 | 0 |" in text and "It is wrong." in text
    assert "--fp16 --int8 --avgTiming=1 --minShapes=x:1x16 --optShapes=x:2x16 --maxShapes=x:4x16" in text
    assert "line 499" in text and "line 299\n" not in text and "the last 200 of 500 lines" in text


def test_for_tensorrt_the_report_says_whether_the_file_builds_and_never_names_errors_that_nobody_measured(
    model, tmp_path, monkeypatch
):
    monkeypatch.setattr("engine.backends.tensorrt.backend.find_gpu", lambda: None)
    assert call("--onnx", model, "--backend", "tensorrt", "--shapes", "x:2x16", "--out", "a.md") == 0
    text = (tmp_path / "a.md").read_text()
    assert "It was not built where this was written, and was not run there." in text and "differ as below" not in text
    pytest.importorskip("tensorrt_rtx", reason="pip install -r requirements-tensorrt.txt")
    assert call("--onnx", model, "--backend", "tensorrt_rtx", "--shapes", "x:2x16", "--out", "b.md") == 0
    text = (tmp_path / "b.md").read_text()
    assert "It builds where this was written, and was not run there." in text and "\ntensorrt_rtx --onnx=" in text

    def refuse(*_):
        raise RuntimeError("the build failed: CHECK(status)")

    monkeypatch.setattr("engine.backends.tensorrt.backend.build_engine", refuse)
    assert call("--onnx", model, "--backend", "tensorrt_rtx", "--shapes", "x:2x16", "--out", "c.md") == 0
    assert "the build failed: CHECK(status)`" in (tmp_path / "c.md").read_text()


def test_error_rows_count_what_is_not_finite_and_measure_the_rest():
    x = np.array([1.0, np.nan, 3.0, -np.inf])
    (row,) = error_rows({"y": x}, {"y": np.array([1.0, 2.0, 2.0, 0.0])})
    assert (row.num_not_finite, row.abs_max, row.abs_mean, row.rel_max) == (2, 1.0, 0.5, 0.5)
    with pytest.raises(ValueError, match="output y is missing, expected is"):
        error_rows({}, {"y": x})
    with pytest.raises(ValueError, match=r"output y has shape \(4,\)"):
        error_rows({"y": x}, {"y": x[:2]})


def test_the_environment_says_not_found_instead_of_failing(monkeypatch):
    monkeypatch.setattr(environment.shutil, "which", lambda _: None)
    monkeypatch.setattr(environment.ctypes, "CDLL", lambda *_: (_ for _ in ()).throw(OSError("no library")))
    found = environment.environment()
    assert found["GPU"] == found["cuDNN" if not environment._package("nvidia-cudnn") else "GPU"] == "not found"
    assert found["Python"] and found["numpy"] == np.__version__
    assert environment._dotted(12080) == "12.8" and environment._dotted(13000) == "13.0"


def test_the_gpu_is_what_nvidia_smi_says_and_a_broken_one_is_not_found(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 9.0, 143771 MiB'\necho 'NVIDIA H200, 9.0, 143771 MiB'\n")
    program.chmod(0o755)
    monkeypatch.setattr(environment.shutil, "which", lambda _: str(program))
    assert environment.gpu() == "NVIDIA H200, 9.0, 143771 MiB"
    program.write_text("#!/bin/sh\necho 'Failed to initialize NVML'\nexit 9\n")
    assert environment.gpu() is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--backend", "openvin"], 2, "did you mean openvino"),
        (["--backend", "tensorrt", "--outputs", "o.npz"], 2, "--outputs and --reference belong together"),
        (["--backend", "openvino", "--onnx", "no.onnx"], 1, "no ONNX file no.onnx"),
        (["--backend", "openvino", "--shapes", "z:2x2"], 2, "names 'z', which is no input"),
        (["--backend", "tensorrt", "--log", "no.log"], 1, "there is no log no.log"),
    ],
)
def test_wrong_usage_ends_in_one_line_and_leaves_no_file(model, tmp_path, capsys, arguments, code, message):
    assert call("--onnx", "model.onnx", "--out", "bug.md", *arguments) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "bug.md").exists()
