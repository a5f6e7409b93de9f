"""Result rows: one JSON object a line, appended whole, read back with a check of the schema.

What was not measured is null, never 0.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.backend import backend_infos
from eval.metrics.types import METRICS, Metric, get_metric, metric_from_dict
from quant.recipe import METHODS

SCHEMA = 1
QAT = "qat"
FLOAT_TYPES = ("fp32", "fp16", "bf16")
STATUSES = ("ok", "failed", "skipped")
PACKAGES = ("torch", "transformers", "numpy", "onnx")  # and each backend's own


@dataclass(frozen=True)
class ResultRow:
    """One measurement; range and direction of a metric are its own."""

    status: str = "ok"
    """ok, failed or skipped."""
    error: str | None = None
    """Why it failed or was skipped."""
    command: str | None = None
    """What made it."""
    model: str | None = None
    task: str | None = None
    split: str | None = None
    num_samples: int | None = None
    """How many were scored."""
    recipe: str | None = None
    recipe_digest: str | None = None
    """Of the resolved recipe."""
    calibrator: str | None = None
    """What made the ranges; null for float."""
    training: str | None = None
    """"qat" or null."""
    seed: int | None = None
    """Of the calibration draw."""
    backend: str | None = None
    """The runtime, or pytorch."""
    precision: str | None = None
    """Type of everything that is not INT8."""
    batch_size: int | None = None
    sequence_length: int | None = None
    """Tokens of a sample; null for images."""
    metric_name: str | None = None
    metric_type: Metric | None = None
    """Its range and direction; null in older rows: METRICS has their names."""
    metric: float | None = None
    metric_low: float | None = None
    metric_high: float | None = None
    """The 95 % interval reaches from `metric_low` to this."""
    mcnemar_p: float | None = None
    """The exact test's against the reference; null where nothing is right or wrong."""
    loss_low: float | None = None
    loss_high: float | None = None
    """The 95 % interval of the paired loss against the reference ends here; above 0 is worse."""
    error_abs_max: float | None = None
    error_abs_mean: float | None = None
    error_abs_median: float | None = None
    """Of |output - reference output| over all values."""
    error_rel_max: float | None = None
    error_rel_mean: float | None = None
    error_rel_median: float | None = None
    """The same over |reference output|."""
    cosine: float | None = None
    sqnr_db: float | None = None
    """Signal to quantization noise."""
    latency_ms_p50: float | None = None
    latency_ms_p90: float | None = None
    latency_ms_p99: float | None = None
    """Percentiles of a call, in milliseconds."""
    iterations: int | None = None
    throughput_per_s: float | None = None
    """Samples a second."""
    size_bytes: int | None = None
    """Of what is loaded."""
    num_flips: int | None = None
    """Predictions that differ from the reference's."""
    threads: int | None = None
    padding: str | None = None
    """longest or max."""
    schema: int = SCHEMA
    commit: str | None = None
    dirty: bool | None = None
    """Whether files differed from the commit."""
    versions: dict[str, str] | None = None
    """Of the packages that a result depends on."""
    device: str | None = None
    driver: str | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.status not in STATUSES:
            problems.append(f"status '{self.status}' (allowed: {', '.join(STATUSES)})")
        if self.status == "failed" and not self.error:
            problems.append("status failed without an error text")
        problems += self._metric_problems()
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                problems.append(f"{field.name} {value} (use null for what was not measured)")
        if problems:
            raise ValueError(f"result row is not valid: {'; '.join(problems)}")

    def _metric_problems(self) -> list[str]:
        values = {name: getattr(self, name) for name in ("metric", "metric_low", "metric_high")}
        values = {name: value for name, value in values.items() if value is not None}
        if not values:
            return []
        if self.metric_name is None:
            return [f"metric {self.metric} without metric_name (known: {', '.join(METRICS)})"]
        try:
            metric = self.scored_by
            assert metric is not None
        except ValueError as error:
            return [str(error)]
        return [f"{name} {value} ({metric.name} lies in [{metric.low:g}, {metric.high:g}])"
                for name, value in values.items() if not metric.low <= value <= metric.high]  # fmt: skip

    @property
    def scored_by(self) -> Metric | None:
        """What the metric is, by the row itself or its name; None where nothing was scored."""
        return self.metric_type or (get_metric(self.metric_name) if self.metric_name else None)

    def as_dict(self) -> dict[str, Any]:
        """Return the row as plain JSON values."""
        return asdict(self) | {"metric_type": self.metric_type.as_dict() if self.metric_type else None}


