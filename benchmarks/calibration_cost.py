"""Calibration cost: statistics against a plain forward, the search of all amax, and memory over the number of samples.

python -m benchmarks.calibration_cost --model DIR --data DIR
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.accuracy.sst2 import INPUT_NAMES, read_split
from benchmarks.rows import append_row, median_interval
from calib.calibrators import CALIBRATORS, compute_amax
from calib.collect import collect
from calib.samples import load_samples
from calib.statistics import Statistics
from engine.cli import CommandParser, run_command
from quant.formats import INT8
from quant.insert import insert_quantizers
from quant.models.pretrained import LoadedModel, load_float_model
from quant.recipe import CalibratorOptions, load_recipe

Batches = list[dict[str, torch.Tensor]]
NUM_SITES = 100  # the amax search is stated for this many
BATCH_SIZE = 32


def full_length_batches(loaded: LoadedModel, data: str, num_batches: int, length: int) -> Batches:
    """Return batches of train sentences joined to `length` tokens each, without padding."""
    sentences, _ = read_split(data, "train")
    text = " ".join(sentences[: num_batches * BATCH_SIZE * length // 4])  # a sentence has more than 4 tokens on average
    ids = loaded.processor(text, add_special_tokens=False)["input_ids"][: num_batches * BATCH_SIZE * length]
    batches = torch.tensor(ids).reshape(num_batches, BATCH_SIZE, length)
    names = [name for name in INPUT_NAMES if name in loaded.processor.model_input_names]
    made = [
        {"input_ids": each, "attention_mask": torch.ones_like(each), "token_type_ids": torch.zeros_like(each)}
        for each in batches
    ]
    return [{name: batch[name] for name in names} for batch in made]


def forward_all(model: torch.nn.Module, batches: Batches) -> None:
    """Run the model over all batches and keep nothing."""
    with torch.no_grad():
        for batch in batches:
            model(**batch)


def time_collection(options: argparse.Namespace, folder: Path) -> Statistics:
    """Time collection against a plain forward in alternation, append the row and return the statistics."""
    plain, observed = load_float_model(options.model), load_float_model(options.model)
    insert_quantizers(observed.model, load_recipe(options.recipe))
    batches = full_length_batches(plain, options.data, options.batches, options.length)
    forward_all(plain.model, batches[:1])
    statistics = collect(observed.model, batches[:1], progress=False)
    forward_s, collect_s = [], []
    for _ in range(options.rounds):
        forward_s.append(_seconds(lambda: forward_all(plain.model, batches)))
        collect_s.append(_seconds(lambda: collect(observed.model, batches, progress=False)))
    ratio, low, high = median_interval([own / base for own, base in zip(collect_s, forward_s, strict=True)])
    append_row(
        options.out,
        "collection-time",
        recipe=options.recipe,
        num_sites=len(statistics.sites),
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        forward_s=sorted(forward_s)[len(forward_s) // 2],
        collect_s=sorted(collect_s)[len(collect_s) // 2],
        rounds=options.rounds,
        batch_size=BATCH_SIZE,
        num_batches=options.batches,
        sequence_length=options.length,
        threads=torch.get_num_threads(),
    )
    print(
        f"collection: {ratio:.2f} ({low:.2f} to {high:.2f}) of a plain forward, {len(statistics.sites)} sites",
        flush=True,
    )
    return collect(observed.model, batches, progress=False)


def time_search(statistics: Statistics, options: argparse.Namespace, folder: Path) -> None:
    """Time all four amax of NUM_SITES saved histograms (the model's sites, repeated) and append the row."""
    statistics.save(folder / "statistics.safetensors")
    histograms = [site.histogram for site in Statistics.load(folder / "statistics.safetensors").sites.values()]
    chosen = list(islice(cycle(histograms), NUM_SITES))
    seconds = {}
    for method in CALIBRATORS:
        how = CalibratorOptions(method=method)
        start = time.perf_counter()
        for histogram in chosen:
            compute_amax(histogram, how, INT8)
        seconds[method] = time.perf_counter() - start
    append_row(
        options.out,
        "amax-search",
        num_sites=NUM_SITES,
        num_model_sites=len(histograms),
        seconds=sum(seconds.values()),
        seconds_by_method=seconds,
        recipe=options.recipe,
        threads=torch.get_num_threads(),
    )
    print(f"all four amax of {NUM_SITES} sites: {sum(seconds.values()):.2f} s", flush=True)


def measure_memory(options: argparse.Namespace) -> None:
    """Append one row for each number of samples: the peak memory of a process that collects from them."""
    for num_samples in options.memory_samples:
        words = [
            "--model",
            options.model,
            "--data",
            options.data,
            "--recipe",
            options.recipe,
            "--collect-only",
            str(num_samples),
        ]
        result = subprocess.run(
            [sys.executable, "-m", "benchmarks.calibration_cost", *words], capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise RuntimeError(f"collecting {num_samples} samples failed: {result.stderr.strip().splitlines()[-1:]}")
        peak_bytes = int(result.stdout)
        append_row(
            options.out, "collection-memory", num_samples=num_samples, peak_bytes=peak_bytes, recipe=options.recipe
        )
        print(f"{num_samples} samples: peak {peak_bytes / 2**20:.0f} MiB", flush=True)


def collect_only(options: argparse.Namespace) -> None:
    """Collect from `--collect-only` samples and print this process's peak memory in bytes."""
    loaded = load_float_model(options.model)
    insert_quantizers(loaded.model, load_recipe(options.recipe))
    samples = load_samples(
        Path(options.data) / "train.parquet", loaded, num_samples=options.collect_only, batch_size=BATCH_SIZE
    )
    collect(loaded.model, samples, progress=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)  # Linux counts in KiB


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def run(options: argparse.Namespace) -> None:
    """Measure time, search and memory, or only collect where this is the child process."""
    if options.collect_only is not None:
        collect_only(options)
        return
    with TemporaryDirectory() as temporary:
        time_search(time_collection(options, Path(temporary)), options, Path(temporary))
    measure_memory(options)


def parser() -> CommandParser:
    """Return the command's parser."""
    command = CommandParser("python -m benchmarks.calibration_cost", __doc__ or "")
    command.add_argument("--model", required=True, help="folder of the float model")
    command.add_argument("--data", required=True, help="folder with train.parquet")
    command.add_argument("--recipe", default="int8_smoothquant", help="decides which sites are observed")
    command.add_argument("--out", default="benchmarks/results/calibration_cost.jsonl", help="rows are appended here")
    command.add_argument("--rounds", type=int, default=15, help="pairs of forward and collection")
    command.add_argument("--batches", type=int, default=4, help=f"batches of {BATCH_SIZE} samples in each")
    command.add_argument("--length", type=int, default=128, help="tokens of each sample, none of them padding")
    command.add_argument(
        "--memory-samples", type=int, nargs="+", default=[256, 4096], help="numbers of samples, a process each"
    )
    command.add_argument(
        "--collect-only", type=int, metavar="N", help="collect N samples and print the peak memory in bytes"
    )
    return command


if __name__ == "__main__":
    run_command(parser(), run)
