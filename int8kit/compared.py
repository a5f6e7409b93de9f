"""Quantize from samples alone: nothing is scored, outputs and speed are held against the float model."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from calib.apply import apply_statistics
from calib.bias_correction import batch_of, correct_biases
from calib.collect import collect
from calib.samples import Samples, load_samples
from engine.backend import BuildOptions, get_backend
from engine.cli import UsageError
from engine.manifest import read_manifest
from engine.passes.qdq import prepare_for_target
from engine.shapes import ShapeRange
from eval.parity.checked_export import export_checked
from eval.sweep.store import ArtifactStore
from eval.tensor_error import tensor_error
from eval.timing.latency import compare
from eval.timing.ratios import ratio_of, time_of
from int8kit.folder import write_folder
from int8kit.result import FLOAT, INT8, Line, Quantized, Steps
from quant.checkpoint import save_checkpoint
from quant.insert import insert_quantizers
from quant.models.example_inputs import example_inputs
from quant.models.pretrained import LoadedModel, load_float_model
from quant.onnx_export import export_onnx
from quant.recipe import OFF, load_recipe
from quant.weights_digest import weights_digest

BATCHES = (1, 8)
CHECKED = 64  # samples of another draw on which the outputs are compared


def compare_with_float(
    model: str, source: str, out: Path, backend: str, why: str, recipe_name: str, num_samples: int,
    column: list[str] | None, seq_length: int | None, threads: int | None, seed: int,
) -> Quantized:  # fmt: skip
    """Calibrate, export, build, and hold the outputs and the speed against the float model: no task is needed."""
    steps, store = Steps(5), ArtifactStore(out / ".work")
    with steps.step(f"load {model} and draw {num_samples} samples from {source}"):
        loaded = load_float_model(model)
        if loaded.processor is None:
            raise UsageError(f"{model} has no tokenizer or image processor; save it beside the model")
        samples, checked = (load_samples(source, loaded, columns=column, num_samples=n, seed=s, max_length=seq_length)
                            for n, s in ((num_samples, seed), (CHECKED, seed + 1)))  # fmt: skip
    length = seq_length or typical_length(samples)
    origin = {"model": weights_digest(loaded.model), "samples": samples.digest, "seed": seed,
              "recipe": load_recipe(recipe_name).to_dict(), "torch": torch.__version__}  # fmt: skip
    said: list[str] = []
    with steps.step(f"calibrate ({recipe_name})"):
        checkpoint = store.make("checkpoint", origin, lambda folder: said.append(
            _calibrate(model, samples, recipe_name, seed, folder)), "calibrate")  # fmt: skip
    target = get_backend(backend).target()
    with steps.step(f"export for {backend}, checked against the calibrated model"):
        exported = store.make("onnx", {**origin, "target": target}, lambda folder: _export(checkpoint, target, folder),
                              "export")  # fmt: skip
        twin = store.make("float", {"model": origin["model"], "torch": torch.__version__},
                          lambda folder: _export_float(loaded, folder), "float")  # fmt: skip
    file = exported / file_name(target)
    ranges = {n: ShapeRange(*(tuple(x.shape),) * 3) for n, x in _inputs(loaded, BATCHES[-1], length).items()}
    shapes = ranges_for(ranges) if get_backend(backend).info.wants_static_shapes else {}
    with steps.step(f"build for {backend}"):
        engine = _built(store, backend, file, shapes, threads) / "engine"
        base = _built(store, "onnxruntime", twin / "model.onnx", {}, threads) / "engine"
    with steps.step(
        f"compare with the float model: {checked.num_samples} samples of another draw, {len(BATCHES)} shapes"
    ):
        error = _error(loaded, backend, engine, checked, length, threads)
        times, speedup = _time(loaded, backend, engine, base, length, threads)
    manifest = read_manifest(engine)
    lines = (Line(FLOAT, read_manifest(base).size_bytes / 1e6, times[FLOAT]),
             Line(INT8, manifest.size_bytes / 1e6, times[INT8], error=error))  # fmt: skip
    found = Quantized(out, model, recipe_name, backend, lines, speedup, manifest.products.summary(),
                      samples.num_samples, manifest.device, notes=(why, *said))  # fmt: skip
    write_folder(found, checkpoint, file, engine)
    return found


def _calibrate(model: str, samples: Samples, recipe_name: str, seed: int, folder: Path) -> str:
    """Write a calibrated checkpoint; return what bias correction did, in words."""
    loaded = load_float_model(model)
    recipe = load_recipe(recipe_name)
    insert_quantizers(loaded.model, recipe)
    used = apply_statistics(loaded.model, collect(loaded.model, samples, seed=seed))
    provenance: dict[str, Any] = {"model": model, "seed": seed, "samples": samples.source,
                                  "samples_digest": samples.digest, "num_samples": samples.num_samples}  # fmt: skip
    said = ""
    if used.calibrator.bias_correction != OFF:
        correction = correct_biases(loaded.model, batch_of(samples), seed)
        provenance["bias_correction"], said = correction.to_dict(), str(correction)
    save_checkpoint(loaded.model, folder, processor=loaded.processor, provenance=provenance)
    return said


def file_name(target: str) -> str:
    """Return what the exported file is called."""
    return "model.pt2" if target == "inductor" else "model.onnx"


def _export(checkpoint: Path, target: str, folder: Path) -> None:
    words = argparse.Namespace(checkpoint=str(checkpoint), target=target, out=str(folder / file_name(target)),
                               force=True, json=False)  # fmt: skip
    with contextlib.redirect_stdout(sys.stderr):
        export_checked(words, "fp16" if target in ("inductor", "tensorrt", "tensorrt8") else None)


def _export_float(loaded: LoadedModel, folder: Path) -> None:
    path = folder / "model.onnx"
    export_onnx(loaded.model, path, processor=loaded.processor)
    onnx.save(prepare_for_target(onnx.load(path), "onnxruntime", {"int8kit.source": loaded.name}), path)


def _built(store: ArtifactStore, backend: str, file: Path, shapes: dict[str, ShapeRange], threads: int | None) -> Path:
    made: Callable[[Path], Any] = lambda folder: get_backend(backend).build(  # noqa: E731
        file, folder / "engine", BuildOptions(shapes, threads)
    )
    inputs = {"file": hashlib.sha256(file.read_bytes()).hexdigest(), "backend": backend, "threads": threads,
              "version": get_backend(backend).version(), "shapes": {k: str(v) for k, v in shapes.items()}}  # fmt: skip
    return store.make("engine", inputs, made, f"build for {backend}")


def ranges_for(largest: dict[str, ShapeRange]) -> dict[str, ShapeRange]:
    """Return ranges from one sample to the largest batch, for runtimes that want to know their shapes."""
    return {name: ShapeRange((1, *each.max[1:]), each.max, each.max) for name, each in largest.items()}


def _inputs(loaded: LoadedModel, batch: int, length: int) -> dict[str, torch.Tensor]:
    return example_inputs(loaded.model, batch_size=batch, seq_length=length, processor=loaded.processor)


def typical_length(samples: Samples) -> int:
    """Return the longest of the drawn samples in tokens, rounded up to 16: what a call is timed at; 0 for images."""
    batch = next(iter(samples.spread(min(samples.num_samples, 64))))
    return -(-batch["input_ids"].shape[1] // 16) * 16 if "input_ids" in batch else 0


def _error(
    loaded: LoadedModel, backend: str, engine: Path, checked: Samples, length: int, threads: int | None
) -> float:
    """Return the mean |output - float output| over the checked samples."""
    total, count = 0.0, 0
    with get_backend(backend).load(engine, threads) as runner, torch.no_grad():
        for batch in checked.spread(checked.num_samples):
            for row in range(len(next(iter(batch.values())))):
                one = {name: x[row : row + 1] for name, x in batch.items()}
                if "input_ids" in one and "attention_mask" in one:
                    one = _at_length(one, length)
                expected = loaded.model(**one)
                feeds = {name: one[name].numpy() for name in runner.input_names if name in one}
                for name, value in runner(feeds).items():
                    if name in expected:
                        total += tensor_error(value, expected[name].numpy(), name).abs_mean * value.size
                        count += value.size
    return total / max(count, 1)


def _at_length(one: dict[str, torch.Tensor], length: int) -> dict[str, torch.Tensor]:
    """Return one sample cut or padded to a length."""
    have = one["input_ids"].shape[1]
    if have >= length:
        return {name: x[:, :length] for name, x in one.items()}
    return {name: torch.nn.functional.pad(x, (0, length - have)) for name, x in one.items()}


def _time(loaded: LoadedModel, backend: str, engine: Path, base: Path, length: int, threads: int | None
          ) -> tuple[dict[str, dict[str, float]], dict[str, tuple[float, float, float]]]:  # fmt: skip
    times: dict[str, dict[str, float]] = {FLOAT: {}, INT8: {}}
    speedup = {}
    with contextlib.ExitStack() as stack:
        runners = {FLOAT: stack.enter_context(get_backend("onnxruntime").load(base, threads)),
                   INT8: stack.enter_context(get_backend(backend).load(engine, threads))}  # fmt: skip
        for batch in BATCHES:
            feeds: dict[str, np.ndarray] = {n: x.numpy() for n, x in _inputs(loaded, batch, length).items()}
            own = {name: {key: feeds[key] for key in runner.input_names} for name, runner in runners.items()}
            found = compare(runners, own, FLOAT, num_blocks=6, max_blocks=12)
            shape = f"{batch}x{length}" if length else str(batch)
            blocks = {name: each.block_ms for name, each in found.items()}
            for name in times:
                times[name][shape] = time_of(blocks[name]).value
            ratio = ratio_of(blocks[FLOAT], blocks[INT8])
            speedup[shape] = (ratio.value, ratio.low, ratio.high)
    return times, speedup
