"""All systems of one shape timed in alternating blocks; intervals, and which of them cannot be told apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.cli import one_line
from eval.latency import Feeds, compare
from eval.metrics import CONFIDENCE

NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class ShapeTiming:
    """What was timed together: by system its percentiles and block medians, or the error that its first call raised."""

    baseline: str
    systems: dict[str, dict[str, Any]]
    errors: dict[str, str]

    def details(self, name: str) -> dict[str, Any]:
        """Return a system's interval, speed-up over the baseline, and the systems that cannot be told apart from it."""
        block_ms = self.systems[name]["block_ms"]
        _, low, high = median_interval(np.asarray(block_ms))
        ratio = median_interval(np.asarray(self.systems[self.baseline]["block_ms"]) / np.asarray(block_ms))
        ties = [other for other in self.systems
                if other != name and is_tie(self.systems[other]["block_ms"], block_ms)]  # fmt: skip
        return {
            "latency_ms_low": low, "latency_ms_high": high, "baseline": self.baseline, "ties": ties,
            "speedup": ratio[0], "speedup_low": ratio[1], "speedup_high": ratio[2],
            "block_ms": [round(ms, 5) for ms in block_ms],
        }  # fmt: skip


def time_systems(
    runners: Mapping[str, Any], feeds: Feeds, baseline: str, rounds: int, tick: Callable[[], None] = lambda: None
) -> ShapeTiming:
    """Return the latencies of all runners, measured in alternation (eval.latency.compare).

    Args:
        runners: name -> runner; one that fails on its first call is left out and named.
        baseline: what ratios are over; where it fails, the first that runs.
        tick: called after every call, for the progress bar.
    """
    calls: dict[str, _Ticking] = {}
    own_feeds: dict[str, Feeds] = {}
    errors: dict[str, str] = {}
    for name, runner in runners.items():
        try:
            own_feeds[name] = {key: feeds[key] for key in runner.input_names}
            runner(own_feeds[name])
        except Exception as error:  # a runtime may raise anything, and the others go on
            errors[name] = one_line(error)[:300]
            continue
        calls[name] = _Ticking(runner, tick)
    if not calls:
        return ShapeTiming(baseline, {}, errors)
    chosen = baseline if baseline in calls else next(iter(calls))
    results = compare(calls, own_feeds, chosen, num_blocks=max(rounds, 2))
    systems = {
        name: {
            "p50": result.latency.latency_ms_p50, "p90": result.latency.latency_ms_p90,
            "p99": result.latency.latency_ms_p99, "iterations": result.latency.iterations,
            "block_ms": list(result.block_ms),
        } for name, result in results.items()
    }  # fmt: skip
    return ShapeTiming(chosen, systems, errors)


class _Ticking:
    """A runner that tells the progress bar of every call."""

    def __init__(self, runner: Any, tick: Callable[[], None]) -> None:
        self._runner, self._tick = runner, tick
        self.has_device_clock = getattr(runner, "has_device_clock", False)

    def __call__(self, feeds: Feeds) -> Any:
        outputs = self._runner(feeds)
        self._tick()
        return outputs

    def time(self, feeds: Feeds, iterations: int, warmup: int) -> list[float]:
        """Return milliseconds by the runner's own clock."""
        times: list[float] = self._runner.time(feeds, iterations=iterations, warmup=warmup)
        for _call in range(iterations + warmup):
            self._tick()
        return times


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the median and its 95 % bootstrap interval (percentile method, fixed seed)."""
    picks = np.random.default_rng(0).integers(0, len(values), (NUM_RESAMPLES, len(values)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.median(values[picks], axis=1), [tail, 1 - tail])
    return float(np.median(values)), float(low), float(high)


def is_tie(a_ms: list[float], b_ms: list[float]) -> bool:
    """Return whether two systems cannot be told apart: the interval of their ratio, round by round, holds 1."""
    _, low, high = median_interval(np.asarray(a_ms) / np.asarray(b_ms))
    return low <= 1 <= high
