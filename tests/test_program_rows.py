"""The committed rows of INT8 programs: whole, none failed, and the table of docs/guides/gpu.md is theirs."""

from benchmarks.families.programs import BEGIN, END, ROWS, table
from benchmarks.families.table import between
from benchmarks.rows import read_rows
from quant.recipe import shipped_recipes
from tests.families import FAMILIES
from tests.test_house import ROOT


def test_every_family_and_recipe_has_one_row_and_none_failed():
    rows = read_rows(ROWS)
    assert sorted((row["family"], row["recipe"]) for row in rows) == sorted(
        (family, recipe) for family in FAMILIES for recipe in shipped_recipes()
    )
    assert not [row for row in rows if "error" in row]


def test_the_table_is_that_of_the_rows():
    assert between((ROOT / "docs" / "guides" / "gpu.md").read_text(), BEGIN, END) == table(read_rows(ROWS))
