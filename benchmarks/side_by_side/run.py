"""Runs a tool's recipe in the tool's own environment and says what it cost."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.runtimes import Artifact
from benchmarks.side_by_side.tools import Tool

ROOT = Path(__file__).parents[2]
COST = Path(__file__).parent / "cost.py"
# Nothing is fetched or reported while a tool runs: the job is done from files alone.
OFFLINE = {"HF_HUB_OFFLINE": "1", "OLIVE_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Cost:
    """What one run of a recipe took: seconds with all processes it started, and the largest of them in bytes."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


@dataclass(frozen=True)
class Job:
    """What every tool is given: the float model's folder, the file of sentences, and how long it may take."""

    model: Path
    samples: Path
    limit_s: float


def run_recipe(tool: Tool, python: Path, job: Job, out: Path) -> tuple[Cost, Artifact]:
    """Run a recipe once in the fresh folder `out`; return its cost and the INT8 file that it left.

    Raises: RuntimeError: it failed or took too long; FileNotFoundError: it left no INT8 file.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    log, scratch = out.with_suffix(".log"), out.with_suffix(".scratch")
    shutil.rmtree(scratch, ignore_errors=True)  # a data set's cache of the run before would make this one quicker
    scratch.mkdir()
    interpreter = [str(python)] if tool.path.suffix == ".py" else ["bash", "-eu"]
    command = [*interpreter, str(tool.path), str(job.model), str(job.samples), str(out), *tool.arguments]
    paths = {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "HF_HOME": str(scratch)}
    if tool.environment == "int8kit":
        paths["PYTHONPATH"] = str(ROOT)  # this project as it stands here, wherever the recipe runs
    measured = subprocess.Popen(
        [sys.executable, "-S", str(COST), str(job.limit_s), str(log), *command],
        env=os.environ | OFFLINE | paths, cwd=scratch, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        printed, _ = measured.communicate()
    finally:  # an interrupted measurement ends its recipe
        measured.terminate()
        measured.wait()
    cost = json.loads(printed)
    if (status := cost.pop("status")) != 0:
        raise RuntimeError(f"took over {job.limit_s:g} s" if status is None else last_error(log, job))
    return Cost(**cost), tool.artifact(out)


def last_error(log: Path, job: Job) -> str:
    """Return the last line that a failed recipe printed, without the paths of this machine."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    text = lines[-1][:300] if lines else "ended without a word"
    for path, name in ((job.model, "MODEL"), (job.samples, "SAMPLES"), (log.with_suffix(""), "OUT")):
        text = text.replace(str(path), name)
    return re.sub(r"(?<![\w./])/(?:[^\s/'\":]+/)+", "", text)  # of any other path its last name stays


def versions_of(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of `packages` in the environment of `python`."""
    code = "import importlib.metadata as m, sys; print(*(m.version(name) for name in sys.argv[1:]))"
    done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True)
    return dict(zip(packages, done.stdout.split(), strict=True))
