"""What a program's engine runs: the kernels of one replayed call, in order, and the ops that launched them."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from engine.backends.inductor.compiled import Captured, tuned_nodes
from engine.backends.inductor.program import bucket_name
from engine.inspect.kernel_trace import Kernel
from engine.inspect.layers import INT8, Inspection, InspectRequest, Layer, precision_of
from engine.made_feeds import fit_feeds, make_feeds
from engine.manifest import read_manifest

# Our kernels by the op that launches each; `attention` may hand half types to torch's own kernels.
KERNEL_OPS = {"linear_kernel": "linear", "attention_kernel": "attention", "norm_kernel": "norm_quantize",
              "quantize_kernel": "quantize"}  # fmt: skip
KINDS = {"linear": "product", "attention": "attention", "norm_quantize": "norm", "quantize": "elementwise"}


def inspect_inductor(engine: str, request: InspectRequest) -> Inspection:
    """Return the layers of an engine from a profile of `request.iterations` replays of one call."""
    from engine.backends.inductor.backend import BACKEND
    from engine.backends.inductor.runner import InductorRunner

    manifest = read_manifest(engine)
    with BACKEND.load(engine) as runner:
        assert isinstance(runner, InductorRunner)
        inputs = {
            name: (dtype, runner.program.shape(name, _usual(runner))) for name, (dtype, _) in runner.inputs.items()
        }
        feeds = fit_feeds(request.feeds, inputs, runner.batch_size or 1) if request.feeds else make_feeds(inputs, {})
        arrays, _ = runner._check(feeds)
        captured, _, bucket = runner._feed(arrays)
        calls = _traced(captured, request.iterations)
        call_ms = float(np.median(runner.time(feeds, request.iterations)))
        ops = _ops(captured, runner.program)
    layers = _layers(calls, ops)
    return Inspection(
        engine=engine, backend=BACKEND.name, version=manifest.versions.get(BACKEND.name),
        conditions=f"{manifest.device}, {bucket_name(bucket)}, under a CUDA graph", layers=layers, call_ms=call_ms,
        notes=("times are of kernels in a trace; their sum leaves out the gaps between them",),
    )  # fmt: skip


def _usual(runner: Any) -> dict[str, int]:
    return dict(runner._plans[0][0])


def _traced(captured: Captured, iterations: int) -> list[list[tuple[str, float]]]:
    """Return for each replay its kernels in order, with microseconds."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    for _ in range(3):
        captured.replay()
    torch.cuda.synchronize()
    calls = []
    for _ in range(iterations):
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            captured.replay()
            torch.cuda.synchronize()
        events = [each for each in trace.events() if each.device_type == torch.autograd.DeviceType.CUDA]
        events = [each for each in events if not each.name.lower().startswith(("memcpy", "memset"))]
        calls.append(
            [(each.name, each.time_range.elapsed_us()) for each in sorted(events, key=lambda e: e.time_range.start)]
        )
    usual = statistics.mode(len(each) for each in calls)
    return [each for each in calls if len(each) == usual]


def _ops(captured: Captured, program: Any) -> dict[str, list[dict[str, Any]]]:
    """Return for each kind of op its calls in order: the products that it computes, types and multiply-accumulates."""
    import torch

    products = iter(program.products)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in KINDS}
    return found if torch is None else _walk(captured, products, found)


def _walk(captured: Captured, products: Any, found: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    from engine.backends.inductor.compiled import TUNED_OPS
    from engine.backends.inductor.tuning import _Recorder

    recorder = _Recorder(captured.module)
    recorder.run(*captured.inputs)
    by_op: dict[str, list[dict[str, Any]]] = {}
    for each in products:
        by_op.setdefault(
            "attention" if each["op"].startswith("attention") else each["op"].partition(",")[0], []
        ).append(each)
    for node in tuned_nodes(captured.module):
        kind = TUNED_OPS[node.target]  # type: ignore[index]
        args, _ = recorder.calls[node]
        x, rest = args[0], by_op.get(kind, [])
        entry: dict[str, Any] = {"type": kind, "names": [], "macs": None, "precision": _precision(kind, x)}
        if kind == "linear":
            count = _columns(rest, args)
            entry["names"], by_op[kind] = [each["name"] for each in rest[:count]], rest[count:]
            entry["macs"] = x.numel() * args[1].shape[0]
        elif kind == "attention":
            entry["names"], by_op[kind] = [each["name"] for each in rest[:2]], rest[2:]
            entry["macs"] = 2 * x.numel() * args[1].shape[1]
        found[kind].append(entry)
    return found


def _columns(rest: list[dict[str, Any]], args: Any) -> int:
    """Return how many of the next products one call computes: those that say the same group."""
    group = rest[0].get("group") if rest else None
    return sum(1 for each in rest if each.get("group") == group) if group is not None else 1


def _precision(kind: str, x: Any) -> str:
    return INT8 if "int8" in str(x.dtype) else precision_of(str(x.dtype).removeprefix("torch."))


def _layers(calls: list[list[tuple[str, float]]], ops: dict[str, list[dict[str, Any]]]) -> tuple[Layer, ...]:
    layers = []
    left = {kind: list(entries) for kind, entries in ops.items()}
    for place, (name, _) in enumerate(calls[0] if calls else []):
        time_ms = float(np.median([call[place][1] for call in calls])) / 1e3
        op = KERNEL_OPS.get(name.partition("<")[0].strip())
        kernel = Kernel(name, 1, time_ms)
        is_attention = op is None and ("fmha" in name or "flash" in name or "mem_efficient" in name)
        entry = left["attention" if is_attention else op or ""].pop(0) if (
            left.get("attention" if is_attention else op or "")) else None  # fmt: skip
        if entry is not None:
            layers.append(Layer(" + ".join(entry["names"]) or name, KINDS[entry["type"]], entry["type"],
                                entry["precision"], name, time_ms, entry["macs"], tuple(entry["names"])))  # fmt: skip
        else:
            kind = "product" if kernel.is_product else "other"
            layers.append(Layer(name, kind, "kernel", kernel.precision, name, time_ms))
    return tuple(layers)
