"""What each fusion buys: one model's engine built with more and more of the passes over its program, all in turn.

    python -m benchmarks.gpu.ladder --stack bert-base:128x128 --recipe int8_smoothquant --out rows.jsonl

Beside the steps stand torch.compile's fp16, its INT8 by `torch._int_mm` (torchao's static configuration, where torchao
is there; --modes, the first for fp16 and the last for torchao) and our float twin. The steps begin with INT8 products
with nothing fused, and products as Triton makes them; after them stands the whole with those of
`kernels.hopper_kernel` (9.0). A row for each: its milliseconds (the median of rounds in which all ran in turn), what a
step takes off the one before it, the kernels of a call in groups. --picture draws the last row of each.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.gpu import half as gpu_half
from benchmarks.gpu import peers
from benchmarks.gpu.engines import (
    calibrate,
    call_options,
    feeds_of,
    kernels_of,
    log,
    make_model,
    without_needless_masks,
)
from benchmarks.gpu.kernels import environment, time_ms
from benchmarks.gpu.profile_plot import GROUPS, in_groups
from benchmarks.gpu.shapes import MODELS
from benchmarks.rows import append_row, read_rows
from engine.backend import BuildOptions, get_backend
from engine.backends.inductor import tuning
from engine.shapes import parse_shapes
from eval.report.figure_style import COLORS, new_figure
from eval.report.run_data import short_recipe
from kernels import tiles
from kernels.tiles import PINGPONG, RESIDENT
from kernels.tune import time_in_turn
from quant.int8_program import norms, products
from quant.int8_program.export import PASSES, export_program, save_program

ROUNDS = 21
COMPILED, INT_MM, TWIN = "torch.compile, fp16", "torch._int_mm (torchao static)", "our fp16 twin"
# Each step runs what stands before it and these passes too; the rest of PASSES runs in all.
STEPS: dict[str, tuple[Any, ...]] = {
    "INT8 products, nothing fused": (),
    "+ activation, residual, codes in the product": (products.fuse_gated, products.fuse_results),
    "+ Q, K and V in one product": (products.merge_linears, products.merge_float_linears),
    "+ codes written by attention": (norms.fuse_attention_results,),
    "+ codes written by norms": (norms.fuse_norms,),
}
# The last of STEPS, with products that may run by these schedules too.
SCHEDULES: dict[str, tuple[int, ...]] = {
    "+ products by two groups of warps in turn": (PINGPONG,),
    "+ weights that stay in shared memory": (PINGPONG, RESIDENT),
}


def passes_of(step: str) -> tuple[Any, ...]:
    """Return the passes of a step of STEPS, in their order."""
    names = list(STEPS)
    later = {each for name in names[names.index(step) + 1 :] for each in STEPS[name]}
    return tuple(each for each in PASSES if each not in later)


def programs(name: str, recipe: str, folder: Path) -> dict[str, Path]:
    """Write the program of the float twin and of every step where they do not stand; return their paths."""
    paths = {TWIN: folder / f"{name}.twin.pt2"}
    for step in STEPS:
        passes = hashlib.sha256(" ".join(each.__name__ for each in passes_of(step)).encode()).hexdigest()[:8]
        paths[step] = folder / f"{name}.{short_recipe(recipe)}.{passes}.pt2"
    if all(path.exists() for path in paths.values()):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    model = make_model(name, {})
    save_program(*export_program(model), paths[TWIN])
    calibrate(model, recipe)
    for step in STEPS:
        save_program(*export_program(model, passes=passes_of(step)), paths[step])
        log("exported", step)
    return paths


def measure(name: str, batch: int, length: int, args: argparse.Namespace, folder: Path) -> None:
    """Build every step, time them in turn, append their rows."""
    paths = programs(name, args.recipe, folder)
    graphs, groups, keep = {}, {}, []
    model = make_model(name, {})
    feeds = feeds_of(model, batch, length)
    arrays = {key: np.asarray(x) for key, x in feeds.items()}
    compiled = gpu_half.Compiled(model, MODELS[name], feeds, length, call_options(name), time_ms)
    graphs[COMPILED] = compiled.graph(compiled.model, args.modes[0])
    log("compiled", COMPILED)
    try:
        with peers.torchao_compiler():
            quantized = peers.quantized_copy(compiled.model, "torchao static", compiled.feeds, compiled.options)
            graphs[INT_MM] = compiled.graph(quantized, args.modes[-1])
        log("compiled", INT_MM)
    except Exception as error:  # torchao is not there, or it or the compiler fails on its code: the ladder lacks a step
        log("without", INT_MM, type(error).__name__, str(error)[:200])
    first = next(iter(arrays))
    shapes = parse_shapes([f"{first}:{'x'.join(map(str, arrays[first].shape))}"])
    whole = list(paths)[-1]
    chosen: dict[Any, Any] = {}
    product = torch.ops.int8kit.linear.default
    for number, (label, path) in enumerate({**paths, **dict.fromkeys(SCHEDULES, paths[whole])}.items()):
        schedules = SCHEDULES.get(label, ())
        offered = tuple(tile for tile in tiles.HOPPER_TILES if tile.schedule in schedules)
        engine = folder / f"{number}.engine"
        if schedules:  # products are timed again, what else was chosen stays
            chosen = {key: tile for key, tile in chosen.items() if key[-1][0] is not product}
        with mock.patch.object(tiles, "HOPPER_TILES", offered), mock.patch.object(tuning, "_chosen", chosen):
            torch._dynamo.reset()
            get_backend("inductor").build(path, engine, BuildOptions(shapes, force=True))
            torch._dynamo.reset()
            runner: Any = get_backend("inductor").load(engine)
            graphs[label] = runner.fed(arrays)[0].graph
        groups[label] = in_groups(kernels_of(runner, arrays))
        keep.append(runner)
        log("built", label)
    times = dict(zip(graphs, time_in_turn(list(graphs.values()), ROUNDS), strict=True))
    before = {later: earlier for earlier, later in itertools.pairwise((*STEPS, *SCHEDULES))}
    for label, taken in times.items():
        ms = statistics.median(taken)
        saved = None  # over the step before; the other three are no steps
        if label in before:
            saved = statistics.median(a - b for a, b in zip(times[before[label]], taken, strict=True))
        mode = {COMPILED: args.modes[0], INT_MM: args.modes[-1]}.get(label)
        append_row(args.out, "gpu_ladder", model=name, batch=batch, length=length, recipe=short_recipe(args.recipe),
                   step=label, mode=mode, ms=ms, ms_min=min(taken), ms_max=max(taken), saved_ms=saved,
                   groups_ms=groups.get(label),
                   ratio=statistics.median(a / b for a, b in zip(times[COMPILED], taken, strict=True)),
                   **environment())  # fmt: skip
        print(f"LADDER {name} {batch}x{length} {label:44s} {ms:.4f} ms "
              + " ".join(f"{key} {value:.3f}" for key, value in (groups.get(label) or {}).items()), flush=True)
    for runner in keep:
        runner.close()


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Draw one bar for each step: its kernels in groups, and what lies between them, or its time as one."""
    figure, axis = new_figure(9.6, 1.2 + 0.42 * len(rows))
    named: set[str] = set()
    for place, row in enumerate(rows):
        left = 0.0
        for group, color in zip(GROUPS, COLORS, strict=False):
            ms = (row["groups_ms"] or {}).get(group, 0.0)
            axis.barh(place, ms, left=left, color=color, height=0.72, label=None if group in named else group)
            named.add(group)
            left += ms
        rest = "#c9c9c9" if row["groups_ms"] is None else "#ececec"
        axis.barh(place, max(row["ms"] - left, 0), left=left, color=rest, height=0.72,
                  label="between kernels" if left and "between" not in named else None)  # fmt: skip
        if left:
            named.add("between")
        axis.text(max(left, row["ms"]) + 0.05, place, f"{row['ms']:.2f} ms", va="center", fontsize=9)
    axis.set_yticks(range(len(rows)), [row["step"] for row in rows])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlim(0, 1.12 * max(row["ms"] for row in rows))
    last = rows[-1]
    axis.set_xlabel(f"ms of a call, {last['model']} {last['batch']} x {last['length']}, {last['recipe']}")
    figure.legend(loc="outside lower center", ncols=len(GROUPS) + 1)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130, facecolor="white", metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", default="bert-base:128x128", metavar="MODEL:BxS")
    parser.add_argument("--modes", nargs="+", default=["default"], help="of torch.compile, for fp16 and for torchao")
    parser.add_argument("--recipe", default="int8_smoothquant", help="a name or a file")
    parser.add_argument("--out", required=True, help="rows; with --picture, those that are drawn")
    parser.add_argument("--folder", help="keeps the programs, and takes those that are there")
    parser.add_argument("--picture", metavar="PNG", help="measure nothing: draw the rows of the stack")
    args = parser.parse_args()
    name, _, size = args.stack.partition(":")
    batch, length = map(int, size.split("x"))
    if args.picture:
        wanted = {"model": name, "batch": batch, "length": length, "recipe": short_recipe(args.recipe)}
        last = {row["step"]: row for row in read_rows(args.out) if wanted.items() <= row.items()}
        rows = [last[step] for step in (COMPILED, INT_MM, TWIN, *STEPS, *SCHEDULES) if step in last]
        if not rows:
            parser.error(f"{args.out} holds no row of {args.stack}, {wanted['recipe']}; measure it without --picture")
        draw(rows, Path(args.picture))
        return
    with tempfile.TemporaryDirectory() as temporary, without_needless_masks():
        measure(name, batch, length, args, Path(args.folder or temporary))


if __name__ == "__main__":
    main()
