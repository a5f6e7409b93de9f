"""Every command answers --help and wrong usage without importing torch or transformers, which take ten seconds, and
--help without sympy, which comes with onnx_ir and takes half a second."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "datasets")
HEAVY_FOR_HELP = (*HEAVY, "sympy")
COMMANDS = [
    "train_qat.py", "export.py", "build_engine.py", "calib", "eval", "eval.feeds", "eval.load", "eval.sweep",
    "eval.report", "eval.search", "eval.reproduce", "eval.demo", "engine.lint", "engine.inspect", "engine.run",
    "engine.bug_report", "engine.calibration_cache", "engine.inspect.cupti",
]  # fmt: skip
TRAIN = ["--model", "m", "--task", "sst2", "--out", "no/o"]
# What cannot be right, and a part of the one line that says so.
WRONG = [
    (["train_qat.py", "--modl", "m"], "did you mean --model"),
    (["train_qat.py", "--model", "m", "--task", "sst2", "--out", "o", "--recipe", "int8_ful"], "mean int8_full"),
    (["train_qat.py", "--model", "m", "--task", "sst3", "--out", "no/o"], "sst2"),
    (["export.py", "--checkpoint", "c", "--target", "onnx", "--out", "no/o"], "onnxruntime"),
    (["build_engine.py", "--onnx", "m", "--backend", "onnxruntim", "--out", "no/o"], "did you mean onnxruntime"),
    (["calib", "--model", "m", "--out", "no/o"], "--samples"),
    (["calib", "--model", "m", "--samples", "s", "--method", "mean", "--out", "no/o"], "invalid choice"),
    (["calib", "--model", "m", "--samples", "s", "--recipe", "int8_ful", "--out", "no/o"], "did you mean int8_full"),
    (["calib", "--model", "m", "--samples", "s", "--task", "sst3", "--out", "no/o"], "sst2"),
    (["calib", "--model", "m", "--import-amax", "a", "--task", "sst2", "--out", "no/o"], "not used with --import-amax"),
    (["eval", "--model", "m", "--task", "sst3"], "sst2"),
    (["eval", "--task", "sst2"], "--model"),
    (["eval", "--model", "m", "--task", "sst2", "--onnx", "f"], "--onnx belongs to --layers"),
    (["eval.feeds", "--model", "m", "--task", "sst3", "--out", "no/o"], "sst2"),
    (["eval.feeds", "--model", "m", "--task", "sst2", "--batch-size", "0", "--out", "no/o"], "--batch-size must be"),
    (["eval", "--model", "m", "--task", "sst2", "--batch-size", "0"], "--batch-size must be at least 1"),
    (["eval", "--engine", "e", "--task", "sst2"], "give --reference M or --processor M"),
    (["eval", "--layers", "--outputs", "o", "--task", "sst2"], "--layers compares the layers of --checkpoint"),
    (["eval", "--layers", "--model", "m", "--task", "sst2", "--backend", "onnx"], "has no target to export to"),
    (["calib", "--model", "m", "--import-amax", "a", "--recipe", "int8_smoothquant", "--out", "no/o"], "an import"),
    (["train_qat.py", *TRAIN, "--resume_from_checkpoint", "true"], "leave it out; the same command"),
    (["eval.load", "--model", "m", "--clients", "0"], "--clients takes"),
    (["eval.sweep", "--model", "m", "--task", "sst3", "--out", "no/o"], "sst2"),
    (["eval.sweep", "--model", "m", "--task", "sst2", "--backends", "onnx", "--out", "no/o"], "onnxruntime"),
    (["eval.report", "r", "--max-loss", "2"], "--max-loss"),
]  # fmt: skip
RUN = """
import contextlib, io, json, runpy, sys
heavy, cases, answers = json.loads(sys.argv[1]), json.loads(sys.argv[2]), []
for program, *words in cases:
    sys.argv = [program, *words]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            if program.endswith(".py"):
                runpy.run_path(program, run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__", alter_sys=True)
            code = None
        except SystemExit as ended:
            code = ended.code
    answers.append([code, printed.getvalue(), [name for name in heavy if name in sys.modules]])
print(json.dumps(answers))
"""


def answers_to(cases: list[list[str]], packages: tuple[str, ...] = HEAVY) -> list[tuple[int | None, str, list[str]]]:
    """Return exit code, output and those `packages` that are imported by then, of commands run in one fresh process."""
    words = [sys.executable, "-W", "ignore", "-c", RUN, json.dumps(packages), json.dumps(cases)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return [tuple(each) for each in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int | None, str, list[str]]]:
    answers = answers_to([[name, "--help"] for name in COMMANDS], HEAVY_FOR_HELP)
    return dict(zip(COMMANDS, answers, strict=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_needs_no_torch(helps, name):
    code, printed, heavy = helps[name]
    assert (code, heavy) == (0, []) and "usage:" in printed


def test_wrong_usage_is_one_line_and_needs_no_torch():
    for (words, message), (code, printed, heavy) in zip(WRONG, answers_to([w for w, _ in WRONG]), strict=True):
        assert code in (1, 2) and not heavy, f"{words}: {printed}"
        assert message in printed and printed.count("\n") == 1, f"{words}: {printed}"
