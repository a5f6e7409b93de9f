"""What a program's engine runs: the kernels of one replayed call, in order, and the ops that launched them."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.backends.inductor.compiled import TUNED_OPS, Captured, tuned_nodes
from engine.backends.inductor.program import Program, bucket_name
from engine.backends.inductor.runner import InductorRunner
from engine.backends.inductor.tuning import Recorder
from engine.inspect.kernel_trace import Kernel
from engine.inspect.layers import INT8, Inspection, InspectRequest, Layer, precision_of
from engine.made_feeds import fit_feeds, make_feeds

# Our kernels, and torch's attention, by the op that launches each.
KERNEL_OPS = {"linear_kernel": "linear", "linear_pingpong_kernel": "linear", "attention_kernel": "attention",
              "norm_kernel": "norm_quantize", "quantize_kernel": "quantize"}  # fmt: skip
TORCH_ATTENTION = ("fmha", "flash", "mem_efficient", "sdpa")
KINDS = {"linear": "product", "attention": "attention", "norm_quantize": "norm", "quantize": "elementwise"}
Call = list[tuple[str, float]]  # kernels of one replay in order, with microseconds


@dataclass(frozen=True)
class OpCall:
    """One call of an op of ours: the products that it computes (none for norms), its type and arithmetic."""

    op: str
    names: tuple[str, ...]
    precision: str
    macs: int | None


def inspect_runner(runner: InductorRunner, engine: str, device: str, version: str | None, request: InspectRequest
                   ) -> Inspection:  # fmt: skip
    """Return the layers of a loaded engine from a trace of `request.iterations` replays."""
    if request.feeds:
        feeds = fit_feeds(request.feeds, runner.inputs, runner.batch_size or len(next(iter(request.feeds.values()))))
    else:
        usual = {name: (dtype, runner.program.shape(name, runner.usual)) for name, (dtype, _) in runner.inputs.items()}
        feeds = make_feeds(usual, {})
    captured, bucket = runner.fed(feeds)
    layers, notes = layers_of(traced(captured, request.iterations), op_calls(captured, runner.program))
    return Inspection(
        engine=engine, backend="inductor", version=version, layers=layers, notes=notes,
        conditions=f"{device}, {bucket_name(bucket)}, under a CUDA graph",
        call_ms=float(np.median(runner.time(feeds, request.iterations))),
    )  # fmt: skip


def traced(captured: Captured, iterations: int) -> list[Call]:
    """Return the kernels of each replay; replays in which the profiler lost one are left out."""
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
        events = sorted(events, key=lambda each: each.time_range.start)
        calls.append([(each.name, each.time_range.elapsed_us()) for each in events
                      if not each.name.lower().startswith(("memcpy", "memset"))])  # fmt: skip
    usual = statistics.mode(len(each) for each in calls)
    return [each for each in calls if len(each) == usual]


def op_calls(captured: Captured, program: Program) -> list[OpCall]:
    """Return the calls of ops of ours in order, from one run of the program op by op."""
    recorder = Recorder(captured.module)
    recorder.run(*captured.inputs)
    groups: dict[str, list[list[str]]] = {"linear": [], "attention": []}
    last = None
    for each in program.products:
        kind = each["op"].partition(",")[0]
        if kind in groups:
            if each["group"] != last:
                groups[kind].append([])
            groups[kind][-1].append(each["name"])
        last = each["group"]
    found = []
    for node in tuned_nodes(captured.module):
        op, (args, _) = TUNED_OPS[node.target], recorder.calls[node]  # type: ignore[index]
        x = args[0]
        names = tuple(groups[op].pop(0)) if groups.get(op) else ()
        macs = {"linear": lambda x=x, a=args: x.numel() * a[1].shape[0],
                "attention": lambda x=x, a=args: 2 * x.numel() * a[1].shape[1]}.get(op)  # fmt: skip
        precision = INT8 if x.dtype.itemsize == 1 else precision_of(str(x.dtype).removeprefix("torch."))
        found.append(OpCall(op, names, precision, None if macs is None else macs()))
    return found


def layers_of(calls: list[Call], ops: list[OpCall]) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """Return a layer for each kernel, and notes. Where a kind has another number of kernels than of calls (torch's
    attention may launch several), its kernels stay without names rather than under wrong ones."""
    kernels = [name for name, _ in calls[0]] if calls else []
    launched, called = Counter(map(op_of, kernels)), Counter(each.op for each in ops)
    matched = {op for op in KINDS if launched[op] == called[op]}
    left = {op: [each for each in ops if each.op == op] for op in matched}
    notes = ["times are of kernels in a trace; their sum leaves out the gaps between them"]
    notes += [f"{launched[op]} kernels of {op} were seen for {called[op]} calls: they stay without names"
              for op in KINDS if op not in matched]  # fmt: skip
    layers = []
    for place, name in enumerate(kernels):
        time_ms = float(np.median([call[place][1] for call in calls])) / 1e3
        op = op_of(name)
        if op in matched:
            one = left[op].pop(0)
            layers.append(Layer(" + ".join(one.names) or op, KINDS[op], op, one.precision, name, time_ms, one.macs,
                                one.names, one.names))  # fmt: skip
        else:
            kernel = Kernel(name, 1, time_ms)
            layers.append(Layer(name, "product" if kernel.is_product else "other", "kernel", kernel.precision, name,
                                time_ms, products=()))  # fmt: skip
    return tuple(layers), tuple(notes)


def op_of(kernel: str) -> Any:
    """Return the op that launches a kernel of this name, None for all that are torch's own."""
    own = KERNEL_OPS.get(kernel.partition("<")[0].strip())
    return own or ("attention" if any(word in kernel.lower() for word in TORCH_ATTENTION) else None)
