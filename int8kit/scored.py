"""Quantize for a task: a small sweep scores float and INT8, and a search follows where the recipe loses too much."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from calib.sample_batches import longest_input
from engine.backend import get_backend
from eval.report.__main__ import write_report
from eval.report.run_data import RunData, read_run
from eval.report.speeds import ratio_over, time_at
from eval.search.answer import answer_of
from eval.search.page import write_page
from eval.search.result import SearchOptions
from eval.search.run import run_search
from eval.sweep.grid import SweepOptions, System, primary_shape, usual_of
from eval.sweep.run import run_sweep
from eval.sweep.run_folder import RunFolder
from eval.sweep.store import ArtifactStore, digest_of
from eval.sweep.workshop import Workshop
from eval.tasks import get_task, task_path
from int8kit.folder import PAGE, write_folder
from int8kit.made import PROGRAM
from int8kit.result import FLOAT, INT8, Line, Quantized, Steps
from quant.models.pretrained import load_float_model
from quant.recipe import load_recipe

T = TypeVar("T")
SHOWN = ("pytorch", "onnxruntime-fastest")  # of the references
SEARCH_PAGE = "search.html"
USUAL_LENGTH = 128  # tokens, as published results of such tasks have it


def score(
    model: str, samples: str | None, out: Path, *, task: str, data: str | None, backend: str, why: str, recipe: str,
    max_loss: float, num_samples: int, column: list[str] | None, seq_length: int | None, threads: int | None, seed: int,
) -> Quantized:  # fmt: skip
    """Quantize, score and time; see `int8kit.pipeline.quantize`."""
    known = get_task(task)
    source = samples or data or known.default_data
    if source is None:
        raise ValueError(f"task {task} has no default data set; give --data, or --samples to calibrate from")
    usual = usual_of((backend,))
    length = (seq_length or _usual_length(model)) if known.is_text else None
    options = SweepOptions(
        model=model, task=task_path(task), data=data, split="validation", columns=tuple(column) if column else None,
        label_column=None, samples=source, num_calibration=num_samples, num_samples=None, seed=seed,
        methods=(*usual.floats, load_recipe(recipe).calibrator.method), recipes=(recipe,),
        backends=(backend,), references=tuple(each for each in SHOWN if each in usual.references),
        batch_sizes=(1, 8), seq_lengths=(length,), shapes="auto",
        threads=threads or os.cpu_count() or 1, rounds=6, device=usual.device, qat_arguments="",
        load_clients=(), load_seconds=2.0, max_rounds=12,
    )  # fmt: skip
    steps, asked_for = Steps(2), digest_of(options.as_dict())
    run, searched = (out / ".work" / f"{kind}-{asked_for}" for kind in ("sweep", "search"))
    words = f"int8kit quantize {model} --task {task}"
    with steps.step(f"calibrate, export, build for {backend}, score on {task}"):
        _anew_if_other(run, partial(run_sweep, options, run, words, retry_failed=True))
    data_of = read_run(run)
    system = next(each for each in data_of.systems if each.recipe is not None)
    notes, page = [why], None
    lost = data_of.loss(system)
    if lost is not None and lost > max_loss:
        with steps.step(f"{recipe} loses {lost:.4f}, more than {max_loss:g}: search"):
            searched = searched.with_name(f"{searched.name}-{max_loss:g}")
            asked = SearchOptions(options, max_loss, None)
            found = _anew_if_other(searched, partial(run_search, asked, searched, words))
            page = write_page(found, searched)
        notes.append(answer_of(found))
        if found.chosen is not None and found.proof is not None:
            run, data_of, system = searched / "proof", found.proof, found.chosen
    result = _result(data_of, system, out, model, backend, task, num_samples, notes)
    workshop = Workshop(data_of.options, ArtifactStore(RunFolder(run).artifacts))
    file, shape = workshop.onnx(system), primary_shape(data_of.options)
    is_program = get_backend(backend).target() == "inductor"  # the sweep calls every exported file model.onnx
    pages = {PAGE: write_report(run, max_loss=max_loss), **({} if page is None else {SEARCH_PAGE: page})}
    write_folder(result, workshop.checkpoint(system), file, workshop.engine(system, shape),
                 file_name=PROGRAM if is_program else None, pages=pages)  # fmt: skip
    return result


def _anew_if_other(folder: Path, make: Callable[[], T]) -> T:
    """Return what `make` leaves in a folder of the cache; one of other weights, data or versions goes first."""
    try:
        return make()
    except FileExistsError:
        shutil.rmtree(folder)
        return make()


def _usual_length(model: str) -> int:
    """Return the tokens that samples are padded to: USUAL_LENGTH, or what the model takes at most."""
    return min(longest_input(load_float_model(model)) or USUAL_LENGTH, USUAL_LENGTH)


def _result(data: RunData, system: System, out: Path, model: str, backend: str, task: str, num_samples: int,
            notes: list[str]) -> Quantized:  # fmt: skip
    if not data.float_systems:
        reason = next((row.row.error for row in data.rows if row.row.error), "it was not measured")
        raise RuntimeError(f"the float model did not run, so nothing can be compared: {reason}")
    rival = min(data.float_systems, key=lambda each: float("inf") if (t := time_at(data, each)) is None else t.value)
    lines, speedup = [], {}
    common = [shape for shape in data.shapes if time_at(data, rival, shape) and time_at(data, system, shape)]
    for name, each in ((FLOAT, rival), (INT8, system)):
        row = data.ok(each)
        if row is None:
            failed = data.row(each)
            reason = (failed.row.error if failed is not None else None) or "it was not measured"
            raise RuntimeError(f"{each.name} did not run: {reason}. The same command tries again")
        ms = {shape.name: time.value for shape in common if (time := time_at(data, each, shape))}
        size = None if row.row.size_bytes is None else row.row.size_bytes / 1e6
        lines.append(Line(name, size, ms, row.row.metric, row.row.error_abs_mean if name == INT8 else None))
    for shape in data.shapes:
        if (found := ratio_over(data, system, rival, [shape])) is not None:
            speedup[shape.name] = (found.value, found.low, found.high)
    products = next((row.details.products.summary() for row in data.rows
                     if row.system == system.name and row.details.products), "")  # fmt: skip
    metric = data.metric.name if data.metric else None
    return Quantized(out, model, str(system.recipe), backend, tuple(lines), speedup, products, num_samples,
                     data.manifest["device"], metric, task, tuple(notes))  # fmt: skip
