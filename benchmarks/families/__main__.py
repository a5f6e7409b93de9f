"""The matrix of families: every family of tests/families.py with every shipped recipe through every step.

python -m benchmarks.families                    # measure what is missing or stale; resumes where it was stopped
python -m benchmarks.families --sites NAME       # what each recipe quantizes in a family, and why the rest is off
python -m benchmarks.families --table FILE       # write the table of the rows between the markers of FILE

A row carries the digest of what it was measured on, so a test can say when it is stale (`tests/test_family_rows.py`).
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.families.cells import measure
from benchmarks.families.table import write_table
from benchmarks.rows import append_row, read_rows
from engine.cli import CommandParser, run_command
from quant.recipe import load_recipe, shipped_recipes
from quant.sites.plan import plan_sites
from quant.sites.stored import site_to_dict
from quant.sites.summary import summarize_sites
from tests.families import FAMILIES, get_family

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "benchmarks" / "results" / "families.jsonl"
# What computes the cells. Insertion is not among them: its outcome, the sites, is in the digest itself.
SOURCES = (
    "quant/attention.py", "quant/own_attention.py", "quant/modules.py", "quant/fake_quantize.py",
    "quant/tensor_quantizer.py", "quant/onnx_export.py", "training/distillation.py", "calib/collect.py",
    "calib/apply.py", "calib/smoothquant.py",
    "engine/passes/qdq.py", "engine/passes/weights.py", "engine/passes/placement.py", "engine/passes/lowering.py",
    "engine/passes/half.py", "engine/passes/tensorrt_graph.py", "engine/integers.py", "eval/parity/check.py",
    "eval/parity/limits.py",
    "eval/parity/rounding_noise.py", "eval/parity/graph.py", "quant/formats.py", "benchmarks/families/cells.py",
)  # fmt: skip


def row_digest(family_name: str, recipe_name: str) -> str:
    """Return what identifies a row's subject, 16 hexadecimal digits.

    It covers the family's entry, every site with its reason (so of a recipe's rules those that act here), the recipe's
    options, and the code of SOURCES without comments, docstrings, layout and the places where it stands.
    """
    family, recipe = get_family(family_name), load_recipe(recipe_name)
    model = family.model()
    sites = plan_sites(model, recipe, family.batch(model, 4, 12, 0))
    options = {key: value for key, value in recipe.to_dict().items() if key != "rules"}
    subject = [family.model_class, family.config, options, [site_to_dict(site) for site in sites], code_digest()]
    return hashlib.sha256(json.dumps(subject, sort_keys=True, default=str).encode()).hexdigest()[:16]


@cache
def code_digest() -> str:
    """Return the digest of the code of SOURCES: of their definitions, in whichever of the files each stands.

    Moving a function from one file to another, or a file to another folder, changes no cell and no digest.
    """
    return digest_of((ROOT / name).read_text(encoding="utf-8") for name in SOURCES)


def digest_of(texts: Iterable[str]) -> str:
    """Return the digest of the top-level statements of modules, imports and docstrings left out."""
    statements = [
        json.dumps(_plain(node))
        for text in texts
        for node in ast.parse(text).body
        if not isinstance(node, ast.Import | ast.ImportFrom) and not _is_text(node)
    ]
    return hashlib.sha256("\n".join(sorted(statements)).encode()).hexdigest()


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _plain(node: Any) -> Any:
    """Return a syntax tree as lists, the same in every version of Python; docstrings are left out."""
    if isinstance(node, list):
        return [_plain(each) for each in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
    body = fields.get("body")
    if isinstance(body, list) and _is_text(body[0]):
        fields["body"] = body[1:]
    return [type(node).__name__, {name: _plain(value) for name, value in sorted(fields.items())}]


def stale_rows(path: Path = ROWS) -> list[tuple[str, str]]:
    """Return the (family, recipe) pairs that have no row of their present digest."""
    rows = read_rows(path) if path.exists() else []
    measured = {(row["family"], row["recipe"], row["digest"]) for row in rows}
    return [(f, r) for f, r in _pairs() if (f, r, row_digest(f, r)) not in measured]


def _pairs() -> Iterator[tuple[str, str]]:
    return ((family, recipe) for family in FAMILIES for recipe in shipped_recipes())


def run(options: argparse.Namespace) -> None:
    """Measure what is missing or stale, or write the table, or show the sites."""
    path = Path(options.out)
    if options.sites:
        show_sites(options.sites)
        return
    if options.table:
        write_table(Path(options.table), read_rows(path))
        return
    wanted = set(options.family or FAMILIES)
    for name in wanted:
        get_family(name)
    todo = [pair for pair in stale_rows(path) if pair[0] in wanted]
    for number, (family, recipe) in enumerate(todo, 1):
        started = time.perf_counter()
        cells = measure(get_family(family), load_recipe(recipe))
        seconds = round(time.perf_counter() - started, 1)
        append_row(path, "families", family=family, title=get_family(family).title, recipe=recipe,
                   digest=row_digest(family, recipe), seconds=seconds, cells=cells)  # fmt: skip
        failed = [name for name, cell in cells.items() if "error" in cell]
        print(f"{number} of {len(todo)}: {family} {recipe}, {seconds:g} s, failed: {', '.join(failed) or 'none'}",
              file=sys.stderr)  # fmt: skip
    drop_superseded(path)
    print(f"{path}: {len(todo)} rows measured, {len(read_rows(path))} in all")


def show_sites(name: str) -> None:
    """Print what each shipped recipe quantizes in a family, and why the rest is off."""
    family = get_family(name)
    for recipe in shipped_recipes():
        model = family.model()
        sites = plan_sites(model, load_recipe(recipe), family.batch(model, 4, 12, 0))
        print(f"{name}, {recipe}\n{summarize_sites(sites)}\n")


def drop_superseded(path: Path) -> None:
    """Keep the last row of each family and recipe, in the order of the registry; rows of families not in it go."""
    last = {(row["family"], row["recipe"]): row for row in read_rows(path)}
    kept = [json.dumps(last[pair], ensure_ascii=False) for pair in _pairs() if pair in last]
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")


def parser() -> CommandParser:
    """Return the command's parser."""
    command = CommandParser("python -m benchmarks.families", __doc__ or "")
    command.add_argument("--family", action="append", help="only this family; repeat for more")
    command.add_argument("--sites", metavar="FAMILY", help="print what each recipe quantizes in a family")
    command.add_argument("--table", metavar="FILE", help="write the table between the markers of FILE")
    command.add_argument("--out", default=str(ROWS.relative_to(ROOT)), help="the file of the rows")
    return command


if __name__ == "__main__":
    run_command(parser(), run)
