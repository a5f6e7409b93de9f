"""A new backend is one file and one line: `toy_backend.py` goes through every command with nothing else changed."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import build_engine
from engine import run
from engine.backend import BACKENDS, get_backend
from engine.bug_report import __main__ as bug_report
from engine.inspect import __main__ as inspect_engine
from engine.manifest import read_manifest
from engine.passes.qdq import prepare_for_target
from eval.load import measure_system
from eval.report.__main__ import write_report
from eval.results import package_versions
from eval.sweep.run import run_sweep
from eval.timing import latency
from tests.engine.graphs import linear_model, run_plain, samples
from tests.eval import tiny
from tests.eval.sweep.sweeps import COMMAND, sweep_options

ROOT = Path(__file__).parents[3]
# Files beside the backends' own that may hold a backend's name as a whole string, and what it is there.
NAMED = {
    "engine/backend.py": "the registry",
    "engine/passes/qdq.py": "export targets",
    "engine/passes/targets.py": "export targets",
    "engine/lint": "consumers: export targets, and what is known of them",
    "export.py": "export targets, for its help",
    "eval/demo.py": "a default",
    "eval/parity/check.py": "a default",
    "eval/parity/layers.py": "a default",
    "eval/search/__main__.py": "a default",
    "eval/sweep/__main__.py": "a default",
    "eval/sweep/grid.py": "references that are ONNX Runtime's own: its fastest float session, its dynamic INT8",
    "eval/sweep/bench.py": "the same",
    "eval/sweep/references.py": "the same",
    "eval/report/run_data.py": "the same",
}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The one line."""
    monkeypatch.setitem(BACKENDS, "toy", "tests.engine.backends.toy_backend")


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(prepare_for_target(linear_model(), get_backend("toy").target()), "model.onnx")
    return tmp_path / "model.onnx"


def call(main, *words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, words)])
    return int(stopped.value.code or 0)


def build(source, *words: object) -> int:
    flags = ("--onnx", source, "--backend", "toy", "--shapes", "x:4x16", "--out", "engine")
    return call(build_engine.main, *flags, *words)


def test_no_other_file_names_a_backend():
    """What decides by a name would have to learn of the next backend; what is declared in `info` need not."""
    paths = [
        *ROOT.glob("*.py"),
        *(path for room in ("engine", "eval", "calib") for path in (ROOT / room).rglob("*.py")),
    ]
    names = {name for name in BACKENDS if name != "toy"}
    found = {
        str(path.relative_to(ROOT))
        for path in paths
        if any(isinstance(node, ast.Constant) and node.value in names for node in ast.walk(ast.parse(path.read_text())))
    }
    own = {each for each in found if each.startswith("engine/backends/")}
    assert own  # the search finds what there is
    assert {each for each in found - own if not each.startswith(tuple(NAMED))} == set()


def test_it_builds_with_its_own_options_and_rebuilds_from_the_manifest(source, tmp_path, capsys):
    assert build(source, "--chatter", "7") == 2
    assert "--chatter 7 must be 0 to 3" in capsys.readouterr().err
    assert build(source, "--refit") == 2
    assert "--refit is only for --backend tensorrt and tensorrt_rtx, not toy" in capsys.readouterr().err
    assert build(source, "--chatter", "0", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["backend"], row["options"], row["saturation"]) == ("toy", {"chatter": 0}, "impossible")
    assert call(build_engine.main, "--rebuild", "engine.json", "--out", "again") == 0
    assert (tmp_path / "again").read_bytes() == (tmp_path / "engine").read_bytes()
    assert read_manifest(tmp_path / "again").options == {"chatter": 0}
    flags = ("--onnx", source, "--backend", "openvino", "--out", "other", "--chatter", "1")
    assert call(build_engine.main, *flags) == 2
    assert "--chatter is only for --backend toy, not openvino" in capsys.readouterr().err


def test_its_engines_run_and_carry_load(source, tmp_path):
    assert build(source) == 0
    x = samples(4)
    np.savez("feeds.npz", **x)
    assert call(run.main, "--engine", "engine", "--feeds", "feeds.npz", "--out", "out.npz") == 0
    np.testing.assert_allclose(np.load("out.npz")["y0"], run_plain(onnx.load(source), x)[0], atol=1e-5)
    opened = []

    def open_runner():
        opened.append(get_backend("toy").load("engine"))
        return opened[-1]

    points = measure_system(open_runner, x, [2], 0.05, "toy", rates=[20.0])
    assert len(points) == 2 and len(opened) == 1  # it declares that one runner serves many threads


def test_its_engines_are_inspected_and_its_faults_reported(source, tmp_path, capsys):
    assert build(source) == 0
    capsys.readouterr()
    assert call(inspect_engine.main, "engine", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert row["backend"] == "toy" and row["int8_percent"] is None
    assert "MatMul" in {layer["type"] for layer in row["layers"] if layer["precision"] == "fp32"}
    flags = ("--onnx", "model.onnx", "--backend", "toy", "--shapes", "x:4x16", "--out", "bug.md", "--json")
    assert call(bug_report.main, *flags) == 0
    row, text = json.loads(capsys.readouterr().out), (tmp_path / "bug.md").read_text()
    assert row["failure"] is None and row["abs_max"] < 1e-5
    assert f"| Toy Evaluator | {onnx.__version__} |" in text and "trtexec" not in text
    script = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and float(done.stdout.split()[0]) < 1e-5, done.stderr


def test_it_is_swept_and_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "PAUSE_S", 0.0)
    model = tiny.save(tiny.bert(num_layers=1), tmp_path / "model")
    data = str(tiny.write_sentences(tmp_path / "data"))
    options = sweep_options(model, data, backends=("toy",), batch_sizes=(2,), build_arguments="--chatter 0")
    result = run_sweep(options, tmp_path / "run", COMMAND)
    assert result.counts == {"ok": 3}, [row.row.error for row in result.run.rows()]  # PyTorch, and two of the toy
    found = {row.system: row for row in result.run.rows()}
    int8 = found["max int8_linear toy"]
    assert int8.row.latency_ms_p50 > 0 and int8.row.versions["toy"] == onnx.__version__ == package_versions()["toy"]
    assert not int8.details.products.int8 and int8.details.products.float  # as its engine says
    engine = next(path for path in result.run.artifacts.glob("engine-*/engine"))
    assert read_manifest(engine).target == "openvino" and read_manifest(engine).shapes  # static, as it declares
    write_report(tmp_path / "run")
    text = (tmp_path / "run" / "report.md").read_text()
    assert "max int8_linear, Toy Evaluator" in text
