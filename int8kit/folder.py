"""The folder that a run leaves: files, the page `report.html`, the model card `README.md` with the hub's metadata."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from engine.manifest import with_companions
from eval.report.document.blocks import Block, Card, Cell, Code, Document, Items, Prose, Section, Table
from eval.report.document.markdown import block_lines
from eval.report.document.page import render_page
from eval.report.writing import NOTHING, small
from eval.search.plans import write_recipe
from int8kit.result import FLOAT, INT8, Quantized
from quant.checkpoint import read_description
from quant.recipe import recipe_from_dict

CARD, PAGE, RESULT, CHECKPOINT, RECIPE = "README.md", "report.html", "result.json", "checkpoint", "RECIPE.yaml"
WORK, WRITTEN = ".work", "written.json"  # the names that a run left in the folder
USE = {
    "onnxruntime": ("import onnxruntime", 'session = onnxruntime.InferenceSession("{file}")',
                    "outputs = session.run(None, feeds)  # feeds: input name -> numpy array"),
    "openvino": ("import openvino", 'model = openvino.Core().compile_model("{file}", "CPU")',
                 "outputs = model(feeds)  # feeds: input name -> numpy array"),
}  # fmt: skip


def write_folder(found: Quantized, checkpoint: Path, file: Path, engine: Path, *, file_name: str | None = None,
                 pages: Mapping[str, Path] | None = None) -> None:  # fmt: skip
    """Put checkpoint, exported file, engine, recipe, page, card and result into the folder.

    They are put together in `.work` and moved when they are whole. Of an earlier run what it wrote is removed, and
    nothing else.
    Args:
        file_name: of the exported file there; None: its own.
        pages: name there → file; a `report.html` among them is the page.
    """
    new, written = found.out / WORK / "folder", found.out / WORK / WRITTEN
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    shutil.copytree(checkpoint, new / CHECKPOINT, ignore=shutil.ignore_patterns("inputs.json"))
    for source in (*with_companions(file), *with_companions(engine)):
        shutil.copy2(source, new / source.name)
    if file_name is not None:
        (new / file.name).rename(new / file_name)
    name = file_name or file.name
    write_recipe(recipe_from_dict(read_description(checkpoint)["recipe"]), new / RECIPE, "what was calibrated")
    staged = replace(found, out=new)  # where the checkpoint is that they describe
    (new / CARD).write_text(card(staged, name), encoding="utf-8")
    (new / PAGE).write_text(render_page(document(staged, name), {}), encoding="utf-8")
    (new / RESULT).write_text(json.dumps(found.to_dict(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for page, path in (pages or {}).items():
        shutil.copy2(path, new / page)
    names = sorted(each.name for each in new.iterdir())
    before = json.loads(written.read_text(encoding="utf-8")) if written.is_file() else []
    old_and_new = sorted({*before, *names})
    written.write_text(json.dumps(old_and_new), encoding="utf-8")  # a kill from here on loses no track
    for old in old_and_new:
        path = found.out / old
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for each in names:
        (new / each).replace(found.out / each)
    written.write_text(json.dumps(names), encoding="utf-8")


def card(found: Quantized, file: str) -> str:
    """Return the model card: the hub's metadata, what was measured, and how to load it."""
    name = Path(found.model).name
    metadata: dict[str, Any] = {"tags": ["int8", "quantized", "int8kit"], "library_name": "transformers"}
    if not Path(found.model).exists():
        metadata["base_model"] = found.model
        metadata["base_model_relation"] = "quantized"
    int8 = next(line for line in found.lines if line.name == INT8)
    if found.task is not None and int8.metric is not None:
        metadata["model-index"] = [{"name": f"{name}-int8", "results": [{
            "task": {"type": found.task}, "dataset": {"name": found.task, "type": found.task},
            "metrics": [{"type": found.metric_name, "value": round(int8.metric, 6)}]}]}]  # fmt: skip
    head = yaml.safe_dump(metadata, sort_keys=False)
    what = (
        f"`{found.model}`, quantized by int8kit with the recipe in `RECIPE.yaml`, calibrated from "
        f"{found.num_samples} samples: {found.products}. Measured on {found.hardware}, runtime {found.backend}."
    )
    notes = [f"- {note}" for note in found.notes]
    lines = [f"# {name} in INT8", "", what, "", *block_lines((_table(found), *_speed(found))), *notes, "",
             *block_lines((_use(found, file),))]  # fmt: skip
    return f"---\n{head}---\n\n" + "\n".join(lines).rstrip() + "\n"


