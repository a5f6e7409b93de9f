"""INT8 on a GPU: each kernel of `kernels/` and whole stacks of layers against torch's fp16, in turn under CUDA graphs.

    python -m benchmarks.gpu.kernels --part kernels --out rows.jsonl
    python -m benchmarks.gpu.kernels --part stacks [--stack bert-base:32x128 ...] [--plans full linear] --out rows.jsonl

Every tile is tuned on the spot. Rows: TOPS of each product beside cuBLAS fp16 and torch._int_mm; for each stack the
milliseconds of both sides and their ratio, the median of rounds in which both ran in turn. A padding mask is in use
where the model has one (lengths are drawn from half to all of the length).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import triton

from benchmarks.gpu import half as gpu_half
from benchmarks.gpu.int8 import PLANS, Int8Stack
from benchmarks.gpu.shapes import MODELS, STACKS, Model
from benchmarks.rows import append_row
from kernels.tiles import (
    ANY_SIZE,
    AttentionTile,
    ProductTile,
    Tile,
    attention_tiles,
    row_tiles,
    store_plan,
    timed_product_tiles,
)
from kernels.tune import capture, time_in_turn, tune

ROUNDS = 21


def log(*words: object) -> None:
    print(f"[{time.perf_counter() - START:6.1f} s]", *words, flush=True)


def time_ms(calls: Sequence[Callable[[], Any]]) -> float:
    """Return the median milliseconds of one of the calls, all under one graph."""
    return statistics.median(time_in_turn([capture(calls)], 7)[0]) / len(calls)


def candidates(stack: Int8Stack, name: str, kind: type) -> list:
    """Return the tiles to time for an op of the stack."""
    count = stack.batch * stack.length
    if kind is ProductTile:
        return timed_product_tiles(90, count, *stack.model.products()[name], column_bytes=2)  # half, as most results
    if kind is AttentionTile:
        return list(attention_tiles(90, stack.length))
    return row_tiles(triton.next_power_of_2(stack.model.width))


def tune_stack(stack: Int8Stack) -> dict[str, dict[str, Any]]:
    """Set the stack's tiles to the fastest ones; return for each op its tile and microseconds."""
    report = {}
    for name, (kind, calls) in stack.tunables().items():
        best, medians = tune(
            candidates(stack, name, kind), lambda tile, name=name, calls=calls: with_tile(stack, name, tile, calls)
        )
        stack.tiles[name] = store_plan({ANY_SIZE: best})
        report[name] = {
            "tile": str(best),
            "us": medians[best] * 1e3,
            "all_us": {str(t): ms * 1e3 for t, ms in medians.items()},
        }
        if kind is ProductTile:
            n, k = stack.model.products()[name]
            report[name]["tops"] = 2e-9 * stack.batch * stack.length * n * k / medians[best]
    return report


