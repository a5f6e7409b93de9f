"""The README's picture, from the rows: speed against the change of the outputs on CPUs, INT8 over fp16 on a GPU.

python -m benchmarks.picture benchmarks/results docs/images/speed.png
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import read_rows
from benchmarks.tables import newest
from engine.cli import CommandParser, run_command
from eval.report.figure_style import COLORS, INK, new_figure

OURS, PEERS = COLORS[0], "#7D8791"
# Rows of fidelity and speed that the picture shows → what it calls them.
SHOWN = {
    "int8kit default, OpenVINO": "int8kit, OpenVINO",
    "int8kit default, ONNX Runtime": "int8kit, ORT",
    "NNCF (SmoothQuant + bias correction), OpenVINO": "NNCF, OpenVINO",
    "ONNX Runtime tool, dynamic": "ORT dynamic",
    "ONNX Runtime tool, static, linear only, percentile 99.999, uint8": "ORT static, linear",
    "ONNX Runtime tool, static QDQ, MinMax, uint8": "ORT static",
}
MODELS = {"bert-base": "BERT-base", "bert-large": "BERT-large", "minilm-l6": "MiniLM-L6", "gpt2": "GPT-2",
          "llama-1b": "Llama 1B", "vit-b": "ViT-B/16"}  # fmt: skip


def change_of(rows: list[dict[str, Any]], has_vnni: bool) -> dict[str, float]:
    """Return each system's median over its draws of the mean |logit - float logit|, on one kind of CPU."""
    draws: dict[str, list[float]] = defaultdict(list)
    for row in newest([row for row in rows if ("vnni" in row["device"]) == has_vnni], "system", "seed"):
        if row.get("mean_abs_logit_change") is not None:
            draws[row["system"]].append(row["mean_abs_logit_change"])
    return {system: float(np.median(values)) for system, values in draws.items()}


def speed_of(rows: list[dict[str, Any]], has_vnni: bool) -> dict[str, float]:
    """Return each system's geometric mean of its speed-ups over the fastest float session, on one kind of CPU."""
    of_kind = [row for row in rows if row["benchmark"] == "speed" and ("vnni" in row["device"]) == has_vnni]
    ratios: dict[str, list[float]] = defaultdict(list)
    for row in newest(of_kind, "system", "batch_size", "sequence_length"):
        ratios[row["system"]].append(row["ratio"])
    most = max((len(values) for values in ratios.values()), default=0)
    return {system: float(np.exp(np.mean(np.log(x)))) for system, x in ratios.items() if len(x) == most}


def gpu_bars(rows: list[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """Return (model and shape, INT8 over the fastest fp16 of its run, over torch.compile), the best recipe of each."""
    best: dict[tuple[str, int, int], dict[str, Any]] = {}
    for row in newest(rows, "model", "batch", "length", "recipe"):
        key = (row["model"], row["batch"], row["length"])
        if key not in best or row["ratio"] > best[key]["ratio"]:
            best[key] = row
    return [(f"{MODELS[model]}, {batch} x {length}", row["ratio"],
             min(ms for name, ms in row["fp16_ms"].items() if name.startswith("torch.compile")) / row["int8_ms"])
            for (model, batch, length), row in sorted(best.items(), key=lambda each: each[1]["ratio"])]  # fmt: skip


def draw(results: Path) -> Any:
    """Return the figure."""
    figure, axes = new_figure(12.5, 4.6, 1, 3, width_ratios=(1, 1, 1.1))
    change, speeds = (read_rows(results / f"{name}.jsonl") for name in ("fidelity", "speed"))
    for axis, has_vnni, title in ((axes[0], True, "CPU with VNNI"), (axes[1], False, "CPU without (AVX2)")):
        own, other = (change_of(change, kind) for kind in (has_vnni, not has_vnni))
        _points(axis, own, other, speed_of(speeds, has_vnni))
        axis.set_title(f"MiniLM-L6, SST-2: {title}", loc="left")
    axes[1].text(0.98, 0.42, "x: outputs measured with VNNI", transform=axes[1].transAxes, ha="right", fontsize=8.5)
    axes[0].set_ylabel("times the fastest float ONNX Runtime")
    _bars(axes[2], gpu_bars(read_rows(results / "gpu_engines.jsonl")))
    return figure


def _points(axis: Any, change: dict[str, float], elsewhere: dict[str, float], speed: dict[str, float]) -> None:
    for system, name in SHOWN.items():
        if system not in speed or (found := change.get(system, elsewhere.get(system))) is None:
            continue
        is_ours, y = system.startswith("int8kit"), speed[system]
        if system in change:
            color = OURS if is_ours else PEERS
            axis.scatter(found, y, s=64, color=OURS if is_ours else "none", edgecolors=color, linewidths=2)
        else:  # how far its outputs move was not measured on this kind of CPU
            axis.scatter(found, y, s=52, color=OURS if is_ours else PEERS, marker="x", linewidths=2)
        axis.annotate(name, (found, y), (9, 0), textcoords="offset points", va="center", fontsize=9,
                      color=OURS if is_ours else INK, weight="bold" if is_ours else "normal")  # fmt: skip
    axis.axhline(1, color=INK, linewidth=1, linestyle=":")
    axis.set_xscale("log")
    axis.set_xlim(0.04, 1.4)
    axis.set_xticks([0.05, 0.1, 0.2, 0.4, 0.8], ["0.05", "0.1", "0.2", "0.4", "0.8"])
    axis.minorticks_off()
    axis.set_xlabel("mean |logit - float logit| (left is better)")


def _bars(axis: Any, bars: list[tuple[str, float, float]]) -> None:
    places = np.arange(len(bars))
    names, ratios, compiled = (list(each) for each in zip(*bars, strict=True))
    axis.barh(places, ratios, color=OURS, height=0.62)
    axis.scatter(compiled, places, s=26, facecolors="white", edgecolors=INK, zorder=3, linewidths=1.2,
                 label="over torch.compile")  # fmt: skip
    for place, ratio in zip(places, ratios, strict=True):
        axis.text(0.06, place, f"{ratio:.2f}", va="center", color="white", fontsize=8.5, weight="bold")
    axis.axvline(1, color=INK, linewidth=1, linestyle=":")
    axis.set_yticks(places, names)
    axis.grid(False, axis="y")
    axis.set_xlabel("times fp16: the fastest (bar), torch.compile (circle)")
    axis.set_title("INT8 on one H200, whole models", loc="left")


def main(argv: list[str] | None = None) -> None:
    parser = CommandParser("python -m benchmarks.picture", __doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("results", type=Path, help="folder of the rows")
    parser.add_argument("out", type=Path, help="the PNG")

    def run(arguments: argparse.Namespace) -> None:
        draw(arguments.results).savefig(arguments.out, dpi=120)

    run_command(parser, run, argv)


if __name__ == "__main__":
    main()
