"""Latency of runners: percentiles of one, and a fair comparison of several in alternating blocks.

Spinning threads of one runtime slow the next one, so competitors are never timed back to back without a pause
(compare).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.timing.ratios import MAX_WIDTH, Estimate, ratio_of

Feeds = dict[str, np.ndarray]
CallRunner = Callable[[Feeds], Any]

BLOCK_CALLS = 5
BLOCK_WARMUP = 3
PAUSE_S = 0.1


@dataclass(frozen=True)
class Latency:
    """Percentiles of single calls in milliseconds, warm-up dropped."""

    latency_ms_p50: float
    latency_ms_p90: float
    latency_ms_p99: float
    iterations: int

    def throughput_per_s(self, batch_size: int) -> float:
        """Return samples a second at the median latency."""
        return batch_size * 1000.0 / self.latency_ms_p50


@dataclass(frozen=True)
class Comparison:
    """One runner against the baseline: latency, its blocks' medians, the ratio baseline / runner (above 1: faster)."""

    name: str
    latency: Latency
    block_ms: tuple[float, ...]
    ratio: Estimate


def summarize(latencies_ms: list[float]) -> Latency:
    """Return the percentiles of timed calls. Raises: ValueError: if there are none."""
    if not latencies_ms:
        raise ValueError("no timed calls; --iterations must be at least 1")
    p50, p90, p99 = np.percentile(np.asarray(latencies_ms, dtype=np.float64), [50, 90, 99])
    return Latency(float(p50), float(p90), float(p99), len(latencies_ms))


def time_calls(
    runner: CallRunner, feeds: Feeds, iterations: int, warmup: int = 3, max_seconds: float | None = None
) -> list[float]:
    """Return the milliseconds of each of `iterations` calls after `warmup` dropped ones.

    Args:
        max_seconds: stop once so much time has passed and at least 5 calls are timed; None never stops early.
    """
    for _ in range(warmup):
        runner(feeds)
    latencies_ms: list[float] = []
    started = time.perf_counter()
    for _ in range(iterations):
        before = time.perf_counter()
        runner(feeds)
        after = time.perf_counter()
        latencies_ms.append((after - before) * 1000.0)
        if max_seconds is not None and len(latencies_ms) >= BLOCK_CALLS and after - started > max_seconds:
            break
    return latencies_ms


def measure(runner: Any, feeds: Feeds, iterations: int = 50, warmup: int = 5) -> Latency:
    """Return the latency of a runner, on the device's own clock where it has one (`runner.time`)."""
    if hasattr(runner, "time"):
        return summarize([float(ms) for ms in runner.time(feeds, iterations=iterations, warmup=warmup)])
    return summarize(time_calls(runner, feeds, iterations, warmup))


def compare(
    runners: Mapping[str, CallRunner],
    feeds: Feeds | Mapping[str, Feeds],
    baseline: str | None = None,
    num_blocks: int = 12,
    block_calls: int = BLOCK_CALLS,
    max_blocks: int | None = None,
) -> dict[str, Comparison]:
    """Return every runner's latency and its speed-up over the baseline, measured in alternating blocks of one process.

    Each round gives every runner one block (a pause of 100 ms, 3 warm calls, `block_calls` timed ones), in an order
    that lets a drift of the machine cancel. The ratio of a round is that of the blocks' medians (`eval.timing.ratios`).

    Args:
        runners: name → callable on feeds; at least one.
        feeds: one dict for all, or name → feeds where runners take different inputs.
        baseline: the name whose latency is divided; by default the first.
        num_blocks: rounds, at least 2.
        block_calls: timed calls of one block, at least 5.
        max_blocks: rounds are added in twos up to so many, until the 95 % interval of every ratio is narrower than
            10 %; None adds none.
    Raises: ValueError: on an unknown baseline, too few blocks or too few calls.
    """
    names = list(runners)
    baseline = baseline or (names[0] if names else "")
    if baseline not in runners:
        raise ValueError(f"baseline '{baseline}' is not among the runners: {', '.join(names) or 'none given'}")
    if num_blocks < 2 or block_calls < BLOCK_CALLS:
        raise ValueError(f"compare needs at least 2 blocks of {BLOCK_CALLS} calls, got {num_blocks} of {block_calls}")
    own_feeds = {name: feeds[name] if name in feeds and isinstance(feeds[name], dict) else feeds for name in names}
    calls: dict[str, list[list[float]]] = {name: [] for name in names}
    medians: dict[str, list[float]] = {name: [] for name in names}
    for block in range(max(num_blocks, max_blocks or 0)):
        is_due = block >= num_blocks and (block - num_blocks) % 2 == 0
        if is_due and all(ratio_of(medians[baseline], medians[name]).width < MAX_WIDTH for name in names):
            break
        for name in turn_order(names, block):
            time.sleep(PAUSE_S)
            calls[name].append(_block(runners[name], own_feeds[name], block_calls))  # type: ignore[arg-type]
            medians[name].append(float(np.median(calls[name][-1])))
    return {
        name: Comparison(name, summarize([ms for block in calls[name] for ms in block]), tuple(medians[name]),
                         ratio_of(medians[baseline], medians[name])) for name in names
    }  # fmt: skip


def turn_order(names: list[Any], round_: int) -> list[Any]:
    """Return the order of a round: rotated every second round and reversed in between, so that a drift cancels."""
    turn = round_ // 2 % len(names)
    order = names[turn:] + names[:turn]
    return order[::-1] if round_ % 2 else order


def _block(runner: Any, feeds: Feeds, num_calls: int) -> list[float]:
    """Return the milliseconds of a block's calls, by the device's own clock where the runner has one."""
    if getattr(runner, "has_device_clock", False):
        return [float(ms) for ms in runner.time(feeds, iterations=num_calls, warmup=BLOCK_WARMUP)]
    return time_calls(runner, feeds, num_calls, BLOCK_WARMUP)
