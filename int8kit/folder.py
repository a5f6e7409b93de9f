"""The folder that a run leaves: files, the page `report.html`, the model card `README.md` with the hub's metadata."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from engine.manifest import with_companions
from eval.report.page import render_page
from eval.report.writing import small, table
from eval.search.plans import write_recipe
from int8kit.result import INT8, Quantized
from quant.checkpoint import read_description
from quant.recipe import recipe_from_dict

CARD, PAGE, RESULT, CHECKPOINT, RECIPE = "README.md", "report.html", "result.json", "checkpoint", "RECIPE.yaml"
USE = {
    "onnxruntime": ("import onnxruntime", 'session = onnxruntime.InferenceSession("{file}")',
                    "outputs = session.run(None, feeds)  # feeds: input name -> numpy array"),
    "openvino": ("import openvino", 'model = openvino.Core().compile_model("{file}", "CPU")',
                 "outputs = model(feeds)  # feeds: input name -> numpy array"),
}  # fmt: skip


def write_folder(found: Quantized, checkpoint: Path, file: Path, engine: Path) -> None:
    """Copy checkpoint, exported file and engine into the folder, and write recipe, page, card and result."""
    for old in found.out.iterdir():  # of an earlier run with other options
        if old.name not in (".work", ".lock"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    shutil.copytree(checkpoint, found.out / CHECKPOINT, ignore=shutil.ignore_patterns("inputs.json"))
    for source in (*with_companions(file), *with_companions(engine)):
        shutil.copy2(source, found.out / source.name)
    write_recipe(recipe_from_dict(read_description(checkpoint)["recipe"]), found.out / RECIPE, "what was calibrated")
    (found.out / CARD).write_text(card(found, file.name), encoding="utf-8")
    (found.out / PAGE).write_text(render_page("\n".join(page_lines(found, file.name)), {}, "en"), encoding="utf-8")
    (found.out / RESULT).write_text(json.dumps(found.to_dict(), indent=1, sort_keys=True) + "\n", encoding="utf-8")


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
    use = ["## How to load it", "", *_use(found, file)]
    notes = [f"- {note}" for note in found.notes]
    lines = [f"# {name} in INT8", "", what, "", *_table(found), *_speed(found), *notes, "", *use]
    return f"---\n{head}---\n\n" + "\n".join(lines).rstrip() + "\n"


def page_lines(found: Quantized, file: str) -> list[str]:
    """Return the page as Markdown."""
    what = f"{found.products}. Recipe {found.recipe}, {found.num_samples} samples, {found.hardware}."
    notes = [f"- {note}" for note in found.notes if note]
    return [f"# {Path(found.model).name} in INT8", "", *_speed(found), *_table(found), what, "", *notes, "",
            "## How to load it", "", *_use(found, file)]  # fmt: skip


def _table(found: Quantized) -> list[str]:
    heads = ["", *([found.metric_name] if found.metric_name else []), "mean change of outputs", "MB",
             *(f"ms, {shape}" for shape in found.lines[0].ms)]  # fmt: skip
    return table(heads, found.cells(small))


def _speed(found: Quantized) -> list[str]:
    words = [f"At {shape} INT8 is **{value:.2f} times** as fast as the float model [{low:.2f}, {high:.2f}]"
             + ("." if low > 1 else ": it does not pay there." if high < 1 else ": no sure difference.")
             for shape, (value, low, high) in found.speedup.items()]  # fmt: skip
    return [" ".join(words), ""] if words else []


def _use(found: Quantized, file: str) -> list[str]:
    config = json.loads((found.out / CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    name = next(iter(config.get("architectures") or ["AutoModel"]))
    lines = ["The checkpoint holds float weights as calibrated (SmoothQuant folded in, biases corrected):", "",
             "```python", f"from transformers import {name}", f'model = {name}.from_pretrained("checkpoint")', "```",
             ""]  # fmt: skip
    if found.backend in USE:
        lines += ["INT8, without int8kit (on a CPU without VNNI sums of this file may saturate; `engine`, by int8kit, "
                  "keeps them exact):", "", "```python", *(line.format(file=file) for line in USE[found.backend]),
                  "```", ""]  # fmt: skip
    run = "int8kit run --engine engine --feeds feeds.npz --out outputs.npz"
    return [*lines, "INT8 as it was measured:", "", "```", run, "```", ""]
