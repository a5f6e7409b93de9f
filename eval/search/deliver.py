"""What a search leaves behind: the chosen recipe, its checkpoint and engine, and whether that runs as planned."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

from engine.backend import Backend
from engine.inspect.expect import Difference, compare_plan, layers_of_manifest, read_plan
from engine.inspect.layers import InspectRequest
from engine.manifest import with_companions
from eval.search.answer import answer_of
from eval.search.plans import write_recipe
from eval.search.result import SearchResult
from eval.sweep.bench import Bench
from eval.sweep.grid import primary_shape
from quant.checkpoint import read_description
from quant.insert import insert_quantizers
from quant.sites.exact import exact_recipe

logger = logging.getLogger(__name__)
RECIPE_FILE, CHECKPOINT, ENGINE, PLANS, DELIVERY = "RECIPE.yaml", "checkpoint", "engine", "plans", ".delivery"


def deliver(result: SearchResult, bench: Bench, out: Path) -> SearchResult:
    """Put the chosen recipe (by exact names), its checkpoint and its engine of the primary shape into the folder, in
    the place of what stood there; where nothing was chosen, nothing stands there any more.

    Returns: the result with what `gate_of` says of that engine.
    """
    new, system = out / DELIVERY, result.chosen
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    if system is not None:
        recipe, checkpoint = bench.workshop.recipe(system), bench.workshop.checkpoint(system)
        engine = bench.workshop.engine(system, primary_shape(result.options.sweep))
        shutil.copytree(checkpoint, new / CHECKPOINT)
        for part in with_companions(engine):
            shutil.copy2(part, new / f"{ENGINE}{part.name.removeprefix(engine.name)}")
        backend, onnx = bench.workshop.backend(system.backend), bench.workshop.onnx(system)
        result = replace(result, gate=gate_of(backend, engine, checkpoint, onnx),
                         bias_correction=read_description(checkpoint)["provenance"].get("bias_correction"))  # fmt: skip
        if system.recipe not in {plan.path for plan in result.plans}:  # a shipped one speaks of kinds of layers
            recipe = exact_recipe(insert_quantizers(bench.workshop.fresh_model().model, recipe), recipe)
        write_recipe(recipe, new / RECIPE_FILE, answer_of(result))
    shutil.rmtree(out / CHECKPOINT, ignore_errors=True)
    for file in (out / RECIPE_FILE, *out.glob(ENGINE), *out.glob(f"{ENGINE}.*")):
        file.unlink(missing_ok=True)
    kept = {Path(plan.path) for plan in result.plans}
    for file in (out / PLANS).glob("*.yaml"):
        if file not in kept:
            file.unlink()
    for each in new.iterdir():
        each.rename(out / each.name)
    new.rmdir()
    return result


def gate_of(backend: Backend, engine: Path, checkpoint: Path, onnx: Path) -> Difference | None:
    """Return how an engine runs otherwise than its checkpoint plans, as `engine.inspect --expect` would say it.

    None where its runtime does not tell what it runs.
    """
    try:
        found = backend.inspect(str(engine), InspectRequest(iterations=1, onnx=str(onnx)))
        return compare_plan(found, read_plan(checkpoint), layers_of_manifest(str(engine)))
    except (RuntimeError, ValueError, OSError) as error:
        logger.info("whether the engine runs as planned is not known: %s", error)
        return None
