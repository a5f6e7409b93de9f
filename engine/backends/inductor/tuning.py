"""Chooses the tiles of every op of a program on this GPU: ops of one shape are timed together, each on its weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from engine.backends.inductor.binaries import launched_kernels
from engine.backends.inductor.compiled import TUNED_OPS, tuned_nodes
from kernels.attention import is_torchs
from kernels.device import capability
from kernels.tiles import (
    ANY_SIZE,
    TORCHS,
    ProductTile,
    Tile,
    attention_tiles,
    column_bytes_of,
    row_tiles,
    store_plan,
    timed_product_tiles,
)
from kernels.tune import CANNOT_RUN, tune

MAX_TIMED = 24  # calls of one shape that are timed together: a model's layers, so that L2 holds what it will hold
_chosen: dict[Any, Any] = {}  # what this process timed: the engines of one search hold the same calls again and again


class Recorder(Interpreter):
    """Runs a program op by op and keeps what each tuned op was called with."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.calls: dict[Node, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def run_node(self, n: Node) -> Any:
        if n.op == "call_function" and n.target in TUNED_OPS:
            self.calls[n] = self.fetch_args_kwargs_from_env(n)
        return super().run_node(n)


def tune_program(module: GraphModule, feeds: Sequence[Tensor], say: Callable[[str], None]) -> dict[str, list[int]]:
    """Return each op's plan of tiles for inputs of these shapes: the fastest candidate, timed under CUDA graphs.

    What this process has timed before, as often in a program and on the same kind of GPU, is not timed again.

    Raises: RuntimeError: an op for which no candidate runs. torch.cuda.OutOfMemoryError: as torch says it.
    """
    recorder = Recorder(module)
    with torch.no_grad():
        recorder.run(*feeds)
        groups: dict[Any, list[Node]] = {}
        for node in tuned_nodes(module):
            groups.setdefault(_signature(node, *recorder.calls[node]), []).append(node)
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        known = {(gpu, min(len(nodes), MAX_TIMED), call): nodes for call, nodes in groups.items()}
        work = [(key, nodes, candidates(nodes[0], *recorder.calls[nodes[0]]))
                for key, nodes in known.items() if key not in _chosen]  # fmt: skip
        _compile_ahead([(recorder.calls[nodes[0]], nodes[0], tile) for _, nodes, tiles in work for tile in tiles
                        if tile not in TORCHS])  # fmt: skip
        for key, nodes, tiles in work:
            calls = [recorder.calls[node] for node in nodes[:MAX_TIMED]]

            def with_tile(tile: Tile, calls: Any = calls, target: Any = nodes[0].target) -> list[Callable[[], Any]]:
                return [partial(target, *args, **{**kw, "tiles": store_plan({ANY_SIZE: tile})}) for args, kw in calls]

            _chosen[key], medians = tune(tiles, with_tile)
            best = medians[_chosen[key]] * 1e3
            say(f"{len(nodes)} x {TUNED_OPS[nodes[0].target]}: {best:.1f} us, {_chosen[key]}")  # type: ignore[index]
    return {node.name: store_plan({ANY_SIZE: _chosen[key]}) for key, nodes in known.items() for node in nodes}


def candidates(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return the tiles that are worth timing for one call of an op."""
    x = args[0]
    target = capability(x)
    kind = TUNED_OPS[node.target]  # type: ignore[index]
    if kind == "linear":
        return _product_candidates(target, x, _by_name(node, args, kwargs))
    if kind == "attention":
        q, k = args[:2]
        own = [] if is_torchs(q, k) else attention_tiles(target, k.shape[1])
        return [*own, *(TORCHS if q.dtype != torch.int8 else ())]
    return row_tiles(min(1 << (x.shape[-1] - 1).bit_length(), 1024 if kind == "quantize" else 1 << 30))


def _by_name(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that a call of an op names or not, by their names."""
    return {**dict(zip((each.name for each in node.target._schema.arguments), args, strict=False)), **kwargs}  # type: ignore[union-attr]


def _product_candidates(target: int, x: Tensor, call: dict[str, Any]) -> list[ProductTile]:
    (n, k), residual = call["weight"].shape, call.get("residual")
    gated, result = bool(call.get("gated")), call["out_dtype"]
    other = result if residual is None else residual.dtype
    found = timed_product_tiles(target, x.numel() // k, n, k, column_bytes_of(result, other, gated))
    columns = n // 2 if gated else n
    fits = k % 16 == 0 and all(columns * kind.itemsize % 16 == 0 for kind in (result, other))  # as descriptors take
    return [tile for tile in found if fits or not tile.takes_turns]


def _signature(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what decides how fast a call is: its op, shapes, strides, types and options, not its numbers."""

    def of(value: Any) -> Any:
        if torch.is_tensor(value):
            return (tuple(value.shape), value.stride(), value.dtype)
        return None if isinstance(value, float) else str(value)

    return (node.target, tuple(of(each) for each in args), tuple((name, of(each)) for name, each in kwargs.items()))


def _compile_ahead(jobs: Sequence[tuple[Any, Node, Tile]]) -> None:
    """Compile every candidate of ours, several at a time; what cannot run is told when it is timed.

    None of torch's own: they have nothing to compile, and which part of torch may compute attention is a setting of the
    process, not of the thread: two threads that ask for cuDNN's would leave it as the only one.
    """
    stream = torch.cuda.current_stream()

    def compile_one(job: tuple[Any, Node, Tile]) -> None:
        (args, kwargs), node, tile = job
        with torch.no_grad(), torch.cuda.stream(stream):
            try:
                node.target(*args, **{**kwargs, "tiles": store_plan({ANY_SIZE: tile})})  # type: ignore[operator]
            except CANNOT_RUN:
                return

    def enter() -> None:
        torch.cuda.set_device(stream.device)
        torch.cuda.synchronize()  # gives the thread the device's context, which Triton's launcher needs

    for each in launched_kernels():  # made by one thread: for a moment Triton takes one in Gluon for its own language
        each.device_caches[stream.device.index]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1), initializer=enter) as pool:
        list(pool.map(compile_one, jobs))
    torch.cuda.synchronize()