FIELD_NAMES = tuple(field.name for field in fields(ResultRow))


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Return the fields that say where a row was made: commit, dirty, versions, device, driver."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain")
    return {
        "commit": commit,
        "dirty": None if commit is None or status is None else bool(status),
        "versions": package_versions(),
        "device": device_name(device),
        "driver": _first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
        if device != "cpu"
        else None,
    }


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that a result depends on, a backend's by its
    name."""
    versions = {"python": platform.python_version()}
    packages = {name: (name,) for name in PACKAGES} | {n: info.packages for n, info in backend_infos().items()}
    for name, distributions in packages.items():
        for each in reversed(distributions):  # the first that is installed counts
            with suppress(metadata.PackageNotFoundError):
                versions[name] = metadata.version(each)
    return versions


def device_name(device: str = "cpu") -> str:
    """Return the processor's model name, or the GPU's where `device` is not 'cpu'."""
    if device != "cpu":
        return _first_line(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]) or device
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def append_row(path: str | Path, row: ResultRow) -> None:
    """Append one row as one line, written and synced in one go, so that a kill never leaves half a line behind a good
    one.
    """
    line = (json.dumps(row.as_dict(), sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_rows(path: str | Path) -> list[ResultRow]:
    """Return the rows of a results file, in order.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: on a line that is not JSON, of another schema, or with unknown fields (line number named).
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no results file {path}; write one with 'python -m eval --json >> {path}'")
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            rows.append(_parse_line(line, f"{path}, line {number}"))
    return rows


def _parse_line(line: str, where: str) -> ResultRow:
    try:
        return parse_row(json.loads(line), where)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not a JSON object ({error.msg}); delete the broken line") from None


def parse_row(values: object, where: str) -> ResultRow:
    """Return the row of a parsed line; what an older version did not measure yet is null.

    Raises: ValueError: another schema or unknown fields (`where` is named).
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where}: not a JSON object; delete the broken line")
    if values.get("schema") != SCHEMA:
        raise ValueError(
            f"{where}: schema {values.get('schema')}, this version reads {SCHEMA}; measure again with this version"
        )
    values = _split_method(values)
    if unknown := sorted(set(values) - set(FIELD_NAMES)):
        raise ValueError(f"{where}: unknown fields {', '.join(unknown)}; the row is of a newer version, or damaged")
    try:
        kind = values.get("metric_type")
        return ResultRow(**_as_perplexity(values) | {"metric_type": metric_from_dict(kind) if kind else None})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None


def split_method(method: str | None) -> tuple[str | None, str | None]:
    """Return (calibrator, training) of a sweep's method; of `smoothquant` the recipe knows the calibrator: None."""
    return (method if method in METHODS else None), (method if method == QAT else None)


def _split_method(values: dict[str, Any]) -> dict[str, Any]:
    """Return a row's values with `method`, which older rows have, in the fields that it mixed."""
    if "method" not in values:
        return values
    method = values["method"]
    calibrator, training = split_method(method)
    precision = values.get("precision") or (method if method in FLOAT_TYPES else None)  # of a point that failed
    split = {"precision": precision, "calibrator": calibrator, "training": training}
    return {name: x for name, x in values.items() if name != "method"} | split


def _as_perplexity(values: dict[str, Any]) -> dict[str, Any]:
    """Return a row's values with 1 / perplexity, as rows before 0.2 held it, turned into the perplexity."""
    if values.get("metric_name") != "inverse_perplexity":
        return values
    ends = {"metric": "metric", "metric_low": "metric_high", "metric_high": "metric_low"}  # the inverse swaps the ends
    turned = {name: 1 / values[old] if values.get(old) else None for name, old in ends.items()}
    return {**values, **turned, "metric_name": "perplexity"}


def _git(*words: str) -> str | None:
    """Return the output of a git command in this project's own checkout, None where there is none."""
    try:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _first_line(words: list[str]) -> str | None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None
