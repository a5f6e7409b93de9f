"""The commands of committed rows: each names a module that is there, and no path of the machine that measured."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = sorted([*ROOT.glob("benchmarks/results/*.jsonl"), *ROOT.glob("benchmarks/reports/*/results.jsonl")])


@pytest.mark.parametrize("path", ROWS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_commands_name_modules_that_are_there_and_no_path_of_one_machine(path):
    commands = {json.loads(line).get("command") or "" for line in path.read_text().splitlines()}
    modules = {found for command in commands for found in re.findall(r"python -m ([\w.]+)", command)}
    assert commands and all(importlib.util.find_spec(name) for name in modules), modules
    assert not [command for command in commands if re.search(r"(?<![\w.])(/|\.\./)\w", command)]


@pytest.mark.parametrize("module", ["benchmarks.families", "benchmarks.accuracy.fidelity", "benchmarks.speed"])
def test_a_new_row_names_the_module_that_runs(module):
    hook = (
        "import benchmarks.rows, engine.cli\n"
        "engine.cli.CommandParser.parse_args = lambda *_: print(benchmarks.rows.main_module()) or exit(0)\n"
        f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", hook], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == module
