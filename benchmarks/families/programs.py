"""INT8 programs of every family and shipped recipe: each exported and compared with its fake-quantized model on a CPU.

    python -m benchmarks.families.programs --out benchmarks/results/programs.jsonl [--family bert ...]
    python -m benchmarks.families.programs --table docs/guides/gpu.md

A row has the dtype (fp16, or bf16 where fp16 alone rounds too much), the numbers of products in INT8, what was left to
the compiler, and the errors of the parity check.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.families.cells import parity_feeds, quantize
from benchmarks.families.table import write_between
from benchmarks.rows import append_row, read_rows
from eval.parity.program import check_program
from eval.report import writing
from quant.int8_program.export import export_program, save_program
from quant.models.pretrained import LoadedModel
from quant.recipe import load_recipe, shipped_recipes
from quant.tensor_quantizer import HALF_TYPES
from tests.families import FAMILIES, Family, get_family

ROWS = Path(__file__).parents[1] / "results" / "programs.jsonl"
BEGIN, END = "<!-- programs: made by python -m benchmarks.families.programs --table -->", "<!-- programs: end -->"


def measure(family: Family, recipe: str) -> dict[str, Any]:
    """Return the figures of one program. Raises: ValueError: it does not compute what its model computes."""
    model = family.model()
    quantize(model, family, load_recipe(recipe))
    loaded = LoadedModel(model, None, family.model_class)
    feeds = list(parity_feeds(model, family))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.pt2"
        for dtype in HALF_TYPES:
            program, description = export_program(model, dtype)
            save_program(program, description, path)
            try:
                report = check_program(path, loaded, dtype, feeds=feeds)
            except ValueError:
                if dtype == [*HALF_TYPES][-1]:
                    raise
                continue
            break
    count = {
        kind: [sum(each.is_int8 for each in description.products if each.kind == kind),
               sum(each.kind == kind for each in description.products)]
        for kind in ("linear", "attention")
    }  # fmt: skip
    return {"dtype": dtype, "unfused": description.unfused, **count, "parity": dataclasses.asdict(report)}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the table: a line for each family, its products by the recipe that quantizes most."""
    by_family: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_family[row["family"]].append(row)
    lines = []
    for name, group in by_family.items():
        good = [row for row in group if "error" not in row]
        full = next((row for row in good if row["recipe"] == "int8_full"), None)
        cells = ["-"] * 3
        if full is not None:
            cells = ["{} of {}".format(*full[kind]) for kind in ("linear", "attention")] + [str(full["unfused"])]
        types = ", ".join(sorted({row["dtype"] for row in good}))
        lines.append([FAMILIES[name].title, f"{len(good)} of {len(group)}", types, *cells])
    header = ("family", "recipes right", "type", "linear products in INT8", "attention products", "Q/DQ left over")
    return list(writing.table(header, lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", default=list(FAMILIES))
    parser.add_argument("--out")
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    if arguments.table:
        write_between(arguments.table, table(read_rows(ROWS)), BEGIN, END)
        return
    for name in arguments.family:
        for recipe in shipped_recipes():
            try:
                found = measure(get_family(name), recipe)
            except Exception as error:  # of any library in the chain; the row names its type
                found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
            row = append_row(arguments.out, "program", family=name, recipe=recipe, **found)
            print(name, recipe, {key: row.get(key) for key in ("error", "dtype", "linear", "attention", "unfused")})


if __name__ == "__main__":
    main()
