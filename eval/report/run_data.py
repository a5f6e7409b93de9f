"""What a report knows: a run folder's rows and side files, and the questions the sections ask of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.backend import BACKENDS, get_backend
from eval.metrics.types import Metric
from eval.sweep.grid import (
    COMPILED,
    DYNAMIC,
    FASTEST,
    PYTORCH,
    Shape,
    SweepOptions,
    System,
    baseline_of,
    options_from_dict,
    primary_shape,
    shapes_of,
    systems_of,
)
from eval.sweep.run_folder import ANALYSIS, LOAD, RunFolder, SweepRow
from eval.sweep.store import TIMELINE_FILE

SEARCH = "search"  # the folder in a run's own that may hold a search of the same model
NAMES = {
    ("fp32", PYTORCH): "PyTorch eager",
    (COMPILED, PYTORCH): "PyTorch compiled",
    (FASTEST, "onnxruntime"): "fastest float ONNX Runtime",
    (DYNAMIC, "onnxruntime"): "ONNX Runtime dynamic INT8",
}


@dataclass(frozen=True)
class RunData:
    """One run, read once."""

    run: RunFolder
    manifest: dict[str, Any]
    rows: tuple[SweepRow, ...]

    @cached_property
    def options(self) -> SweepOptions:
        return options_from_dict(self.manifest["options"])

    @cached_property
    def systems(self) -> list[System]:
        """Every system of the grid."""
        return systems_of(self.options)

    @cached_property
    def shapes(self) -> list[Shape]:
        """Every shape, by batch size, then length."""
        return sorted(shapes_of(self.options), key=lambda s: (s.batch_size, s.sequence_length or 0))

    @cached_property
    def primary(self) -> Shape:
        """The shape that summaries quote."""
        measured = {row.shape for row in self.rows if row.row.latency_ms_p50 is not None}
        wanted = primary_shape(self.options)
        return wanted if wanted.name in measured or not measured else next(
            shape for shape in shapes_of(self.options) if shape.name in measured)  # fmt: skip

    @cached_property
    def baseline(self) -> System:
        """What speed-ups are over: what the rows say, which an earlier version chose otherwise."""
        named = next((row.details.baseline for row in self.rows if row.details.baseline), None)
        return next((system for system in self.systems if system.name == named), None) or baseline_of(self.systems)

    @cached_property
    def _by_point(self) -> dict[tuple[str, str], SweepRow]:
        return {(row.system, row.shape): row for row in self.rows}

    def row(self, system: System, shape: Shape | None = None) -> SweepRow | None:
        """Return the row of a system at a shape (the primary one), None where it was not measured."""
        return self._by_point.get((system.name, (shape or self.primary).name))

    def named_row(self, system: str, shape: str) -> SweepRow | None:
        """Return the row of a system and a shape by their names if it is ok and timed."""
        row = self._by_point.get((system, shape))
        return row if row is not None and row.row.status == "ok" and row.row.latency_ms_p50 is not None else None

    def ok(self, system: System, shape: Shape | None = None) -> SweepRow | None:
        """Return the row if it is ok."""
        row = self.row(system, shape)
        return row if row is not None and row.row.status == "ok" else None

    def timed(self, system: System, shape: Shape | None = None) -> SweepRow | None:
        """Return the row if it is ok and has a latency."""
        row = self.ok(system, shape)
        return row if row is not None and row.row.latency_ms_p50 is not None else None

    @cached_property
    def task(self) -> str:
        """The task's name, as the rows have it: the options hold the path of a user's own."""
        return next((row.row.task for row in self.rows if row.row.task), self.options.task)

    @cached_property
    def metric(self) -> Metric | None:
        """What the rows' primary metric is; None where nothing was scored."""
        return next((row.row.scored_by for row in self.rows if row.row.metric_name), None)

    @cached_property
    def float_metric(self) -> float | None:
        """The float model's metric: PyTorch's row, else any float row, at the primary shape."""
        order = sorted((s for s in self.systems if not s.is_int8), key=lambda s: (s.backend != PYTORCH, s.method))
        values = [row.row.metric for s in order if (row := self.ok(s)) is not None and row.row.metric is not None]
        return values[0] if values else None

    def loss(self, system: System) -> float | None:
        """Return by how much the metric is worse than the float model's (`Metric.loss`), at the primary shape."""
        row = self.ok(system)
        if row is None or row.row.metric is None or self.float_metric is None or self.metric is None:
            return None
        return self.metric.loss(row.row.metric, self.float_metric)

    @cached_property
    def int8_systems(self) -> list[System]:
        """INT8 systems with a latency at the primary shape: what may be recommended."""
        return [s for s in self.systems if s.is_int8 and self.timed(s)]

    @cached_property
    def float_systems(self) -> list[System]:
        """Systems without INT8 (fp32, fp16, bf16) with a latency at the primary shape."""
        return [s for s in self.systems if not s.is_int8 and self.timed(s)]

    @cached_property
    def analysis(self) -> dict[str, Any]:
        return self.run.read_json(ANALYSIS) or {}

    @cached_property
    def load(self) -> dict[str, Any]:
        return self.run.read_json(LOAD) or {}

    @cached_property
    def search(self) -> dict[str, Any]:
        """What a search in the run's folder `search` says; empty where there is none of this model and data."""
        folder, own = RunFolder(self.run.path / SEARCH), self.manifest.get("identity", {})
        asked = folder.read_json("search_manifest.json") or {}
        is_same = all(asked.get(key) == own.get(key) for key in ("model_digest", "data_digest"))
        return (folder.read_json("search.json") or {}) if asked and is_same else {}

    @cached_property
    def timeline(self) -> list[dict[str, Any]]:
        """The steps of the build, in order; a line that a kill cut short is left out."""
        path = self.run.artifacts / TIMELINE_FILE
        steps = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                steps.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return sorted(steps, key=lambda step: step["started"])

    def system_named(self, name: str) -> System:
        """Return the system of a row's name."""
        return next(system for system in self.systems if system.name == name)


def read_run(path: str | Path) -> RunData:
    """Return a run for reporting. Raises: FileNotFoundError, ValueError: no run, broken or foreign rows, or no rows."""
    run = RunFolder(Path(path))
    last = {(row.system, row.shape): row for row in run.rows()}  # a point measured again has two rows
    data = RunData(run, run.manifest(), tuple(sorted(last.values(), key=lambda row: row.number)))
    if not data.rows:
        raise ValueError(f"{path} holds no rows yet; let 'python -m eval.sweep --out {path} ...' measure some")
    return data


def label(system: System) -> str:
    """Return a system's name for a reader, e.g. "INT8 max, int8_linear, ONNX Runtime"."""
    known = NAMES.get((system.method, system.backend))
    if known and system.recipe is None:
        return known
    runtime = runtime_title(system.backend)
    recipe = short_recipe(system.recipe)
    return f"{system.method} {recipe}, {runtime}" if recipe else f"{system.method}, {runtime}"


def runtime_title(backend: str) -> str:
    """Return a runtime's name for a reader, a backend's own word where it is not registered here."""
    if backend == PYTORCH:
        return "PyTorch"
    return get_backend(backend).info.title if backend in BACKENDS else backend


def short_recipe(recipe: str | None) -> str:
    """Return a recipe's name without its folder and suffix."""
    return Path(recipe).stem if recipe and recipe.endswith((".yaml", ".yml")) else recipe or ""
