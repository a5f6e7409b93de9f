"""What `python -m calib` runs once its flags are right: it imports torch and transformers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from calib.apply import apply_statistics
from calib.collect import collect
from calib.defaults import STATISTICS_FILE
from calib.rounding import refine_as_told
from calib.samples import Samples
from calib.statistics import Statistics
from engine.cli import UsageError, check_free, print_result, whole_output
from quant.checkpoint import save_checkpoint
from quant.insert import insert_quantizers
from quant.interop.importer import import_amax
from quant.models.pretrained import LoadedModel, load_float_model
from quant.recipe import LEARNED, OFF, Recipe
from quant.sites.settings import check_method, method_names
from quant.sites.site import Site, quantization_of
from quant.sites.summary import summarize_sites


def calibrate(arguments: argparse.Namespace, recipe: Recipe, draw: Callable[[LoadedModel], Samples]) -> None:
    """Insert, collect, apply, save; print one summary line.

    Args: draw: gives the samples that the options name, for a model.
    """
    is_first = _join_ranks()
    if is_first:
        check_free(arguments.out, arguments.force)
    loaded = load_float_model(arguments.model, trust_remote_code=arguments.trust_remote_code)
    samples = None if arguments.statistics else draw(loaded)
    device: Any = arguments.device or _own_device()
    loaded.model.to(device)
    if arguments.bias_correction is not None:
        recipe = recipe.with_options(bias_correction=arguments.bias_correction)
    if arguments.rounding is not None:
        recipe = recipe.with_options(rounding=arguments.rounding)
    sites = insert_quantizers(loaded.model, recipe)
    _check_method(arguments.method, sites, recipe)
    if is_first:
        print(summarize_sites(sites), file=sys.stderr)
    provenance: dict[str, Any] = {"model": arguments.model, "seed": arguments.seed}
    if samples is None:
        statistics = _load_statistics(arguments.statistics)
    else:
        statistics = collect(loaded.model, _share(samples), seed=arguments.seed, progress=is_first)
        provenance |= {"samples": samples.source, "samples_digest": samples.digest}
    if not is_first:
        return
    provenance["num_samples"] = statistics.num_samples
    used = apply_statistics(loaded.model, statistics, arguments.method)
    if samples is not None:
        for name, each in refine_as_told(loaded.model, used, samples, arguments.seed).items():
            print(each, file=sys.stderr)
            provenance[name] = each.to_dict()
    else:
        for what, is_wanted in (("bias correction", used.calibrator.bias_correction != OFF),
                                ("learned rounding", used.calibrator.rounding == LEARNED)):  # fmt: skip
            if is_wanted:
                print(f"{what}: left out, --statistics brings no samples", file=sys.stderr)
    _save(loaded, statistics, arguments, provenance)
    planned = quantization_of(loaded.model).sites  # without those that no sample reached
    on, method = sum(site.enabled for site in planned), method_names(planned, used)
    row = {"checkpoint": arguments.out, "recipe": used.name, "recipe_digest": used.digest,
           "method": method, "num_sites": on, **provenance}  # fmt: skip
    print_result(row, f"{arguments.out}: {used.name}, {method}, {on} quantizers from "
                      f"{statistics.num_samples} samples", arguments.json)  # fmt: skip


def _check_method(method: str | None, sites: list[Site], recipe: Recipe) -> None:
    try:
        if method is not None:
            check_method(method, sites, recipe)
    except ValueError as error:
        raise UsageError(str(error)) from None


def take_ranges(arguments: argparse.Namespace, recipe: Recipe) -> None:
    """Insert, take the ranges of another tool's checkpoint, save; print one summary line. The first rank alone does."""
    if not _join_ranks():
        return
    check_free(arguments.out, arguments.force)
    loaded = load_float_model(arguments.model, trust_remote_code=arguments.trust_remote_code)
    sites = insert_quantizers(loaded.model, recipe)
    print(summarize_sites(sites), file=sys.stderr)
    report = import_amax(
        loaded.model,
        arguments.import_amax,
        allow_partial=arguments.allow_partial,
        load_weights=not arguments.keep_weights,
    )
    print(report.summary(), file=sys.stderr)
    row = {"model": arguments.model, "imported_from": arguments.import_amax, "package": report.package,
           "num_matched": len(report.matched), "num_unmatched": len(report.unmatched),
           "num_weights": report.num_weights}  # fmt: skip
    with whole_output(arguments.out, arguments.force) as folder:
        save_checkpoint(loaded.model, folder, processor=loaded.processor, provenance=row)
    row |= {"checkpoint": arguments.out, "recipe": recipe.name, "recipe_digest": recipe.digest, "method": "imported"}
    print_result(row, f"{arguments.out}: {recipe.name}, {len(report.matched)} quantizers and {report.num_weights} "
                      f"weights from {arguments.import_amax} ({report.package})", arguments.json)  # fmt: skip


def _join_ranks() -> bool:
    """Join the process group if torchrun started this process; return whether it is the first rank."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    return not dist.is_initialized() or dist.get_rank() == 0


def _own_device() -> str:
    """Return the GPU of this rank (torchrun sets LOCAL_RANK), or the CPU where there is none."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def _share(samples: Samples) -> Any:
    """Return the batches of this rank: every n-th one under torchrun, else all."""
    if not dist.is_initialized():
        return samples
    rank, size = dist.get_rank(), dist.get_world_size()
    return islice(samples, rank, None, size)  # read as it goes: memory does not grow with the samples


def _load_statistics(paths: list[str]) -> Statistics:
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise ValueError("a file of --statistics is given twice: its samples would count double; name each once")
    statistics = Statistics.load(paths[0])
    for path in paths[1:]:
        statistics.merge(Statistics.load(path))
    return statistics


def _save(
    loaded: LoadedModel, statistics: Statistics, arguments: argparse.Namespace, provenance: dict[str, Any]
) -> None:
    with whole_output(arguments.out, arguments.force) as folder:
        save_checkpoint(loaded.model, folder, processor=loaded.processor, provenance=provenance)
        statistics.save(Path(folder) / STATISTICS_FILE)
