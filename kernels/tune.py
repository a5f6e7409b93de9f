"""Times the candidates of a kernel on this GPU and says which is fastest: once, at build; the choice is then stored."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from kernels.attention import NoKernelError
from kernels.tiles import TORCHS, Tile

# What tells that a tile is not taken by this GPU, this Triton or this torch.
CANNOT_RUN = (OutOfResources, PTXASError, CompilationError, NoKernelError)


def capture(calls: Sequence[Callable[[], Any]]) -> torch.cuda.CUDAGraph:
    """Return a CUDA graph of all the calls in a row, warmed up before. What they read must outlive it."""
    for call in calls:
        call()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        graph.capture_begin()  # not torch.cuda.graph: older ones collect garbage, 0.3 s for each candidate
        try:
            for call in calls:
                call()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # of a capture that the error has spoilt already
                graph.capture_end()
            raise
        graph.capture_end()
    torch.cuda.synchronize()
    return graph


def time_in_turn(graphs: Sequence[torch.cuda.CUDAGraph], rounds: int = 11, repeats: int = 1) -> list[list[float]]:
    """Return each graph's milliseconds of a replay in every round; they take turns: a falling clock hits all."""
    times: list[list[float]] = [[] for _ in graphs]
    for graph in graphs:
        graph.replay()
    for _ in range(rounds):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(len(graphs) + 1)]
        events[0].record()
        for graph, event in zip(graphs, events[1:], strict=True):
            for _ in range(repeats):
                graph.replay()
            event.record()
        torch.cuda.synchronize()
        for each, before, after in zip(times, events, events[1:], strict=False):
            each.append(before.elapsed_time(after) / repeats)
    return times


def tune(
    candidates: Sequence[Tile], calls_of: Callable[[Tile], Sequence[Callable[[], Any]]], rounds: int = 7
) -> tuple[Tile, dict[Tile, float]]:
    """Return the fastest candidate and each one's median milliseconds of a call; what cannot run is left out.

    Args:
        candidates: of `kernels.tiles`.
        calls_of: tile → the calls that are timed together under one CUDA graph. Give as many as the model has (a
            layer's product with every layer's own weight), so that L2 holds what it will hold there.
        rounds: replays of each, in turn.
    Raises: RuntimeError: if no candidate runs.
    """
    graphs: dict[Tile, torch.cuda.CUDAGraph] = {}
    counts: dict[Tile, int] = {}
    refusals = {}
    for tile in candidates:
        calls = calls_of(tile)
        try:
            graphs[tile] = capture(calls)
            counts[tile] = len(calls)
        except CANNOT_RUN as error:
            refusals[tile] = str(error).splitlines()[0]
        except RuntimeError as error:  # torch's own attention says in many words that it does not take a call
            if tile not in TORCHS or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            refusals[tile] = str(error).splitlines()[0]
    if not graphs:
        raise RuntimeError(f"none of {len(candidates)} tiles runs on {torch.cuda.get_device_name()}: {refusals}")
    times = time_in_turn(list(graphs.values()), rounds)
    medians = {tile: statistics.median(each) / counts[tile] for tile, each in zip(graphs, times, strict=True)}
    return min(medians, key=medians.__getitem__), medians
