"""How long a search has worked, over all processes: a kill ends one of them, the same command goes on."""

from __future__ import annotations

import json
import time

from eval.sweep.run_folder import ARTIFACTS, ROWS, RunFolder
from eval.sweep.store import TIMELINE_FILE

FILE = "search_spent.json"


def take_up(run: RunFolder, proof: str) -> float:
    """Return the seconds that processes before this one worked, and note that this one begins.

    One that was killed worked until the last part that it left.
    """
    found = run.read_json(FILE) or {"seconds": 0.0, "started": None}
    seconds, started = float(found["seconds"]), found["started"]
    if started is not None:
        timeline, rows = run.path / ARTIFACTS / TIMELINE_FILE, run.path / proof / ROWS
        made = [json.loads(line) for line in timeline.read_text().splitlines()] if timeline.exists() else []
        ends = [each["started"] + each["seconds"] for each in made] + [rows.stat().st_mtime if rows.exists() else 0.0]
        seconds += max(0.0, max(ends) - started)
    run.write_json(FILE, {"seconds": seconds, "started": time.time()})
    return seconds


def put_down(run: RunFolder, seconds: float) -> None:
    """Note what all processes worked together, now that none does."""
    run.write_json(FILE, {"seconds": seconds, "started": None})
