"""All systems of one shape timed in alternating blocks; what runs the same graph is timed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.cli import one_line
from eval.timing.latency import Feeds, compare
from eval.timing.point_details import Details
from eval.timing.ratios import ratio_of, time_of


@dataclass(frozen=True)
class ShapeTiming:
    """What was timed together.

    Attributes:
        baseline: what ratios are over.
        systems: by system its percentiles and block medians.
        errors: the error that a system's first call raised.
        graphs: by timed system the digest of the graph it runs; others with that graph have its times.
    """

    baseline: str
    systems: dict[str, dict[str, Any]]
    errors: dict[str, str]
    graphs: dict[str, str] = field(default_factory=dict)

    def timed_as(self, name: str, graph: str | None) -> str | None:
        """Return whose times or error a system has: its own, or of one that runs the same graph; None: nobody's."""
        if name in self.systems or name in self.errors:
            return name
        return next((other for other, each in self.graphs.items() if graph is not None and each == graph), None)

    def add_to(self, details: Details, name: str) -> Details:
        """Return the details with a timed system's time and its speed-up over the baseline."""
        block_ms = self.systems[name]["block_ms"]
        time, ratio = time_of(block_ms), ratio_of(self.systems[self.baseline]["block_ms"], block_ms)
        return replace(
            details, latency_ms=time.value, latency_ms_low=time.low, latency_ms_high=time.high,
            baseline=self.baseline, timed_as=name,
            speedup=ratio.value, speedup_low=ratio.low, speedup_high=ratio.high,
            block_ms=tuple(round(ms, 5) for ms in block_ms),
        )  # fmt: skip


def time_systems(
    runners: Mapping[str, Any],
    feeds: Feeds,
    baseline: str,
    rounds: int,
    tick: Callable[[], None] = lambda: None,
    *,
    max_rounds: int | None = None,
    graphs: Mapping[str, str] | None = None,
) -> ShapeTiming:
    """Return the latencies of all runners, measured in alternation (eval.timing.latency.compare).

    Args:
        runners: name -> runner; one that fails on its first call is left out and named.
        baseline: what ratios are over; where it fails, the first that runs.
        rounds, max_rounds: blocks of every runner, more up to max_rounds until every ratio's interval is narrow.
        tick: called after every call, for the progress bar.
        graphs: name -> digest of the graph that it runs, kept with the result.
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
    known = {name: digest for name, digest in (graphs or {}).items() if name in runners}
    if not calls:
        return ShapeTiming(baseline, {}, errors, known)
    chosen = baseline if baseline in calls else next(iter(calls))
    results = compare(calls, own_feeds, chosen, num_blocks=max(rounds, 2), max_blocks=max_rounds)
    systems = {
        name: {
            "p50": result.latency.latency_ms_p50, "p90": result.latency.latency_ms_p90,
            "p99": result.latency.latency_ms_p99, "iterations": result.latency.iterations,
            "block_ms": list(result.block_ms),
        } for name, result in results.items()
    }  # fmt: skip
    return ShapeTiming(chosen, systems, errors, known)


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