def document(found: Quantized, file: str) -> Document:
    """Return the page."""
    what = f"{found.products}. Recipe {found.recipe}, {found.num_samples} samples, {found.hardware}."
    notes = tuple(Prose(note) for note in found.notes if note)
    measured: list[Block] = [*_speed(found), _table(found), Prose(what), *([Items(notes)] if notes else [])]
    sections = (Section("measured", "What was measured", tuple(measured)), _use(found, file))
    return Document(f"{Path(found.model).name} in INT8", (), sections, tuple(_cards(found)))


def _cards(found: Quantized) -> list[Card]:
    """Return what the folder holds, what it costs, and how fast it is at each shape."""
    plain, int8 = ({line.name: line for line in found.lines}[name] for name in (FLOAT, INT8))
    use = Card("Use this", f"{found.recipe}, {found.backend}", (f"{found.products}.",))
    lines = [f"An output changes by {small(int8.error)} on average."]
    answer = small(int8.error)
    if found.metric_name and int8.metric is not None and plain.metric is not None:
        answer = f"{int8.metric - plain.metric:+.4f} {found.metric_name}"
        lines.insert(0, f"{int8.metric:.4f}; the float model {plain.metric:.4f}.")
    cost = Card("It costs this", answer, tuple(lines), "good" if int8.error is not None else "unsure")
    if not found.speedup:
        return [use, cost, Card("It is this much faster", NOTHING, ("It was not timed.",), "unsure")]
    shape, (value, low, high) = next(iter(found.speedup.items()))
    lines = [f"Than the float model, at {shape}."] if len(found.speedup) > 1 else ["Than the float model."]
    lines += [f"At {each}: {v:.2f}, 95 % interval {a:.2f} to {b:.2f}." for each, (v, a, b) in found.speedup.items()]
    tone = "good" if low > 1 else "bad" if high < 1 else "unsure"
    word = [] if low > 1 else ["It does not pay there." if high < 1 else "The interval holds 1: no sure difference."]
    return [use, cost, Card("It is this much faster", f"{value:.2f} times", tuple(lines + word), tone)]


def _table(found: Quantized) -> Table:
    heads = ("model", *([found.metric_name] if found.metric_name else []), "mean change of outputs", "MB",
             *(f"ms, {shape}" for shape in found.lines[0].ms))  # fmt: skip
    rows = [(Cell(name), *(Cell(text, None if text == NOTHING else float(text)) for text in row))
            for name, *row in found.cells(small)]  # fmt: skip
    return Table(heads, tuple(rows))


def _speed(found: Quantized) -> list[Block]:
    words = [f"At {shape} INT8 is **{value:.2f} times** as fast as the float model [{low:.2f}, {high:.2f}]"
             + ("." if low > 1 else ": it does not pay there." if high < 1 else ": no sure difference.")
             for shape, (value, low, high) in found.speedup.items()]  # fmt: skip
    return [Prose(" ".join(words))] if words else []


def _use(found: Quantized, file: str) -> Section:
    config = json.loads((found.out / CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    name = next(iter(config.get("architectures") or ["AutoModel"]))
    blocks: list[Block] = [
        Prose("The checkpoint holds float weights as calibrated (SmoothQuant folded in, biases corrected):"),
        Code(f'from transformers import {name}\nmodel = {name}.from_pretrained("checkpoint")', "python"),
    ]
    if found.backend in USE:
        blocks += [
            Prose("INT8, without int8kit (on a CPU without VNNI sums of this file may saturate; `engine`, by int8kit, "
                  "keeps them exact):"),
            Code("\n".join(line.format(file=file) for line in USE[found.backend]), "python"),
        ]  # fmt: skip
    run = "int8kit run --engine engine --feeds feeds.npz --out outputs.npz"
    return Section("use", "How to load it", (*blocks, Prose("INT8 as it was measured:"), Code(run)))
