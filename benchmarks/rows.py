"""Result rows of the benchmarks: one JSON object a line, each with what is needed to repeat it."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from engine.hardware import cpu_flags

PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt_rtx",
    "nncf",
    "pytorch-quantization",
    "nvidia-modelopt",
)
RELEVANT_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
NUM_RESAMPLES = 2000


def append_row(path: str | Path, benchmark: str, **values: Any) -> dict[str, Any]:
    """Append one row to the file `path` and return it: `values`, and what is needed to repeat them."""
    row = {"benchmark": benchmark, **values, **provenance()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return row


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Return all rows of the file `path`, oldest first."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def provenance() -> dict[str, Any]:
    """Return the command line, commit, versions, CPU, load and date of this run."""
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "command": " ".join(["python", "-m", main_module(), *map(_quoted, map(without_folders, sys.argv[1:]))]),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "python": platform.python_version(),
        "device": device_name(),
        "cpu_flags": list(cpu_flags()),
        "load": round(os.getloadavg()[0], 2),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def without_folders(word: str) -> str:
    """Return a word of a command line in which the folders of this machine stand as FOLDER: `--model FOLDER/minilm`.

    A path is what begins with a slash, ~ or ../, also behind the = of KEY=PATH; its last name stays.
    """
    return re.sub(r"(^|=)(?:[/~]|\.\./)[^=]*?([^/=@]*)/?(?=@|$)", r"\1FOLDER/\2", word).removesuffix("/")


def main_module() -> str:
    """Return the module that `python -m` runs here, such as benchmarks.accuracy.fidelity or benchmarks.families."""
    spec = sys.modules["__main__"].__spec__
    return Path(sys.argv[0]).stem if spec is None else spec.name.removesuffix(".__main__")


def device_name() -> str:
    """Return the GPU's name where torch sees one, else the CPU's."""
    try:
        import torch
    except ImportError:
        return cpu_name()
    return torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()


def cpu_name() -> str:
    """Return the CPU's name, its number of cores here, and the instruction flags that decide INT8 speed."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = [flag for flag in RELEVANT_FLAGS if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.processor())}, {os.cpu_count()} cores, {' '.join(flags)}"


def median_interval(values: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Return the median of `values` and its 95 % bootstrap interval (percentile method)."""
    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(array), (NUM_RESAMPLES, len(array)))
    low, high = np.percentile(np.median(array[picks], axis=1), [2.5, 97.5])
    return float(np.median(array)), float(low), float(high)


def _git(*words: str) -> str | None:
    result = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _quoted(word: str) -> str:
    return f'"{word}"' if " " in word else word
