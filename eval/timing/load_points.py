"""What a measurement under load says: its point, whether the backlog grew, where the knees are, the table of all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KNEE_SHARE = 0.95  # of the highest throughput: fewer clients than this reach are below the knee
MIN_REQUESTS = 1000  # below, a 99th percentile rests on a handful, and a queue that grows slowly is not seen to grow
# Of the requests offered meanwhile: by so much the fewest that wait may grow. In 300 simulated runs of 1,000 requests a
# queue at 0.95 of its capacity was above in 2 %, one at 1.05 in all.
GROWTH_LIMIT = 0.01


@dataclass(frozen=True)
class LoadPoint:
    """One measurement: requests a second offered (open loop) and answered, latency in milliseconds.

    Attributes:
        backlog_growth: of an open loop, by how much its backlog grew, as a share of the requests offered meanwhile
            (`backlog_growth`); None in a closed one, and in files of versions that did not measure it.
    """

    mode: str  # closed or open
    clients: int
    offered_per_s: float | None
    throughput_per_s: float
    latency_ms_p50: float
    latency_ms_p99: float
    num_requests: int
    num_dropped: int = 0
    backlog_growth: float | None = None

    @property
    def has_enough(self) -> bool:
        """Whether the requests are enough for a 99th percentile and for a verdict on the queue."""
        return self.num_requests + self.num_dropped >= MIN_REQUESTS

    @property
    def is_kept_up_with(self) -> bool | None:
        """Whether an open loop's queue did not grow; None: too few requests to tell, or not measured."""
        if self.num_dropped:
            return False
        if self.backlog_growth is None or not self.has_enough:
            return None
        return self.backlog_growth <= GROWTH_LIMIT


def backlog_growth(arrivals: np.ndarray, ends: np.ndarray) -> float:
    """Return by how much the backlog grew, as a share of the requests that arrived meanwhile; 0: it keeps emptying.

    A queue that keeps up comes back to almost nothing again and again, one that does not never does: compared are the
    fewest requests on their way in the first and in the last third of the arrivals.

    Args:
        arrivals, ends: seconds, each in any order, shapes (num_requests,) and (num_answered,).
    """
    arrivals, ends = np.sort(arrivals), np.sort(ends)
    backlog = np.arange(1, len(arrivals) + 1) - np.searchsorted(ends, arrivals)  # on their way as each one arrives
    third = max(1, len(arrivals) // 3)
    first, last = backlog[:third], backlog[-third:]
    between = len(arrivals) - third + int(last.argmin()) - int(first.argmin())
    return float(last.min() - first.min()) / between if between > 0 else 0.0


def closed_knee(points: list[LoadPoint]) -> LoadPoint:
    """Return the closed-loop point with the fewest clients that reaches 95 % of the highest throughput."""
    closed = sorted((p for p in points if p.mode == "closed"), key=lambda p: p.clients)
    highest = max(p.throughput_per_s for p in closed)
    return next(p for p in closed if p.throughput_per_s >= KNEE_SHARE * highest)


def open_knee(points: list[LoadPoint]) -> LoadPoint | None:
    """Return the open-loop point with the highest rate below which all are kept up with; None where there is none.

    A rate with too few requests to tell does not count, and ends nothing.
    """
    best = None
    for point in sorted((p for p in points if p.mode == "open"), key=lambda p: p.offered_per_s or 0.0):
        if point.is_kept_up_with is False:
            break
        best = point if point.is_kept_up_with else best
    return best


def is_undecided(points: list[LoadPoint]) -> bool:
    """Return whether no open-loop point had requests enough to tell whether its rate was kept up with."""
    return all(p.is_kept_up_with is None for p in points if p.mode == "open")


def table(points: list[LoadPoint], shape: str) -> str:
    """Return the points as text, the two knees below."""
    lines = ["loop    clients  offered/s answered/s   p50 ms   p99 ms dropped"]
    for p in points:
        offered = "-" if p.offered_per_s is None else f"{p.offered_per_s:.1f}"
        lines.append(f"{p.mode:<7} {p.clients:>7} {offered:>10} {p.throughput_per_s:>10.1f} {p.latency_ms_p50:>8.2f} "
                     f"{f'{p.latency_ms_p99:.2f}' if p.has_enough else 'too few':>8} {p.num_dropped:>7}")  # fmt: skip
    closed, opened = closed_knee(points), open_knee(points)
    kept = "no rate was kept up with" if opened is None else f"{opened.offered_per_s:.1f} requests/s are kept up with"
    if is_undecided(points):
        kept = f"which rate is kept up with is not known: fewer than {MIN_REQUESTS} requests each; give more --seconds"
    knee = f"knee: {closed.clients} clients, {closed.throughput_per_s:.1f} requests/s"
    lines.append(f"one request: {shape}; {knee}; {kept}")
    return "\n".join(lines)
