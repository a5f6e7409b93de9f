"""`python -m eval.reproduce RUN`: rebuild one row of a sweep from its manifest and say what came out the same.

Calibration, export, build and scoring are done anew in a temporary folder; nothing of the run is used but its options.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.cli import CommandParser, UsageError, print_result, run_command
from eval.metrics.types import Metric, get_metric
from eval.report.advice import advise
from eval.report.run_data import RunData, read_run
from eval.results import device_name, package_versions
from eval.sweep.grid import System
from eval.sweep.run_folder import SweepRow
from eval.sweep.store import ArtifactStore

if TYPE_CHECKING:  # with torch and transformers: imported once the flags are right
    from eval.sweep.bench import Bench

LIKE_RATIO = 1.25  # latencies of two runs on one machine differ by so much on a busy day
MAX_LOSS = 0.01


@dataclass(frozen=True)
class Reproduction:
    """What a rebuilt row came to. None: it does not apply (a float row has no scales, a simulated one no latency)."""

    row: int
    system: str
    shape: str
    num_scales: int | None
    num_scales_equal: int | None
    is_source_equal: bool
    is_onnx_equal: bool | None
    metric: float | None
    metric_before: float | None
    latency_ms: float | None
    latency_ms_before: float | None
    is_latency_like: bool | None
    differs: tuple[str, ...]
    metric_name: str | None = None
    metric_type: Metric | None = None

    @property
    def is_same(self) -> bool:
        """Whether scales (to the bit) and metric are the same."""
        return self.is_source_equal and self.metric == self.metric_before

    def _scales_in_words(self) -> str:
        if self.is_source_equal:  # the digest covers every scale and weight: the run's checkpoint is not needed
            return f"all {self.num_scales} scales and weights equal to the bit"
        if self.num_scales_equal is None:
            return f"{self.num_scales} scales, not all as they were (the run's checkpoint is gone: no telling which)"
        return f"{self.num_scales_equal} of {self.num_scales} scales equal to the bit"

    def __str__(self) -> str:
        parts = []
        if self.num_scales is not None:
            parts.append(self._scales_in_words())
        if self.is_onnx_equal is not None:
            parts.append(f"ONNX file {'equal' if self.is_onnx_equal else 'differs'}")
        if self.metric is not None and self.metric_before is not None:
            kind = self.metric_type or get_metric(self.metric_name or "accuracy")
            before, now = (f"{kind.text(value)}{kind.unit}" for value in (self.metric_before, self.metric))
            same = "the same" if self.metric == self.metric_before else f"against {before}"
            parts.append(f"{kind.name} {now}, {same}")
        if self.latency_ms is not None:
            like = "alike" if self.is_latency_like else "NOT alike"
            parts.append(f"{self.latency_ms:.3g} ms against {self.latency_ms_before:.3g} ms, {like}")
        parts += [f"another {what}" for what in self.differs]
        return f"row {self.row}, {self.system} at {self.shape}: {'; '.join(parts)}"


def reproduce(data: RunData, row: SweepRow) -> Reproduction:
    """Return what rebuilding a row from the run's options gives.

    Raises: ValueError: the model or the data are not those of the run.
    """
    from eval.sweep.bench import Bench
    from eval.sweep.workshop import Workshop
    from eval.timing.in_turn import time_systems

    system = data.system_named(row.system)
    shape = next(shape for shape in data.shapes if shape.name == row.shape)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = Bench(Workshop(data.options, ArtifactStore(folder)), "python -m eval.reproduce")
        _check_identity(data, bench)
        opened = stack.enter_context(bench.open(system, shape))
        fresh = bench.score(opened, shape)
        latency_ms = None
        if row.row.latency_ms_p50 is not None:
            timing = time_systems({system.name: opened.runner}, bench.feeds(shape), system.name, data.options.rounds)
            latency_ms = float(np.median(timing.systems[system.name]["block_ms"])) if timing.systems else None
        before, after = row.details.digests, opened.details.digests
        num_scales, num_equal = _scales(data, bench, system) if system.recipe else (None, None)
        return Reproduction(
            row.number, row.system, row.shape, num_scales, num_equal, after.source == before.source,
            after.onnx == before.onnx if after.onnx and before.onnx else None, fresh.metric,
            row.row.metric, latency_ms, row.row.latency_ms_p50, _is_like(latency_ms, row), _differs(data),
            row.row.metric_name, row.row.scored_by,
        )  # fmt: skip


def _check_identity(data: RunData, bench: Bench) -> None:
    identity = data.manifest["identity"]
    found = {"model_digest": bench.workshop.model_digest, "data_digest": bench.data_digest,
             "samples_digest": bench.workshop.samples.digest, **bench.task_digest}  # fmt: skip
    wrong = [name for name, value in found.items() if identity.get(name) != value]
    if wrong:
        raise ValueError(f"{data.run.path} was measured on another {' and '.join(wrong)}: get the model, data and "
                         "task it names, as they were")  # fmt: skip


def _scales(data: RunData, bench: Bench, system: System) -> tuple[int, int | None]:
    """Return how many scales there are and how many equal those of the run, None where its checkpoint is gone."""
    from safetensors.numpy import load_file

    from eval.sweep.bench import Bench
    from eval.sweep.workshop import Workshop
    from quant.checkpoint import QUANTIZER_FILE

    fresh = load_file(bench.workshop.checkpoint(system) / QUANTIZER_FILE)
    num = sum(name.endswith("/amax") for name in fresh)
    stored = Bench(Workshop(data.options, ArtifactStore(data.run.artifacts)), "")
    with _only_reading(stored):
        try:
            before = load_file(stored.workshop.checkpoint(system) / QUANTIZER_FILE)
        except FileNotFoundError:
            return num, None
    equal = [n for n in fresh if n.endswith("/amax") and n in before and fresh[n].tobytes() == before[n].tobytes()]
    return num, len(equal)


@contextmanager
def _only_reading(bench: Bench) -> Iterator[None]:
    """Let a store give what it has and make nothing."""
    store = bench.workshop.store

    class ReadOnly(ArtifactStore):
        def make(self, kind, inputs, build, label=""):
            path = self.path_of(kind, inputs)
            if not path.is_dir():
                raise FileNotFoundError(f"{path} is gone")
            return path

    bench.workshop.store = ReadOnly(store.folder)
    yield


def _is_like(latency_ms: float | None, row: SweepRow) -> bool | None:
    if latency_ms is None or row.row.latency_ms_p50 is None:
        return None
    low, high = row.details.latency_ms_low, row.details.latency_ms_high
    return None if low is None or high is None else low / LIKE_RATIO <= latency_ms <= high * LIKE_RATIO


def _differs(data: RunData) -> tuple[str, ...]:
    """Return what about this machine is not as it was: that explains differences, and does not excuse them."""
    here = device_name("cuda" if data.options.device != "cpu" else "cpu")
    versions = package_versions()
    wrong = [] if here == data.manifest["device"] else [f"device ({here}, then {data.manifest['device']})"]
    old = data.manifest["versions"]
    wrong += [f"{n} ({versions.get(n)}, then {old.get(n)})" for n in sorted(set(versions) | set(old))
              if versions.get(n) != old.get(n)]  # fmt: skip
    return tuple(wrong)


def choose_row(data: RunData, number: int | None) -> SweepRow:
    """Return the row of a number; without one the recommended configuration's, else the first INT8 row that is ok.

    Raises: UsageError: no such row, or one that was not measured.
    """
    ok = [row for row in data.rows if row.row.status == "ok"]
    if number is None:
        advised = advise(data, MAX_LOSS).row
        chosen = advised or next((row for row in ok if row.row.recipe), ok[0] if ok else None)
    else:
        chosen = next((row for row in ok if row.number == number), None)
    if chosen is None:
        numbers = f"{ok[0].number} to {ok[-1].number}" if ok else "none"
        raise UsageError(f"--row {number}: there is no such measured row; rows that are ok: {numbers}")
    return chosen


def command(arguments: argparse.Namespace) -> None:
    """Rebuild one row and print one line; exit 1 where scales or metric differ."""
    data = read_run(arguments.run)
    result = reproduce(data, choose_row(data, arguments.row))
    print_result({**dataclasses.asdict(result), "is_same": result.is_same}, str(result), arguments.json)
    if not result.is_same:
        raise ValueError("the row was not reproduced: scales, weights or metric differ (see the line above)")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    logging.basicConfig(stream=sys.stderr, level=logging.ERROR, format="%(message)s")
    parser = CommandParser("python -m eval.reproduce", "Rebuild one row of a sweep and say what came out the same.")
    parser.add_argument("run", help="run folder of eval.sweep")
    parser.add_argument("--row", type=int, help="line of results.jsonl, as the report's tables name it; default the "
                        "recommended configuration's")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    run_command(parser, command, argv)


if __name__ == "__main__":
    main()
