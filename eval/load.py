"""`python -m eval.load`: throughput and latency under load, of a PyTorch model or any backend's engine.

Closed loop: c clients, each with one request on its way. Open loop: requests arrive at a given mean rate whether or
not earlier ones are answered; their latency counts from arrival, so that a queue shows.
"""

from __future__ import annotations

import argparse
import queue
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np

from engine.backend import get_backend
from engine.cli import CommandParser, UsageError, print_result, run_command
from eval.sweep.grid import PYTORCH
from eval.timing.latency import Feeds
from eval.timing.load_points import MIN_REQUESTS, LoadPoint, backlog_growth, closed_knee, table

NUM_WARM = 3
MAX_STRETCH = 6  # times the seconds asked for: how long an open loop may take to offer MIN_REQUESTS
OPEN_SHARES = (0.5, 0.7, 0.8, 0.9, 1.0, 1.1)  # of the highest closed-loop throughput
MAX_DRAIN = 1.0  # times the measured seconds: how long answers are waited for after the last arrival
Call = Callable[[], Any]


def closed_loop(calls: list[Call], seconds: float) -> LoadPoint:
    """Return what `len(calls)` clients get, each calling again as soon as it has its answer.

    Raises: the first error that a call raised.
    """
    latencies: list[list[float]] = [[] for _ in calls]
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(calls) + 1)
    stop = threading.Event()

    def client(number: int) -> None:
        try:
            for _ in range(NUM_WARM):
                calls[number]()
            barrier.wait()
            while not stop.is_set():
                before = time.perf_counter()
                calls[number]()
                latencies[number].append((time.perf_counter() - before) * 1000)
        except threading.BrokenBarrierError:
            return
        except Exception as error:  # handed to the caller
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=client, args=(n,), daemon=True) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    started = time.perf_counter()
    try:
        barrier.wait()
        started = time.perf_counter()
        time.sleep(seconds)
    except threading.BrokenBarrierError:
        pass
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    elapsed = time.perf_counter() - started
    if errors:
        raise errors[0]
    return _point("closed", len(calls), None, [ms for own in latencies for ms in own], elapsed)


