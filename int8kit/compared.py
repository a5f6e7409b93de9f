"""Quantize from samples alone: nothing is scored, outputs and speed are held against the float model."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import torch

from calib.sample_batches import longest_input
from calib.samples import Samples, load_samples
from engine.backend import get_backend
from engine.cli import UsageError
from engine.manifest import read_manifest
from engine.shapes import ShapeRange
from eval.sweep.store import ArtifactStore
from eval.tensor_error import tensor_error
from eval.timing.latency import compare
from eval.timing.ratios import ratio_of, time_of
from int8kit.folder import write_folder
from int8kit.made import Maker, digests_of, told_by
from int8kit.result import FLOAT, INT8, Line, Quantized, Steps
from quant.models.encoder_decoder import is_encoder_decoder
from quant.models.example_inputs import example_inputs
from quant.models.pretrained import LoadedModel, load_float_model
from quant.recipe import load_recipe

BATCHES = (1, 8)
CHECKED = 64  # samples on which the outputs are compared: none that calibrated, while there are others


def compare_with_float(
    model: str, source: str, out: Path, backend: str, why: str, recipe_name: str, num_samples: int,
    column: list[str] | None, seq_length: int | None, threads: int | None, seed: int,
) -> Quantized:  # fmt: skip
    """Calibrate, export, build, and hold the outputs and the speed against the float model: no task is needed."""
    steps, store = Steps(5), ArtifactStore(out / ".work")
    with steps.step(f"load {model} and draw {num_samples} samples from {source}"):
        loaded = load_float_model(model)
        if is_encoder_decoder(loaded.model):
            raise UsageError(f"{model} is an encoder-decoder, exported as two files: take int8kit calib and export")
        if loaded.processor is None:
            raise UsageError(f"{model} has no tokenizer or image processor; save it beside the model")
        samples, checked = (load_samples(source, loaded, columns=column, num_samples=n, seed=seed, after=after,
                                         max_length=seq_length)
                            for n, after in ((num_samples, 0), (CHECKED, num_samples)))  # fmt: skip
    shared = checked.num_shared_with(samples)
    length = seq_length or typical_length(samples, longest_input(loaded))
    made = Maker(store, loaded, model, seed, seq_length, threads)
    with steps.step(f"calibrate ({recipe_name})"):
        checkpoint = made.checkpoint(samples, load_recipe(recipe_name))
    rivals = list(dict.fromkeys(("onnxruntime", backend)))  # the float model in the same runtime, and in the usual one
    with steps.step(f"export for {backend}, checked against the calibrated model"):
        file = made.exported(str(checkpoint), digests_of(checkpoint), backend)
        floats = {each: made.exported(model, None, each) for each in rivals}
    shapes = _ranges(loaded, length)
    with steps.step(f"build for {backend}"):
        engine = made.engine(file, backend, shapes if get_backend(backend).info.wants_static_shapes else {})
        bases = {each: made.engine(path, each, shapes if get_backend(each).info.wants_static_shapes else {})
                 for each, path in floats.items()}  # fmt: skip
    with steps.step(f"compare with the float model on {checked.num_samples} samples"):
        error = _error(loaded, backend, engine, checked, length, threads)
        times, speedup, fastest = _time(loaded, (backend, engine), bases, length, threads)
    manifest = read_manifest(engine)
    lines = (Line(FLOAT, read_manifest(bases[fastest]).size_bytes / 1e6, times[FLOAT]),
             Line(INT8, manifest.size_bytes / 1e6, times[INT8], error=error))  # fmt: skip
    notes = (why, f"float is {fastest}'s, the fastest of {', '.join(rivals)}" if len(rivals) > 1 else "",
             f"{shared} of the {checked.num_samples} samples compared also calibrated: give more" if shared else "",
             told_by(checkpoint))  # fmt: skip
    found = Quantized(out, model, recipe_name, backend, lines, speedup, manifest.products.summary(),
                      samples.num_samples, manifest.device, notes=tuple(note for note in notes if note))  # fmt: skip
    write_folder(found, checkpoint, file, engine)
    return found


def _ranges(loaded: LoadedModel, length: int) -> dict[str, ShapeRange]:
    """Return ranges from one sample to the largest batch, for runtimes that want to know their shapes."""
    largest = {name: tuple(x.shape) for name, x in _inputs(loaded, BATCHES[-1], length).items()}
    return {name: ShapeRange((1, *shape[1:]), shape, shape) for name, shape in largest.items()}


def _inputs(loaded: LoadedModel, batch: int, length: int) -> dict[str, torch.Tensor]:
    return example_inputs(loaded.model, batch_size=batch, seq_length=length or 8, processor=loaded.processor)


def typical_length(samples: Samples, most: int | None) -> int:
    """Return the longest of 64 drawn samples in tokens, rounded up to 16: what a call is timed at; 0 for images."""
    batch = next(iter(samples.spread(min(samples.num_samples, 64))))
    if "input_ids" not in batch:
        return 0
    length = -(-batch["input_ids"].shape[1] // 16) * 16
    return length if most is None else min(length, most)


def _error(
    loaded: LoadedModel, backend: str, engine: Path, checked: Samples, length: int, threads: int | None
) -> float:
    """Return the mean |output - float output| over the checked samples, padding left out."""
    total, count = 0.0, 0
    with get_backend(backend).load(engine, threads) as runner, torch.no_grad():
        batch = next(iter(checked.spread(checked.num_samples)))
        for row in range(len(next(iter(batch.values())))):
            one = {name: x[row : row + 1] for name, x in batch.items()}
            if "input_ids" in one and "attention_mask" in one:
                one = _at_length(one, length)
            expected, mask = loaded.model(**one), one.get("attention_mask")
            feeds = {name: one[name].numpy() for name in runner.input_names if name in one}
            for name, value in runner(feeds).items():
                if name in expected:
                    ref = expected[name].numpy()
                    if mask is not None and ref.shape[:2] == mask.shape:
                        seen = mask.numpy().astype(bool)
                        value, ref = value[seen], ref[seen]
                    total += tensor_error(value, ref, name).abs_mean * value.size
                    count += value.size
    if count == 0:
        raise RuntimeError("the engine gives none of the model's outputs, so nothing can be compared")
    return total / count


def _at_length(one: dict[str, torch.Tensor], length: int) -> dict[str, torch.Tensor]:
    """Return one sample with what it holds of each token cut or padded to a length; an image beside stays."""
    shape = one["attention_mask"].shape
    missing = max(length - shape[1], 0)
    return {name: torch.nn.functional.pad(x[:, :length], (0, missing)) if x.shape == shape else x
            for name, x in one.items()}  # fmt: skip


def _time(loaded: LoadedModel, int8: tuple[str, Path], bases: dict[str, Path], length: int, threads: int | None
          ) -> tuple[dict[str, dict[str, float]], dict[str, tuple[float, float, float]], str]:  # fmt: skip
    """Return the times of the fastest float engine and of INT8, all in turn, their ratios, and which float it was."""
    found = {}
    with contextlib.ExitStack() as stack:
        runners = {name: stack.enter_context(get_backend(name).load(path, threads)) for name, path in bases.items()}
        runners[INT8] = stack.enter_context(get_backend(int8[0]).load(int8[1], threads))
        for batch in BATCHES:
            feeds: dict[str, np.ndarray] = {n: x.numpy() for n, x in _inputs(loaded, batch, length).items()}
            own = {name: {key: feeds[key] for key in runner.input_names} for name, runner in runners.items()}
            shape = f"{batch}x{length}" if length else str(batch)
            timed = compare(runners, own, next(iter(bases)), num_blocks=6, max_blocks=12)
            found[shape] = {name: each.block_ms for name, each in timed.items()}
    last = found[next(reversed(found))]
    fastest = min(bases, key=lambda name: time_of(last[name]).value)
    times = {side: {shape: time_of(blocks[name]).value for shape, blocks in found.items()}
             for side, name in ((FLOAT, fastest), (INT8, INT8))}  # fmt: skip
    speedup = {}
    for shape, blocks in found.items():
        ratio = ratio_of(blocks[fastest], blocks[INT8])
        speedup[shape] = (ratio.value, ratio.low, ratio.high)
    return times, speedup, fastest
