"""One row for each search: what it found, beside the shipped recipes and float systems of the same rounds.

    python -m eval.search --model MODEL --task TASK --data DATA --backend onnxruntime --out RUN
    python -m benchmarks.search_rows RUN ... --out benchmarks/results/searches.jsonl
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.rows import append_row, without_folders
from eval.report.run_data import label
from eval.report.speeds import mean_speedup, middle, time_at
from eval.search.answer import answer_of
from eval.search.result import SearchResult
from eval.search.run import MANIFEST
from eval.search.saved import read_search
from eval.sweep.run_folder import RunFolder


def row_of(result: SearchResult, run: Path) -> dict[str, Any]:
    """Return what a search's row says but its provenance."""
    data, measured, costs = result.proof, result.measured, result.costs
    if data is None or costs is None:
        raise ValueError(f"{run} holds no whole search")
    plans = {plan.path: plan for plan in result.plans}
    systems = []
    for system in data.systems:
        if (found := data.ok(system)) is None:
            continue
        speed, plan = mean_speedup(data, system), plans.get(system.recipe or "")
        systems.append({
            "system": label(system), "num_units": len(plan.units) if plan else None, "metric": found.row.metric,
            "loss": data.loss(system), "error": found.row.error_abs_mean, "flips": found.row.num_flips,
            "predicted_error": plan.error if plan else None, "ms": middle(time_at(data, system)),
            "predicted_ms": plan.ms if plan else None,
            "speedup": speed and [round(x, 4) for x in (speed.value, speed.low, speed.high)],
        })  # fmt: skip
    options = result.options.sweep
    return {
        "model": Path(options.model).name, "task": options.task, "backend": result.options.backend,
        "threads": options.threads, "shapes": [shape.name for shape in data.shapes], "seconds": result.seconds,
        "num_units": len(measured.units), "num_samples": measured.num_samples, "num_shared": measured.num_shared,
        "together": measured.together.output, "fixed": measured.fixed.output, "fixes": measured.fixes,
        "untried": list(measured.untried),
        "cost_error": costs.error, "chosen": label(result.chosen) if result.chosen else None,
        "verdict": answer_of(result), "systems": systems,
    }  # fmt: skip


def measured_on(run: Path) -> dict[str, Any]:
    """Return where a search ran, and its command: the row's own machine may be another."""
    asked = RunFolder(run).read_json(MANIFEST) or {}
    command = " ".join(map(without_folders, str(asked.get("command", "")).split()))
    return {"device": asked.get("gpu") or asked.get("device"), "versions": asked.get("versions"), "command": command}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of searches")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    for run in args.runs:
        row = append_row(args.out, "search", measured=measured_on(run), **row_of(read_search(run, run / "proof"), run))
        print(f"{run}: {row['verdict']}")


if __name__ == "__main__":
    main()
