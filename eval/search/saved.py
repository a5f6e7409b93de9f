"""A finished search as search.json, and read back from it and the rows of its proof: what its page is written from."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from engine.inspect.expect import Difference
from eval.report.advice import advise
from eval.report.run_data import RunData
from eval.search.answer import answer_of
from eval.search.cost import Costs, costs_from_dict
from eval.search.measure import Measured
from eval.search.result import Plan, SearchOptions, SearchResult
from eval.search.sensitivity import Errors, Unit
from eval.sweep.grid import options_from_dict
from eval.sweep.run_folder import RunFolder

RESULT = "search.json"


def summary_of(result: SearchResult) -> dict[str, Any]:
    """Return the result as plain JSON values."""
    measured, costs = result.measured, result.costs
    rows = []
    for unit in measured.units:
        rows.append({"unit": unit.name, "block": unit.block, "part": unit.part, "layers": list(unit.layers),
                     "weights": unit.weights, "alone": measured.alone[unit.name].to_dict(),
                     "without": measured.without[unit.name].to_dict(),
                     "fix": measured.fixes.get(unit.name), "tried": measured.tried[unit.name],
                     "gain_ms": None if costs is None else costs.saved_by((unit.name,))})  # fmt: skip
    return {
        "options": {**result.options.sweep.as_dict(), "max_loss": result.options.max_loss,
                    "max_error": result.options.max_error},
        "verdict": answer_of(result), "seconds": round(result.seconds, 1), "units": rows,
        "together": measured.together.to_dict(), "fixed": measured.fixed.to_dict(),
        "bend": measured.prediction.bend, "num_samples": measured.num_samples,
        "num_shared": measured.num_shared, "untried": list(measured.untried), "scale": result.scale,
        "costs": None if costs is None else {**costs.to_dict(), "error": costs.error},
        "plans": [{**asdict(plan), "units": sorted(plan.units)} for plan in result.plans],
        "chosen": None if result.chosen is None else result.chosen.name,
        "gate": None if result.gate is None else asdict(result.gate), "bias_correction": result.bias_correction,
    }  # fmt: skip


def read_search(folder: str | Path, proof: str | Path) -> SearchResult:
    """Return a search.

    Args:
        folder: holds search.json.
        proof: holds the proof's results.jsonl; without rows there the search is one of the sensitivity only.
    Raises: FileNotFoundError: no search.json. ValueError: rows or options of another version.
    """
    path = Path(folder) / RESULT
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {RESULT}; make it with 'python -m eval.search --out {folder}'")
    saved = json.loads(path.read_text(encoding="utf-8"))
    asked = dict(saved["options"])
    max_loss, max_error = asked.pop("max_loss"), asked.pop("max_error")
    options = SearchOptions(options_from_dict(asked), max_loss, max_error)
    costs = None if saved["costs"] is None else _costs(saved["costs"])
    plans = tuple(Plan(**{**plan, "units": frozenset(plan["units"])}) for plan in saved["plans"])
    found = SearchResult(options, _measured(saved), costs, plans, None, None, None, saved["seconds"],
                         scale=saved.get("scale", 1.0), gate=_gate(saved.get("gate")),
                         bias_correction=saved.get("bias_correction"))  # fmt: skip
    run = RunFolder(Path(proof))
    rows = {(row.system, row.shape): row for row in run.rows()}
    if not rows:
        return found
    plain = sorted({row.row.precision for row in rows.values() if row.row.precision in ("fp16", "fp32")
                    and row.row.backend == options.backend})  # fmt: skip
    proven = replace(options.sweep, methods=(*plain[:1], *options.sweep.methods),
                     recipes=(*(plan.path for plan in plans), *options.sweep.recipes))  # fmt: skip
    data = RunData(run, {"options": proven.as_dict()}, tuple(sorted(rows.values(), key=lambda row: row.number)))
    chosen = next((system for system in data.systems if system.name == saved["chosen"]), None)
    num_left = len(data.systems) * len(data.shapes) - len(rows)
    return replace(found, proof=data, chosen=chosen, advice=advise(data, max_loss), num_left=num_left)


def _gate(saved: dict[str, Any] | None) -> Difference | None:
    if saved is None:
        return None
    names = {key: tuple(saved[key]) for key in ("missing", "unplanned", "unknown")}
    return Difference(names["missing"], names["unplanned"], saved["num_met"], names["unknown"])


def _costs(saved: dict[str, Any]) -> Costs:
    names = {field.name for field in fields(Costs)}
    return costs_from_dict({name: value for name, value in saved.items() if name in names})


def _measured(saved: dict[str, Any]) -> Measured:
    units = saved["units"]
    found = tuple(Unit(each["block"], each["part"], (), tuple(each["layers"]), each["weights"]) for each in units)
    return Measured(
        units=found,
        alone={each["unit"]: Errors(**each["alone"]) for each in units},
        without={each["unit"]: Errors(**each["without"]) for each in units},
        fixes={each["unit"]: fix for each in units if (fix := each.get("fix") or each.get("method"))},
        tried={each["unit"]: {name: tuple(pair) for name, pair in each["tried"].items()} for each in units},
        together=Errors(**saved["together"]), fixed=Errors(**saved["fixed"]), num_samples=saved["num_samples"],
        num_shared=saved.get("num_shared", 0), untried=tuple(saved.get("untried", ())),
    )  # fmt: skip
