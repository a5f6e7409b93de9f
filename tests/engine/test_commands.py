"""build_engine.py and engine.run as a user calls them: outputs, exit codes, one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from engine.passes.qdq import prepare_for_target
from tests.engine.graphs import WIDTH, linear_model, run_plain, samples

ROOT = Path(__file__).parents[2]


def call(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("engines")
    onnx.save(prepare_for_target(linear_model(num_siblings=2), "onnxruntime"), path / "model.onnx")
    built = call(
        "build_engine.py",
        "--onnx",
        path / "model.onnx",
        "--backend",
        "onnxruntime",
        "--shapes",
        "x:4x16",
        "--threads",
        1,
        "--out",
        path / "engine",
        "--json",
    )
    assert built.returncode == 0, built.stderr
    assert json.loads(built.stdout)["products"]["int8"] == ["lin0", "lin1"]
    return path


def test_run_pads_the_last_batch_cuts_it_and_passes_labels_through(folder, tmp_path):
    labels = np.arange(10)
    np.savez(tmp_path / "feeds.npz", **samples(10), _labels=labels)
    out = tmp_path / "outputs.npz"
    done = call(
        "-m", "engine.run", "--engine", folder / "engine", "--feeds", tmp_path / "feeds.npz", "--out", out, "--json"
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert (row["num_samples"], row["batch_size"]) == (10, 4) and row["latency_ms_p50"] > 0
    with np.load(out) as outputs:
        np.testing.assert_array_equal(outputs["_labels"], labels)
        for name, y in zip(("y0", "y1"), run_plain(folder / "model.onnx", samples(10)), strict=True):
            assert np.isclose(outputs[name], y, atol=1e-4).mean() > 0.99
    again = call("-m", "engine.run", "--engine", folder / "engine", "--feeds", tmp_path / "feeds.npz", "--out", out)
    assert again.returncode == 1 and "exists; choose another --out" in again.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no feeds file .*feeds.npz; make one with 'python -m eval.feeds"),
        (b"PK broken", "is not an npz file of plain arrays"),
        ({"_labels": np.ones(3)}, "holds no samples"),
        ({"x": np.ones((2, WIDTH), np.float32), "z": np.ones((3, 1))}, "different numbers of samples"),
    ],
    ids=["missing", "broken", "empty", "uneven"],
)
def test_bad_feeds_end_in_one_line(tmp_path, content, message):
    from engine.run import read_feeds

    path = tmp_path / "feeds.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_feeds(path)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--backend", "onnxruntim"], 2, "unknown backend 'onnxruntim'"),
        (["--backend", "openvino", "--precision", "int4"], 2, "--precision 'int4'"),
        (["--backend", "onnxruntime", "--shapes", "z:1x16"], 2, "names 'z', which is no input"),
        (["--backend", "onnxruntime", "--threads", "0"], 2, "--threads 0 must be at least 1"),
        (["--backend", "inductor", "--threads", "2"], 2, "--threads 2: engines of inductor run on the GPU; leave"),
        (["--backend", "onnxruntime", "--onnx", "missing.onnx"], 1, "no ONNX file missing.onnx"),
    ],
)
def test_wrong_usage_is_answered_in_one_line(folder, tmp_path, arguments, code, message):
    done = call("build_engine.py", "--onnx", folder / "model.onnx", "--out", tmp_path / "engine", *arguments)
    assert done.returncode == code and message in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "engine").exists()


@pytest.mark.parametrize("flag", ["--batch-size", "--threads", "--iterations"])
def test_a_number_below_1_is_refused_and_not_taken_for_none(tmp_path, capsys, flag):
    from engine.run import main

    with pytest.raises(SystemExit) as stopped:
        main(["--engine", "e", "--feeds", "f", "--out", str(tmp_path / "o"), flag, "0"])
    assert stopped.value.code == 2 and f"{flag} 0 must be at least 1" in capsys.readouterr().err
