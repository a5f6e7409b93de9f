"""Runs one command and prints what it cost, in a process of its own: its children are that command alone.

It imports little and stays small, since a process counts as memory of its own what its parent held when it was started.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time


def main(limit_s: str, log: str, *command: str) -> None:
    """Run `command` for at most so many seconds, its output in `log`, and print its cost as one JSON line.

    The line holds the exit status (None: it took too long), wall and CPU seconds of the command and all it started, and
    the largest resident memory of any one of these processes.
    """
    with open(log, "w", encoding="utf-8") as file:
        start = time.perf_counter()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status: int | None = process.wait(float(limit_s))
        except subprocess.TimeoutExpired:
            status = None
        finally:  # also when this process is told to end: the command must not go on alone
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        wall_s = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    cost = {"wall_s": wall_s, "cpu_s": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * unit}
    print(json.dumps({"status": status, **cost}))


if __name__ == "__main__":
    main(*sys.argv[1:])
