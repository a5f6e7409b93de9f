"""A finished search read back from search.json and the rows of its proof: what its page is written from."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from eval.report.advice import advise
from eval.report.run_data import RunData
from eval.search.cost import Costs, costs_from_dict
from eval.search.measure import Measured
from eval.search.result import Plan, SearchOptions, SearchResult
from eval.search.sensitivity import Errors, Unit
from eval.sweep.grid import options_from_dict
from eval.sweep.run_folder import RunFolder

RESULT = "search.json"


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
                         scale=saved.get("scale", 1.0))  # fmt: skip
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
        num_shared=saved.get("num_shared", 0),
    )  # fmt: skip
