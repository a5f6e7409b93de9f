"""`python -m calib`: a float model and samples (or another tool's checkpoint) in, a calibrated INT8 checkpoint out."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from calib.apply import apply_statistics
from calib.collect import collect
from calib.samples import Samples, load_samples
from calib.statistics import Statistics
from engine.cli import CommandParser, UsageError, check_free, print_result, run_command, whole_output
from eval.tasks import get_task
from quant.checkpoint import save_checkpoint
from quant.insert import insert_quantizers
from quant.interop.importer import import_amax
from quant.models.pretrained import LoadedModel, load_float_model
from quant.recipe import DEFAULT_RECIPE, METHODS, load_recipe, shipped_recipes
from quant.sites.site import quantization_of
from quant.sites.summary import summarize_sites

IMPORT_RECIPE = "int8_linear"  # with --import-amax: an import brings its own SmoothQuant, or none
SAMPLE_FLAGS = {"task": None, "method": None, "num_samples": 256, "column": None, "seed": 0, "batch_size": 32,
                "max_length": None, "skip_bad": False}  # fmt: skip
STATISTICS_FILE = "statistics.safetensors"


def calibrate(arguments: argparse.Namespace) -> None:
    """Insert, collect, apply, save; print one summary line."""
    _check_import_flags(arguments)
    is_first = _join_ranks()
    if is_first:
        check_free(arguments.out, arguments.force)
    if arguments.import_amax:
        if is_first:
            _import(arguments)
        return
    recipe = load_recipe(getattr(arguments, "recipe", DEFAULT_RECIPE))
    columns = arguments.column or (list(get_task(arguments.task).columns) if arguments.task else None)
    loaded = load_float_model(arguments.model, trust_remote_code=arguments.trust_remote_code)
    samples = None if arguments.statistics else _draw_samples(arguments, loaded, columns)
    loaded.model.to(arguments.device)
    sites = insert_quantizers(loaded.model, recipe)
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
    _save(loaded, statistics, arguments, provenance)
    on = sum(site.enabled for site in quantization_of(loaded.model).sites)  # without those that no sample reached
    row = {"checkpoint": arguments.out, "recipe": used.name, "recipe_digest": used.digest,
           "method": used.calibrator.method, "num_sites": on, **provenance}  # fmt: skip
    print_result(row, f"{arguments.out}: {used.name}, {used.calibrator.method}, {on} quantizers from "
                      f"{statistics.num_samples} samples", arguments.json)  # fmt: skip


def _check_import_flags(arguments: argparse.Namespace) -> None:
    """Raise UsageError for flags of samples beside --import-amax, and for its own flags without it."""
    theirs = dict.fromkeys(("allow_partial", "keep_weights"), False)
    unused = SAMPLE_FLAGS if arguments.import_amax else theirs
    given = [f"--{name.replace('_', '-')}" for name, default in unused.items() if getattr(arguments, name) != default]
    if given:
        reason = "not used with --import-amax, which reads no samples" if arguments.import_amax else "for --import-amax"
        raise UsageError(f"{', '.join(given)} is {reason}")


def _import(arguments: argparse.Namespace) -> None:
    """Insert, take the ranges of another tool's checkpoint, save; print one summary line."""
    recipe = load_recipe(getattr(arguments, "recipe", IMPORT_RECIPE))
    if recipe.smoothquant.alpha is not None:
        raise UsageError(
            f"recipe '{recipe.name}' searches SmoothQuant on samples; an import brings its own factors, or none: "
            f"take {IMPORT_RECIPE}, or one with 'smoothquant: {{alpha: null}}'"
        )
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


def _draw_samples(arguments: argparse.Namespace, loaded: LoadedModel, columns: list[str] | None) -> Samples:
    return load_samples(
        arguments.samples,
        loaded,
        columns=columns,
        num_samples=arguments.num_samples,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
        skip_bad=arguments.skip_bad,
    )


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


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = CommandParser("python -m calib", "Quantize a transformer after training, from samples.")
    parser.add_argument("--model", required=True, help="Hugging Face id, folder, or 'digits'")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--samples", help="folder, file or data set id to draw samples from")
    source.add_argument(
        "--statistics",
        nargs="+",
        metavar="FILE",
        help=f"reuse the {STATISTICS_FILE} of earlier runs (added up) instead of samples",
    )
    source.add_argument(
        "--import-amax",
        metavar="FILE",
        help="take amax and weights from a checkpoint of pytorch-quantization or ModelOpt (file or folder)",
    )
    parser.add_argument("--allow-partial", action="store_true", help="import what matches instead of refusing")
    parser.add_argument("--keep-weights", action="store_true", help="import ranges alone; the weights stay --model's")
    parser.add_argument("--task", help="takes the sample columns from this task of eval")
    parser.add_argument(
        "--recipe",
        default=argparse.SUPPRESS,
        help=f"{', '.join(shipped_recipes())}, or a .yaml file (default: {DEFAULT_RECIPE}, or {IMPORT_RECIPE} "
        "with --import-amax)",
    )
    parser.add_argument("--method", choices=METHODS, help="calibrator in place of the recipe's own")
    parser.add_argument("--num-samples", type=int, default=SAMPLE_FLAGS["num_samples"], help="how many samples to draw")
    parser.add_argument("--column", nargs="+", help="columns of the samples to use (default: the usual names)")
    parser.add_argument("--seed", type=int, default=SAMPLE_FLAGS["seed"], help="of the draw")
    parser.add_argument(
        "--batch-size", type=int, default=SAMPLE_FLAGS["batch_size"], help="samples for each forward pass"
    )
    parser.add_argument("--max-length", type=int, help="tokens at which text is cut (default: the model's maximum)")
    parser.add_argument("--skip-bad", action="store_true", help="skip unreadable samples instead of stopping")
    parser.add_argument("--device", default=_own_device(), help="where the model runs")
    parser.add_argument("--trust-remote-code", action="store_true", help="run model code that comes with --model")
    parser.add_argument("--out", required=True, help="checkpoint folder to write")
    parser.add_argument("--force", action="store_true", help="replace --out")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    run_command(parser, calibrate, argv)


if __name__ == "__main__":
    main()
