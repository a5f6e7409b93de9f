"""Whole models on a GPU: engines of backend inductor against the fastest fp16 that torch gives, in turn.

    python -m benchmarks.gpu.engines --stack bert-base:32x128 ... --recipes int8_smoothquant --out rows.jsonl

The models have random weights in their published shapes (--checkpoint NAME=FOLDER puts a real one in the place of
one). fp16 is the float model by torch.compile with torch's attention, in each of --modes, and its float twin
(`export.py --checkpoint M --target inductor`), whose Q, K and V are one product too; all under CUDA graphs, with a
padding mask in use where the model reads one (lengths from half to all of the length). A row for each recipe: the
ratio is the fastest fp16's time over the engine's, the median of rounds in which all ran in turn. --peers runs
torchao's INT8 configurations in the same rounds, --tensorrt TensorRT's engines of the same model and recipes (under a
CUDA graph too where TensorRT can be captured, the median of three calls, before ours and after them in turn); --profile
puts the kernels of a call into the row.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers

from benchmarks.gpu import half as gpu_half
from benchmarks.gpu import peers
from benchmarks.gpu.kernels import environment, time_ms
from benchmarks.gpu.shapes import MODELS, STACKS
from benchmarks.rows import append_row
from calib.apply import apply_statistics
from calib.collect import collect
from engine.backend import BuildOptions, get_backend
from engine.backends.inductor.inspect import inspect_runner
from engine.backends.inductor.program import PLANS
from engine.backends.inductor.runner import InductorRunner
from engine.inspect.layers import InspectRequest
from engine.shapes import parse_shapes
from eval.report.run_data import short_recipe
from quant.insert import insert_quantizers
from quant.int8_program.export import export_program, save_program
from quant.models.example_inputs import example_inputs
from quant.models.pretrained import load_float_model
from quant.recipe import load_recipe

FLOAT = "float"
ROUNDS = 21
START = time.perf_counter()


def make_model(name: str, checkpoints: dict[str, str]) -> Any:
    """Return a model in float32: a real one, or random weights in the shape of `benchmarks.gpu.shapes`."""
    if name in checkpoints:
        return load_float_model(checkpoints[name]).model
    m = MODELS[name]
    torch.manual_seed(0)
    common = {"hidden_size": m.width, "num_hidden_layers": m.layers, "num_attention_heads": m.heads,
              "intermediate_size": m.inner}  # fmt: skip
    if name == "vit-b":
        return transformers.ViTForImageClassification(transformers.ViTConfig(**common)).eval()
    if name == "gpt2":
        return transformers.GPT2Model(transformers.GPT2Config()).eval()
    if name == "llama-1b":
        config = transformers.LlamaConfig(**common, num_key_value_heads=m.kv_heads, vocab_size=32000)
        return transformers.LlamaModel(config).eval()
    return transformers.BertForSequenceClassification(transformers.BertConfig(**common)).eval()


def calibrate(model: Any, recipe: str) -> None:
    """Quantize a model by a recipe, calibrated on two random batches: the ranges do not change the speed."""
    batches = [example_inputs(model, batch_size=2, seq_length=32, seed=seed) for seed in range(2)]
    insert_quantizers(model, load_recipe(recipe), batches[0])
    apply_statistics(model, collect(model, batches, progress=False))


def export_one(name: str, recipe: str, path: Path, args: argparse.Namespace) -> None:
    """Write the program of a model, calibrated where there is a recipe, and its ONNX where TensorRT reads it."""
    model = make_model(name, args.checkpoint)
    if recipe != FLOAT:
        calibrate(model, recipe)
    if args.tensorrt:
        with peers.TensorRTPeers(args.tensorrt, args.tensorrt_arguments) as others:
            others.export(model, path)
    save_program(*export_program(model), path)


def program_path(folder: Path, name: str, recipe: str, checkpoints: dict[str, str]) -> Path:
    """Return where a program stands: real weights and random ones are never taken for each other."""
    return folder / f"{name}{'-real' if name in checkpoints else ''}.{short_recipe(recipe)}.pt2"


def without_needless_masks() -> AbstractContextManager[Any]:
    """Let transformers make no mask where nothing is padded, as it does since 5.23: older ones make one in which all is
    seen while a model is compiled, and torch's flash attention, which takes none, is ruled out (ViT: twice as slow).

    Raises: AttributeError: a transformers that has no such function.
    """
    from transformers import masking_utils

    return mock.patch.object(masking_utils, "_ignore_bidirectional_mask_sdpa",
                             lambda padding_mask, *_, **__: padding_mask is None)  # fmt: skip


def feeds_of(model: Any, batch: int, length: int) -> dict[str, torch.Tensor]:
    """Return random inputs, with padding where the model reads a mask of it."""
    feeds = example_inputs(model, batch_size=batch, seq_length=length)
    if "attention_mask" in feeds:
        lengths = torch.randint(length // 2, length + 1, (batch,), generator=torch.Generator().manual_seed(1))
        feeds["attention_mask"] = (torch.arange(length)[None, :] < lengths[:, None]).long()
    return feeds


def call_options(name: str) -> dict[str, Any]:
    """Return what a float model is called with beside its inputs: a program returns no cache."""
    return {"use_cache": False} if name in ("gpt2", "llama-1b") else {}


def run_stack(name: str, batch: int, length: int, args: argparse.Namespace, folder: Path,
              others: peers.TensorRTPeers | None) -> None:  # fmt: skip
    """Time one shape of one model; append a row for each recipe."""
    model = make_model(name, args.checkpoint)
    shape = MODELS[name]
    feeds = feeds_of(model, batch, length)
    arrays = {name: np.asarray(x) for name, x in feeds.items()}
    graphs, labels, reports, keep = [], [], {}, []
    compiled = gpu_half.Compiled(model, shape, feeds, length, call_options(name), time_ms)

    def add_compiled(label: str, module: Any, mode: str) -> None:
        start = time.perf_counter()
        graphs.append(compiled.graph(module, mode))
        labels.append(label)
        log(name, batch, length, label, compiled.attention, f"{time.perf_counter() - start:.0f} s")

    for mode in args.modes:
        add_compiled(f"torch.compile {mode}", compiled.model, mode)
    found_peers = []
    for peer in peers.NAMES if args.peers else ():
        try:
            with peers.torchao_compiler():
                quantized = peers.quantized_copy(compiled.model, peer, compiled.feeds, compiled.options)
                add_compiled(peer, quantized, args.modes[-1])
            found_peers.append(peer)
        except Exception as error:  # of torchao or the compiler on its code; the row then lacks this peer
            log("PEER FAILED", peer, type(error).__name__, str(error)[:300])
    for recipe in (FLOAT, *args.recipes):
        torch._dynamo.reset()
        path = folder / f"{name}.{short_recipe(recipe)}.engine"
        first = next(iter(feeds))
        shapes = parse_shapes([f"{first}:{'x'.join(map(str, feeds[first].shape))}"])
        start = time.perf_counter()
        source = program_path(folder, name, recipe, args.checkpoint)
        get_backend("inductor").build(source, path, BuildOptions(shapes, force=True))
        built = time.perf_counter() - start
        torch._dynamo.reset()
        gc.collect()  # what the build leaves would be freed while the engine loads, and taken off its peak
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        runner: Any = get_backend("inductor").load(path)
        loaded = time.perf_counter() - start
        captured, _ = runner.fed(arrays)
        captured.replay()
        weights = sum(x.numel() * x.element_size() for x in (*runner.module.parameters(), *runner.module.buffers()))
        with zipfile.ZipFile(path) as archive:
            plans = json.loads(archive.read(PLANS))[0]["plans"]
        tiles = sorted({f"{name.rstrip('_0123456789')} {plan[1:]}" for name, plan in plans.items()})
        reports[recipe] = {"tiles": tiles, "build_s": built, "load_s": loaded, "weights_bytes": weights,
                           "memory_bytes": torch.cuda.memory_allocated() - before,
                           "peak_bytes": torch.cuda.max_memory_allocated() - before}  # fmt: skip
        if args.profile:
            reports[recipe]["kernels"] = kernels_of(runner, arrays)
        keep.append(runner)
        graphs.append(captured.graph)
        labels.append(recipe)
        log(name, batch, length, recipe, {k: v for k, v in reports[recipe].items() if k != "memory_bytes"})
    found = {FLOAT: "fp16"} | {recipe: short_recipe(recipe) for recipe in args.recipes}
    sources = {label: program_path(folder, name, recipe, args.checkpoint) for recipe, label in found.items()}
    times, of_others = peers.times_of(dict(zip(labels, graphs, strict=True)), ROUNDS, others, sources, arrays)
    found_peers += list(of_others)
    times |= of_others
    floats = [label for label in labels if label not in (*args.recipes, *found_peers)]
    fastest = min(floats, key=lambda label: statistics.median(times[label]))
    for recipe in args.recipes:
        ratios = [a / b for a, b in zip(times[fastest], times[recipe], strict=True)]
        row = append_row(
            args.out, "gpu_engine", model=name, weights="real" if name in args.checkpoint else "random", batch=batch,
            length=length, recipe=short_recipe(recipe), masked="attention_mask" in feeds,
            int8_ms=statistics.median(times[recipe]),
            fp16_ms={label: statistics.median(times[label]) for label in floats}, fastest_fp16=fastest,
            fp16_attention=compiled.attention, fp16_attention_ms=compiled.attention_ms,
            ratio=statistics.median(ratios), ratio_min=min(ratios),
            ratio_max=max(ratios), peers_ms={peer: statistics.median(times[peer]) for peer in found_peers},
            engine=reports[recipe], twin=reports[FLOAT], **environment(),
        )  # fmt: skip
        print(f"ENGINE {name} {batch}x{length} {recipe}: fp16 {row['fp16_ms']} peers {row['peers_ms']} "
              f"int8 {row['int8_ms']:.4f} ms, "
              f"{row['ratio']:.3f} times {fastest} [{row['ratio_min']:.3f}, {row['ratio_max']:.3f}]",
              flush=True)  # fmt: skip
    for runner in keep:
        runner.close()


def kernels_of(runner: InductorRunner, feeds: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the kernels of a call, those of the same layers of all blocks together: name, kind, type, number, µs."""
    request = InspectRequest(feeds=feeds, iterations=10)
    inspection = inspect_runner(runner, "", torch.cuda.get_device_name(), None, request)
    found: dict[tuple[str, str, str], list[float]] = {}
    for layer in inspection.layers:
        key = (re.sub(r"[._]\d+\b", ".*", layer.name)[:120], layer.kind, layer.precision)
        found.setdefault(key, []).append((layer.time_ms or 0.0) * 1e3)
    return [{"name": name, "kind": kind, "precision": precision, "count": len(us), "us": sum(us)}
            for (name, kind, precision), us in found.items()]  # fmt: skip


