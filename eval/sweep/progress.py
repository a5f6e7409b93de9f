"""One bar for the whole sweep, with the time left by what each kind of step took so far."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

logger = logging.getLogger(__name__)
FIRST_GUESS_S = {"prepare": 10.0, "time": 1e-3, "load": 1.1}


class Progress:
    """Counts work by kind (in any unit); remaining time = work left x mean seconds of a unit of that kind."""

    def __init__(self, num_points: int, plan: dict[str, float]) -> None:
        self.left, self.done, self.seconds = dict(plan), dict.fromkeys(plan, 0.0), dict.fromkeys(plan, 0.0)
        self.num_points, self.finished, self.started = num_points, 0, time.monotonic()
        self.is_shown = sys.stderr.isatty()
        self._bar = tqdm(total=1.0, disable=not self.is_shown, file=sys.stderr, bar_format="{desc} {bar} {postfix}")
        self._drawn = 0.0

    def seconds_left(self) -> float:
        """Return the estimate of the time left, in seconds."""
        return sum(amount * self._per_unit(kind) for kind, amount in self.left.items())

    def _per_unit(self, kind: str) -> float:
        return self.seconds[kind] / self.done[kind] if self.done[kind] else FIRST_GUESS_S.get(kind, 1.0)

    @contextmanager
    def step(self, kind: str, amount: float, what: str) -> Iterator[None]:
        """Count `amount` of work of a kind as done when the block ends, however it ends."""
        self._draw(what, force=True)
        before = time.monotonic()
        try:
            yield
        finally:
            self.seconds[kind] += time.monotonic() - before
            self.done[kind] += amount
            self.left[kind] = max(0.0, self.left[kind] - amount)

    def tick(self) -> None:
        """Redraw inside a long step."""
        self._draw(None)

    def finish_point(self, text: str) -> None:
        """Count one point, and say it where no bar is shown."""
        self.finished += 1
        if not self.is_shown:
            logger.info(f"[{self.finished}/{self.num_points}] {text}; {format_time(self.seconds_left())} left")

    def _draw(self, what: str | None, force: bool = False) -> None:
        now = time.monotonic()
        if not self.is_shown or (not force and now - self._drawn < 0.2):
            return
        self._drawn = now
        spent, left = now - self.started, self.seconds_left()
        self._bar.n = spent / (spent + left) if spent + left > 0 else 1.0
        if what is not None:
            self._bar.set_description_str(f"{self.finished}/{self.num_points} points", refresh=False)
            self._bar.set_postfix_str(f"{format_time(left)} left, {what}", refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        self._bar.leave = False
        self._bar.close()


def format_time(seconds: float) -> str:
    """Return e.g. "3:05" or "1:02:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