def open_loop(calls: list[Call], rate_per_s: float, seconds: float, seed: int = 0) -> LoadPoint:
    """Return what requests get that arrive as a Poisson process and are served by `len(calls)` workers.

    They arrive for `seconds`, or up to MAX_STRETCH times as long where that takes MIN_REQUESTS of them. Requests that
    are not answered within the measured time again after the last arrival are counted as dropped.
    Raises: ValueError: a rate of 0 or less; the first error that a call raised.
    """
    if rate_per_s <= 0:
        raise ValueError(f"the rate must be above 0 requests a second, got {rate_per_s:g}")
    for call in calls:
        call()
    size = max(2, int(rate_per_s * seconds), min(MIN_REQUESTS, int(rate_per_s * seconds * MAX_STRETCH)))
    gaps = np.random.default_rng(seed).exponential(1 / rate_per_s, size=size)
    gaps *= size / rate_per_s / gaps.sum()  # at this rate exactly: 1,000 draws alone are off by 3 %
    waiting: queue.Queue[float | None] = queue.Queue()
    latencies: list[float] = []
    ends: list[float] = []
    errors: list[BaseException] = []

    def worker(call: Call) -> None:
        while (arrival := waiting.get()) is not None:
            try:
                call()
            except Exception as error:  # handed to the caller
                errors.append(error)
                return
            end = time.perf_counter()
            ends.append(end)
            latencies.append((end - arrival) * 1000)

    threads = [threading.Thread(target=worker, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    started = time.perf_counter()
    arrivals = started + np.cumsum(gaps)
    for arrival in arrivals:
        time.sleep(max(0.0, arrival - time.perf_counter()))
        waiting.put(float(arrival))
    limit = arrivals[-1] + MAX_DRAIN * max(seconds, arrivals[-1] - started)
    while not waiting.empty() and time.perf_counter() < limit and not errors:
        time.sleep(0.002)
    num_dropped = _empty(waiting)
    for _ in threads:
        waiting.put(None)
    for thread in threads:
        thread.join()
    if errors or not ends:
        raise errors[0] if errors else ValueError("no request was answered in the time measured")
    growth = backlog_growth(arrivals, np.array(ends))
    return _point("open", len(calls), rate_per_s, latencies, max(ends) - started, num_dropped, growth)


def _empty(waiting: queue.Queue[float | None]) -> int:
    count = 0
    while True:
        try:
            waiting.get_nowait()
        except queue.Empty:
            return count
        count += 1


def _point(
    mode: str,
    clients: int,
    rate: float | None,
    latencies_ms: list[float],
    elapsed_s: float,
    num_dropped: int = 0,
    growth: float | None = None,
) -> LoadPoint:
    if not latencies_ms:
        raise ValueError("no request was answered in the time measured; give more --seconds")
    p50, p99 = np.percentile(latencies_ms, [50, 99])
    return LoadPoint(mode, clients, rate, len(latencies_ms) / elapsed_s, float(p50), float(p99), len(latencies_ms),
                     num_dropped, growth)  # fmt: skip


def measure_system(
    open_runner: Callable[[], Any],
    feeds: Feeds,
    clients: Iterable[int],
    seconds: float,
    backend: str,
    rates: Iterable[float] | None = None,
) -> list[LoadPoint]:
    """Return the closed-loop points for every number of clients, then the open-loop points for every rate.

    Args:
        open_runner: gives a runner; called once where the backend serves many threads, else once for each client.
        rates: requests a second; None takes shares of the highest closed-loop throughput.
    """
    clients = sorted(set(clients))
    # Some runtimes keep buffers in the runner: there each client gets its own.
    is_shared = backend == PYTORCH or get_backend(backend).info.is_thread_safe
    runners = [open_runner() for _ in range(1 if is_shared else max(clients))]
    calls = [_call(runners[n % len(runners)], feeds) for n in range(max(clients))]
    points = [closed_loop(calls[:n], seconds) for n in clients]
    best = closed_knee(points)
    offered = rates if rates is not None else [share * best.throughput_per_s for share in OPEN_SHARES]
    return points + [open_loop(calls[: best.clients], rate, seconds) for rate in offered]


def _call(runner: Any, feeds: Feeds) -> Call:
    own = {name: feeds[name] for name in runner.input_names}
    return lambda: runner(own)


def load_command(arguments: argparse.Namespace) -> None:
    """Measure and print a table, or one JSON line."""
    clients, rates = _numbers("--clients", arguments.clients), _numbers("--rates", arguments.rates or [])
    if not clients or any(n != int(n) for n in clients):
        raise UsageError(f"--clients takes whole numbers from 1, got {' '.join(arguments.clients) or 'none'}")
    if arguments.seconds <= 0:
        raise UsageError(f"--seconds must be above 0, got {arguments.seconds:g}")
    with ExitStack() as stack:
        open_runner, feeds, backend = _system(arguments, stack)
        points = measure_system(
            open_runner, feeds, [int(n) for n in clients], arguments.seconds, backend, rates or None
        )
    shape = "x".join(map(str, next(iter(feeds.values())).shape))
    row = {
        "system": arguments.engine or arguments.checkpoint or arguments.model, "backend": backend,
        "inputs": {name: list(x.shape) for name, x in feeds.items()}, "points": [asdict(p) for p in points],
    }  # fmt: skip
    print_result(row, table(points, shape), arguments.json)


def _numbers(flag: str, values: list[str]) -> list[float]:
    words = [word for value in values for word in value.replace(",", " ").split()]
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = [-1.0]
    if any(number <= 0 for number in numbers):
        raise UsageError(f"{flag} takes numbers above 0, got {' '.join(values)}")
    return numbers


def _system(arguments: argparse.Namespace, stack: ExitStack) -> tuple[Callable[[], Any], Feeds, str]:
    """Return how to open a runner, the feeds of one request, and the backend."""
    from eval.subject import load_model, open_engine
    from quant.models.example_inputs import example_inputs

    source = arguments.checkpoint or arguments.model or arguments.processor
    if arguments.engine and source is None:
        raise UsageError("an engine does not say what its inputs mean; give --processor M (the model it was made from)")
    loaded = load_model(source)
    inputs = example_inputs(loaded.model, batch_size=arguments.batch_size, seq_length=arguments.seq_length,
                            processor=loaded.processor)  # fmt: skip
    feeds = {name: x.numpy() for name, x in inputs.items()}
    if not arguments.engine:
        import torch

        from eval.pytorch_runner import PyTorchRunner

        torch.set_num_threads(arguments.threads or torch.get_num_threads())
        return lambda: PyTorchRunner(loaded), feeds, PYTORCH
    from engine.manifest import read_manifest

    backend = read_manifest(arguments.engine).backend
    return lambda: stack.enter_context(open_engine(arguments.engine, arguments.threads)).runner, feeds, backend


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = CommandParser("python -m eval.load", "Measure throughput and latency under load.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--engine", help="an engine of build_engine.py")
    what.add_argument("--checkpoint", help="a checkpoint folder (INT8 is simulated: its speed says little)")
    what.add_argument("--model", help="a float model: hub id, folder or digits")
    parser.add_argument("--processor", help="the model an engine was made from: it says what the inputs are")
    parser.add_argument("--batch-size", type=int, default=1, help="samples of one request")
    parser.add_argument("--seq-length", type=int, default=128, help="tokens of a sample; not for images")
    parser.add_argument("--clients", nargs="+", default=["1,2,4,8"], metavar="C", help="concurrent clients")
    parser.add_argument("--rates", nargs="+", metavar="R", help="open loop: requests a second; default 50 to 110 %% of "
                        "what the closed loop reached")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement; an open loop takes up to 6 "
                        "times as long for its 1,000 requests")  # fmt: skip
    parser.add_argument("--threads", type=int, help="CPU threads of the runtime")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    run_command(parser, load_command, argv)


if __name__ == "__main__":
    main()
