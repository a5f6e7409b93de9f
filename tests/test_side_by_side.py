"""The side by side of tools: its page and table are those of its rows, and the rows' lines those of the recipes."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.families.table import between
from benchmarks.rows import read_rows, without_folders
from benchmarks.side_by_side.__main__ import PAGE, ROWS, read_pythons
from benchmarks.side_by_side.judge import FLOAT, Validation
from benchmarks.side_by_side.lines import counted_lines
from benchmarks.side_by_side.run import COST, Job, last_error, run_recipe
from benchmarks.side_by_side.table import BEGIN, END, table, write_tables
from benchmarks.side_by_side.tools import SEARCHES, TOOLS, Tool, get_tool
from benchmarks.tables import newest
from engine.cli import UsageError

ROOM = COST.parent


def last_rows() -> dict[str, dict]:
    return {row["tool"]: row for row in newest(read_rows(ROWS), "tool")}


def test_every_tool_has_a_row_and_what_was_not_run_says_why():
    rows = last_rows()
    assert set(rows) == {FLOAT, *TOOLS}
    assert all(row["reason"] for row in rows.values() if row["status"] != "ok")
    assert all(row["num_sentences"] == 872 and row["runs"] for key, row in rows.items()
               if row["status"] == "ok" and key != FLOAT)  # fmt: skip


@pytest.mark.parametrize("key", TOOLS)
def test_the_lines_of_a_recipe_are_those_of_its_row(key):
    row = last_rows()[key]
    assert (row["recipe"], row["num_lines"]) == (TOOLS[key].recipe, len(counted_lines(TOOLS[key].path)))


@pytest.mark.parametrize("key", SEARCHES)
def test_the_recipe_of_a_search_is_counted_by_the_same_rule(key):
    assert len(counted_lines(get_tool(key).path)) >= 2


def test_table_and_page_are_those_of_the_rows():
    made = table(read_rows(ROWS))
    assert between(PAGE.read_text(), BEGIN, END) == made, "python -m benchmarks.side_by_side --table"
    assert ROWS.with_suffix(".md").read_text().endswith("\n".join(made) + "\n")


def test_every_environment_is_pinned_with_reasons():
    for key in {tool.environment for tool in TOOLS.values()} - {"int8kit"}:
        lines = (ROOM / f"requirements-{key}.txt").read_text().splitlines()
        pins = [line for line in lines if not line.startswith("#")]
        assert pins and all(re.match(r"[\w.-]+==[\w.]+ +# .{8,}", line) for line in pins), key


def test_what_counts_as_a_line(tmp_path):
    recipe = tmp_path / "recipe.py"
    text = '"""What it does.\n\nMore.\n"""\n\nimport sys  # job\n\n# why\nx = [\n    1,  # one\n]\nprint(x)\n'
    recipe.write_text(text)
    assert counted_lines(recipe) == ["x = [", "    1,  # one", "]", "print(x)"]
    recipe.write_text("x = 1; y = 2\n")
    with pytest.raises(ValueError, match="line 1 holds two statements"):
        counted_lines(recipe)
    command = tmp_path / "recipe.sh"
    command.write_text("# what\nMODEL=$1  # job\n\ntool \\\n  --model $MODEL\n")
    assert len(counted_lines(command)) == 2
    command.write_text("tool " + "x" * 116 + "\n")
    with pytest.raises(ValueError, match=r"recipe\.sh:1 has 121 columns, over 120"):
        counted_lines(command)


def cost_of(limit_s: float, code: str, log: Path) -> dict:
    command = [sys.executable, "-S", str(COST), str(limit_s), str(log), sys.executable, "-c", code]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_cost_is_that_of_the_command_and_all_it_starts(tmp_path):
    child = "x = b'1' * 300_000_000; sum(range(3_000_000))"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True); print('said')"
    found = cost_of(60, code, tmp_path / "log")
    assert found["status"] == 0 and (tmp_path / "log").read_text() == "said\n"
    assert 300e6 < found["peak_bytes"] < 400e6  # the interpreter itself takes about 10 MB
    assert 0 < found["cpu_s"] <= 1.5 * found["wall_s"] + 0.1  # two processes, one after the other
    assert cost_of(0.2, "import time; time.sleep(60)", tmp_path / "log")["status"] is None


def test_a_measurement_that_is_ended_takes_its_command_with_it(tmp_path):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    log = tmp_path / "log"
    measured = subprocess.Popen([sys.executable, "-S", str(COST), "60", str(log), sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while not (log.exists() and log.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.05)
    pid = int(log.read_text())
    measured.terminate()
    measured.wait(30)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_recipe_that_fails_or_leaves_nothing_is_told(tmp_path, monkeypatch):
    tool = Tool("A tool", "recipe.sh", "nncf", (), "*.onnx")
    monkeypatch.setattr("benchmarks.side_by_side.tools.RECIPES", tmp_path)
    job = Job(tmp_path / "model", tmp_path / "samples.parquet", 60)
    recipe = tmp_path / "recipe.sh"
    recipe.write_text('echo "no operator in $1, $3/x and /usr/lib/y.so"; exit 3\n')
    with pytest.raises(RuntimeError, match=r"^no operator in MODEL, OUT/x and y\.so$"):
        run_recipe(tool, Path(sys.executable), job, tmp_path / "out")
    recipe.write_text("true\n")
    with pytest.raises(FileNotFoundError, match=r"recipe\.sh left 0 files \*\.onnx; one is expected"):
        run_recipe(tool, Path(sys.executable), job, tmp_path / "out")
    recipe.write_text('echo x > "$3/model.onnx"\n')
    cost, artifact = run_recipe(tool, Path(sys.executable), job, tmp_path / "out")
    assert cost.wall_s > 0 and artifact.size_bytes == 2 and artifact.runtime == "onnxruntime"
    (tmp_path / "empty").write_text("")
    assert last_error(tmp_path / "empty", job) == "ended without a word"


def test_wrong_words_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no tool 'nnfc'; choose from int8kit, .*ort-dynamic"):
        get_tool("nnfc")
    with pytest.raises(UsageError, match=r"--python 'nnfc=x' must be KEY=PATH with KEY one of int8kit, optimum"):
        read_pythons(["nnfc=x"])
    with pytest.raises(UsageError, match=r"there is no file .*nothing; name the interpreter"):
        read_pythons([f"nncf={tmp_path}/nothing"])


def test_a_score_counts_changed_predictions():
    floats = np.array([[1.0, 0.0], [0.0, 1.0], [0.2, 0.1]])
    found = Validation({}, np.array([0, 1, 1]), floats).score(np.array([[1.0, 0.5], [0.0, 1.0], [0.1, 0.2]]))
    assert found["accuracy"] == 1 and found["num_flips"] == 1 and found["num_sentences"] == 3
    assert found["mean_abs_logit_change"] == pytest.approx(0.7 / 6)


def test_a_table_names_ties_and_what_failed(tmp_path):
    row = next(row for key, row in last_rows().items() if row["status"] == "ok" and key != FLOAT)
    twin = {**row, "tool": "twin", "title": "Twin"}
    broken = {**row, "tool": "broken", "title": "Broken", "status": "failed", "reason": "no such operator"}
    lines = table([row, twin, broken])
    assert "- Broken: no such operator" in lines
    assert f"- fewest flips: {row['title']} and Twin" in lines
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_tables([row, twin, broken], tmp_path / "table.md", page)
    assert between(page.read_text(), BEGIN, END) == lines and page.read_text().endswith("after\n")


def test_folders_of_a_machine_do_not_reach_a_row():
    assert without_folders("/a/b/minilm-sst2/") == "FOLDER/minilm-sst2"
    assert without_folders("nncf=/v/bin/python") == "nncf=FOLDER/python"
    assert without_folders("a, b=~/e.engine@openvino") == "a, b=FOLDER/e.engine@openvino"
    assert without_folders("../elsewhere/data/sst2") == "FOLDER/sst2"
    for plain in ("--model", "benchmarks/results/x.jsonl", "8x64", "input_ids:1x8", "model.onnx"):
        assert without_folders(plain) == plain
