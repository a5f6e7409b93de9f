"""The committed rows of the matrix of families: of the present code, whole, and what the table says."""

from pathlib import Path

import pytest

from benchmarks.families.__main__ import ROOT, ROWS, digest_of, stale_rows
from benchmarks.families.table import between, table, write_table
from benchmarks.rows import read_rows
from quant.recipe import shipped_recipes
from tests.families import FAMILIES, get_family

TABLE = ROOT / "benchmarks" / "results" / "families.md"


@pytest.mark.slow  # its mend takes 40 minutes: make families
def test_the_rows_are_of_the_present_code():
    stale = stale_rows()
    assert not stale, (
        f"{len(stale)} rows of {ROWS.name} are of other code, recipes or families, e.g. {' '.join(stale[0])}; "
        "measure them again: make families"
    )


def test_every_family_and_recipe_has_one_row():
    pairs = [(row["family"], row["recipe"]) for row in read_rows(ROWS)]
    assert pairs == [(family, recipe) for family in FAMILIES for recipe in shipped_recipes()]


def test_the_table_is_that_of_the_rows():
    assert between(TABLE.read_text()) == table(read_rows(ROWS)), f"make families writes {TABLE.name}"
    page = ROOT / "docs" / "families.md"
    assert between(page.read_text()) == table(read_rows(ROWS)), "make families writes docs/families.md"


def test_no_step_of_any_family_failed():
    failed = [
        f"{row['family']} {row['recipe']} {step}: {cell['error']}"
        for row in read_rows(ROWS)
        for step, cell in row["cells"].items()
        if "error" in cell
    ]
    assert not failed


def test_the_digest_knows_code_from_comments_and_places():
    code = '"""Room."""\nimport a\ndef f(x):\n    """Doc."""\n    import b\n    return x + 1  # why\n'
    other = "C = 3\n"
    digest = digest_of([code, other])
    assert digest == digest_of([other + "from c import d\ndef f(x):\n    import b\n    return (x + 1)\n"])
    assert digest != digest_of([code.replace("1", "2"), other])


def test_the_table_shows_what_failed_with_its_reason(tmp_path):
    good = {"num_exact_rows": 21, "num_rows": 21, "engine_error_max": 4e-7}
    cells = {"sites": {"norms": [4, 5]}, "lint": {"linears": [12, 14], "attention_products": [4, 4]},
             "onnxruntime": good, "openvino": {**good, "num_exact_rows": 20}, "tensorrt_rtx": {"skipped": "no builder"},
             "tensorrt8": {"error": "ValueError: no Foo"}, "qat": {"loss": 0.1}}  # fmt: skip
    rows = [{"family": "x", "title": "X", "recipe": "int8_full", "cells": cells}]
    assert table(rows)[2] == (
        "| X | 12 of 14 | 4 of 4 | 4 of 5 | 21 of 21, 4e-07 | 20 of 21 | 0 of 1 | 0 of 1 recipes | 1 of 1 |"
    )
    assert "- X, `tensorrt8` export, int8_full: ValueError: no Foo" in table(rows)
    assert "- X, TensorRT-RTX build, int8_full: no builder" in table(rows)
    (tmp_path / "t.md").write_text("no markers")
    with pytest.raises(ValueError, match="has no lines"):
        write_table(Path(tmp_path / "t.md"), rows)


def test_an_unknown_family_is_named():
    with pytest.raises(
        ValueError, match=r"unknown family 'brt'; there are bert, .* CONTRIBUTING\.md says how to add one"
    ):
        get_family("brt")
