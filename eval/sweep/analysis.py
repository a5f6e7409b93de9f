"""What the report shows beside the rows: the error after each layer, the worst sites' histograms with every amax."""

from __future__ import annotations

import copy
import importlib.util
import logging
import subprocess
import sys
from typing import Any
from zipfile import is_zipfile

import torch

from calib.calibrators import CALIBRATORS, compute_amax, rounding_error
from calib.histogram import Histogram
from calib.statistics import Statistics
from eval.sweep.bench import Bench
from eval.sweep.grid import QAT, System, systems_of
from eval.sweep.run_folder import ANALYSIS, RunFolder
from eval.sweep.scripts import ROOT
from eval.sweep.store import check_disk
from eval.sweep.workshop import STATISTICS_FILE, Workshop
from quant.formats import get_format
from quant.recipe import CalibratorOptions, load_recipe
from quant.sites.plan import plan_sites

logger = logging.getLogger(__name__)
NUM_BATCHES, NUM_WORST, NUM_SHOWN_BINS = 2, 4, 128


def analyse(run: RunFolder, bench: Bench) -> None:
    """Write analysis.json, if it is not there; a model that cannot be analysed gets an empty one, with the reason."""
    if run.read_json(ANALYSIS) is not None:
        return
    found: dict[str, Any] = {"model": _model_facts(bench.workshop), "lint": _lint(run), "error": None}
    try:
        found |= {"layers": _layers(bench.workshop), "sites": _sites(bench.workshop)}
    except Exception as error:  # any family may lack hidden states; the rows do not depend on this
        check_disk(error, run.path)
        logger.info("no errors by layer: %s", error)
        found |= {"layers": {}, "sites": [], "error": " ".join(str(error).split())[:300]}
    run.write_json(ANALYSIS, found)


def _model_facts(workshop: Workshop) -> dict[str, Any]:
    """Return what the model is: architecture, sizes, number of parameters."""
    model: Any = workshop.loaded.model
    text = model.config.get_text_config()
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "image_size")
    sizes = {name: getattr(text, name, None) for name in names}
    return {"architecture": type(model).__name__, "model_type": model.config.model_type,
            "num_parameters": sum(p.numel() for p in model.parameters()),
            **{name: size for name, size in sizes.items() if isinstance(size, int)}}  # fmt: skip


def _lint(run: RunFolder) -> dict[str, str] | None:
    """Return what the linter says of the first INT8 ONNX file, None where there is no linter or no such file."""
    if importlib.util.find_spec("engine.lint") is None:
        return None
    files = {r.system: run.artifacts / r.details.onnx_path for r in run.rows() if r.row.recipe and r.details.onnx_path}
    graph = next((pair for pair in files.items() if not is_zipfile(pair[1])), None)  # a torch program is none
    if graph is None:
        return None
    system, path = graph
    done = subprocess.run([sys.executable, "-m", "engine.lint", str(path)], cwd=ROOT, capture_output=True, text=True)
    return {"system": system, "text": (done.stdout or done.stderr).replace(str(path), path.name).strip()[:4000]}


def _layers(workshop: Workshop) -> dict[str, list[float]]:
    """Return for each quantized model the relative error of the hidden states: after the embeddings, after each layer.

    sqrt(sum (x - float)² / sum float²) over real tokens of 64 calibration samples, in PyTorch (simulated INT8).
    """
    models = list(dict.fromkeys((s.method, s.recipe) for s in systems_of(workshop.options) if s.recipe))
    batches = [batch for batch, _ in zip(workshop.samples, range(NUM_BATCHES), strict=False)]
    expected = [_hidden_states(workshop.loaded.model, batch) for batch in batches]
    errors = {}
    for method, recipe in models:
        system = System(method, recipe, "")

        def compute(system: System = system) -> list[float]:
            model = workshop.model_of(system).model
            return _relative_errors([_hidden_states(model, batch) for batch in batches], expected)

        try:
            inputs = {"source": workshop.source_digest(system), "samples": workshop.samples.digest,
                      "float": workshop.model_digest}  # fmt: skip
            label = f"{method} {recipe}: layers"
            errors[f"{method} {recipe}"] = workshop.store.make_json("layers", inputs, compute, label)
        except Exception as error:  # its points are failed rows with this reason already; the other models go on
            check_disk(error, workshop.store.folder)
            logger.debug("%s %s: %s", method, recipe, error)
    return errors


def _hidden_states(model: Any, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return the hidden states of real tokens, one (tokens, hidden) tensor for each layer and the embeddings."""
    with torch.inference_mode():
        batch = {name: x.to(model.device) for name, x in batch.items()}
        states = model(**batch, output_hidden_states=True)["hidden_states"]
    mask = batch.get("attention_mask")
    keep = mask.bool() if mask is not None and states[0].shape[:2] == mask.shape else slice(None)
    return [state[keep].cpu().double() for state in states]


def _relative_errors(batches: list[list[torch.Tensor]], expected: list[list[torch.Tensor]]) -> list[float]:
    errors = []
    for layer in range(len(expected[0])):
        noise = sum(float((x[layer] - ref[layer]).square().sum()) for x, ref in zip(batches, expected, strict=True))
        power = sum(float(ref[layer].square().sum()) for ref in expected)
        errors.append((noise / power) ** 0.5 if power else 0.0)
    return errors


def _sites(workshop: Workshop) -> list[dict[str, Any]]:
    """Return the sites with the largest relative rounding error of the first recipe, worst first."""
    methods = [m for m in workshop.options.methods if m in CALIBRATORS] or ["max"]
    if not workshop.options.recipes or all(s.recipe is None or s.method == QAT for s in systems_of(workshop.options)):
        return []
    recipe = load_recipe(workshop.options.recipes[0])
    statistics = Statistics.load(workshop.statistics(recipe) / STATISTICS_FILE)
    kinds = {site.name: site.kind for site in plan_sites(copy.deepcopy(workshop.loaded.model), recipe)}
    found: list[dict[str, Any]] = []
    for name, site in statistics.sites.items():
        options = {m: CalibratorOptions(m, recipe.calibrator.percentile) for m in methods}
        number_format = get_format(recipe.format_of(name, kinds[name]))
        amax = {m: compute_amax(site.histogram, each, number_format) for m, each in options.items()}
        errors = {m: rounding_error(site.histogram, value, number_format) for m, value in amax.items()}
        found.append({"name": name, "amax": amax, "error": errors, "top": site.histogram.top,
                      "max": site.histogram.amax, "recipe": recipe.name, "counts": _shown(site.histogram)})  # fmt: skip
    return sorted(found, key=lambda each: -min(each["error"].values()))[:NUM_WORST]


def _shown(histogram: Histogram) -> list[int]:
    return histogram.to_numpy().reshape(NUM_SHOWN_BINS, -1).sum(1).tolist()