def log(*words: object) -> None:
    print(f"[{time.perf_counter() - START:6.1f} s]", *words, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", nargs="+", metavar="MODEL:BxS", default=[f"{n}:{b}x{s}" for n, b, s in STACKS])
    parser.add_argument("--recipes", nargs="+", default=["int8_smoothquant", "int8_full"], help="names or files")
    parser.add_argument("--modes", nargs="+", default=["default"], help="of torch.compile")
    parser.add_argument("--peers", action="store_true", help="also torchao, compiled in the last of --modes")
    parser.add_argument("--tensorrt", metavar="PYTHON", help="an interpreter with TensorRT: also its engines")
    parser.add_argument("--tensorrt-arguments", default="", help="for its builder, as in a sweep's --build-arguments")
    parser.add_argument("--profile", action="store_true", help="put the kernels of a call into the row")
    parser.add_argument("--checkpoint", nargs="+", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--out", required=True)
    parser.add_argument("--folder", help="keeps the programs, and takes those that are there")
    parser.add_argument("--export", nargs=2, metavar=("MODEL", "RECIPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.checkpoint = dict(each.split("=", 1) for each in args.checkpoint)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if args.export:
            export_one(*args.export, program_path(folder, *args.export, args.checkpoint), args)
            return
        stacks = [(name, *map(int, size.split("x"))) for name, _, size in (each.partition(":") for each in args.stack)]
        wanted = [(name, recipe) for name in dict.fromkeys(s[0] for s in stacks) for recipe in (FLOAT, *args.recipes)]
        failed: list[Any] = []
        with ExitStack() as stack:
            others = None
            if args.tensorrt:
                others = stack.enter_context(peers.TensorRTPeers(args.tensorrt, args.tensorrt_arguments))
            paths = {pair: program_path(folder, *pair, args.checkpoint) for pair in wanted}
            missing = [pair for pair, path in paths.items()
                       if not path.exists() or (others and not others.file_of(path).exists())]  # fmt: skip
            base = [sys.executable, "-m", "benchmarks.gpu.engines", *sys.argv[1:], "--folder", str(folder)]
            running = [subprocess.Popen([*base, "--export", *pair]) for pair in missing]
            codes = [each.wait() for each in running]
            if any(codes):
                raise SystemExit("exporting failed; the processes above say why")
            log("exported", missing)
            print(environment(), "torch", torch.__version__, flush=True)
            for each in stacks:
                try:
                    with without_needless_masks():
                        run_stack(*each, args, folder, others)
                except Exception as error:  # of torch, Triton or the driver; the other stacks are still measured
                    print("FAILED", each, type(error).__name__, str(error)[:600], flush=True)
                    failed.append(each)
        if failed:
            raise SystemExit(f"{len(failed)} of {len(stacks)} stacks failed")


if __name__ == "__main__":
    main()