def run_stack(name: str, batch: int, length: int, plans: Sequence[str], modes: Sequence[str], out: str) -> None:
    """Time one stack by several plans against fp16 by several compilations, in turn; append a row for each plan."""
    model = MODELS[name]
    torch.manual_seed(0)
    lengths = torch.randint(length // 2, length + 1, (batch,), device="cuda") if model.is_masked else None
    x = torch.randn(batch * length, model.width, device="cuda", dtype=torch.float16)
    graphs, labels, reports, stacks = [], [], {}, []  # a graph does not keep what it reads
    mask = None if lengths is None else gpu_half.half_mask(lengths, length)
    backend, alone = gpu_half.fastest_attention(model, batch, length, mask, time_ms)
    parameters = [dict(gpu_half.HalfLayer(model).half().cuda().named_parameters()) for _ in range(model.layers)]
    cos, sin = gpu_half.rotary_tables(length, model.head_dim, torch.float16, "cuda") if model.rope else (None, None)
    for mode in modes:
        torch._dynamo.reset()
        layer_of = torch.compile(
            gpu_half.layer_function(model), dynamic=False, mode=None if mode == "default" else mode
        )

        def half(layer_of=layer_of):
            y = x.view(batch, length, model.width)
            for each in parameters:
                y = layer_of(each, y, mask, cos, sin)
            return y

        with gpu_half.sdpa_kernel(gpu_half.BACKENDS[backend]):
            graphs.append(capture([half]))
        labels.append(mode)
        log(name, batch, length, "fp16", mode, backend)
    for plan in plans:
        stack = Int8Stack(model, plan, batch, length, lengths)
        stacks.append(stack)
        reports[plan] = tune_stack(stack)
        graphs.append(capture([lambda stack=stack: stack(x)]))
        labels.append(plan)
        log(name, batch, length, plan, {op: (round(r["us"], 1), r["tile"]) for op, r in reports[plan].items()})
    times = dict(zip(labels, time_in_turn(graphs, ROUNDS), strict=True))
    fastest = min(modes, key=lambda mode: statistics.median(times[mode]))
    for plan in plans:
        ratios = [a / b for a, b in zip(times[fastest], times[plan], strict=True)]
        row = append_row(
            out, "gpu_stack", model=name, batch=batch, length=length, plan=plan, masked=model.is_masked,
            activation=stacks[0].activation,
            int8_ms=statistics.median(times[plan]), fp16_ms={mode: statistics.median(times[mode]) for mode in modes},
            ratio=statistics.median(ratios), ratio_min=min(ratios), ratio_max=max(ratios), fp16_attention=backend,
            fp16_attention_ms=alone, ops=reports[plan], **environment(),
        )  # fmt: skip
        ops = sum(r["us"] for r in reports[plan].values()) + reports[plan]["norm"]["us"]
        print(f"STACK {name} {batch}x{length} {plan}: fp16 {statistics.median(times[fastest]):.3f} ms "
              f"({fastest}, {backend}), int8 {row['int8_ms']:.3f} ms (ops {ops * model.layers / 1e3:.3f}), "
              f"{row['ratio']:.2f} times as fast", flush=True)  # fmt: skip


def environment() -> dict[str, Any]:
    """Return what of the GPU the figures depend on."""
    query = "clocks.sm,clocks.max.sm,power.draw,temperature.gpu,driver_version"
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return {
        "gpu": torch.cuda.get_device_name(),
        "triton": triton.__version__,
        "smi": dict(zip(query.split(","), done.stdout.strip().split(", "), strict=False)),
    }


def run_kernels(out: str) -> None:
    """Time every product of four models at several M beside cuBLAS and torch._int_mm; append a row for each."""
    for name in ("bert-base", "minilm-l6", "bert-large", "llama-1b"):
        for m in (16384, 4096, 1024, 128):
            stack = Int8Stack(model_with(MODELS[name], 4), "full", m // 128, 128, None)
            for op in stack.model.products():
                row = time_product(stack, op, m)
                append_row(out, "gpu_product", model=name, op=op, **row, **environment())
                sides = (
                    f"{side} {row[f'{side}_us']:.1f} us {row[f'{side}_tops']:.0f}"
                    for side in ("fp16", "int_mm", "int8")
                )
                print(
                    f"PRODUCT {name} {op} {m}x{row['n']}x{row['k']}: {', '.join(sides)} TOPS, {row['tile']}", flush=True
                )


def time_product(stack: Int8Stack, op: str, m: int) -> dict[str, Any]:
    """Return one product's microseconds and TOPS in fp16, by torch._int_mm (int32 result), by ours."""
    n, k = stack.model.products()[op]
    kind, calls = stack.tunables()[op]
    halves = [torch.randn(n, k, device="cuda", dtype=torch.float16) for _ in stack.layers]
    x = torch.randn(m, k, device="cuda", dtype=torch.float16)
    x8 = torch.randint(-90, 91, (m, k), device="cuda", dtype=torch.int8)
    fp16 = capture([lambda w=w: torch.nn.functional.linear(x, w) for w in halves])
    int_mm = capture([lambda layer=layer: torch._int_mm(x8, layer[op].weight.t()) for layer in stack.layers])
    best, _ = tune(candidates(stack, op, kind), lambda tile: with_tile(stack, op, tile, calls), 5)
    graphs = [fp16, int_mm, capture(with_tile(stack, op, best, calls))]
    row: dict[str, Any] = {"m": m, "n": n, "k": k, "tile": str(best)}
    for side, times in zip(("fp16", "int_mm", "int8"), time_in_turn(graphs, 11), strict=True):
        us = statistics.median(times) / len(calls) * 1e3
        row |= {f"{side}_us": us, f"{side}_tops": 2e-6 * m * n * k / us}
    return row


def with_tile(stack: Int8Stack, op: str, tile: Tile, calls: Sequence[Callable[[], Any]]) -> list[Callable[[], Any]]:
    """Return the calls, each with the op's tile set before it."""

    def one(call: Callable[[], Any]) -> Any:
        stack.tiles[op] = store_plan({ANY_SIZE: tile})
        return call()

    return [partial(one, call) for call in calls]


def model_with(model: Model, layers: int) -> Model:
    return replace(model, layers=layers)


def precompile(stacks: Sequence[tuple[str, int, int]], plans: Sequence[str], part: int, parts: int) -> None:
    """Compile every `parts`-th candidate, so that processes share the work; Triton's cache on disk holds the result."""
    jobs = []
    for name, batch, length in stacks:
        model = model_with(MODELS[name], 1)
        for plan in plans:
            stack = Int8Stack(
                model, plan, batch, length, torch.full((batch,), length, device="cuda") if model.is_masked else None
            )
            jobs += [
                (stack, op, tile, calls[0])
                for op, (kind, calls) in stack.tunables().items()
                for tile in candidates(stack, op, kind)
            ]
    for stack, op, tile, call in jobs[part::parts]:
        stack.tiles[op] = store_plan({ANY_SIZE: tile})
        try:
            call()
        except Exception as error:  # tuning says it again
            print("precompile", op, tile, type(error).__name__, str(error)[:200], flush=True)
    torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["kernels", "stacks"], required=True)
    parser.add_argument("--stack", nargs="+", metavar="MODEL:BxS", default=[f"{n}:{b}x{s}" for n, b, s in STACKS])
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument(
        "--modes", nargs="+", default=["default"], help="of torch.compile: default, max-autotune-no-cudagraphs"
    )
    parser.add_argument("--out", required=True)
    parser.add_argument("--processes", type=int, default=0, help="compile all candidates first, in so many processes")
    parser.add_argument("--precompile", metavar="I/N", help=argparse.SUPPRESS)
    args = parser.parse_args()
    stacks = []
    for text in args.stack:
        name, _, size = text.partition(":")
        batch, _, length = size.partition("x")
        stacks.append((name, int(batch), int(length)))
    with torch.inference_mode():
        if args.precompile:
            part, parts = map(int, args.precompile.split("/"))
            precompile(stacks, args.plans, part, parts)
            return
        if args.processes:
            start = [sys.executable, "-m", "benchmarks.gpu.kernels", *sys.argv[1:], "--precompile"]
            running = [
                subprocess.Popen([*start, f"{i}/{args.processes}"], env={**os.environ}) for i in range(args.processes)
            ]
            for each in running:
                each.wait()
            log("compiled the candidates")
        print(environment(), "torch", torch.__version__, flush=True)
        if args.part == "kernels":
            run_kernels(args.out)
            return
        for stack in stacks:
            try:
                run_stack(*stack, args.plans, args.modes, args.out)
            except Exception as error:
                print("FAILED", stack, type(error).__name__, str(error)[:500], flush=True)


START = time.perf_counter()
if __name__ == "__main__":
    main()
