"""The house rules: who may import whom, that every pin has a reason, and that the recipes hold."""

import ast
import graphlib
import re
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import export
from engine.passes.targets import ALL_TARGETS
from quant.recipe import load_recipe, shipped_recipes

ROOT = Path(__file__).parents[1]
OURS = {"kernels", "quant", "calib", "engine", "eval", "training", "int8kit"}
SCRIPTS = {"train_qat", "export", "build_engine", "benchmarks", "docs", "tests"}
# What each floor may import of ours, beside itself.
MAY_IMPORT = {"kernels": set(), "quant": {"kernels"}, "engine": set(), "calib": {"quant"},
              "eval": {"quant", "calib", "engine"}, "training": {"quant", "calib", "engine", "eval"},
              "int8kit": {"quant", "calib", "engine", "eval"}}  # fmt: skip
MAX_LINES = 300
MEDIAN_LINES = 130
MAX_FILES = 15  # of code in one folder; __init__.py says what the room is for
# engine/ runs on a deployment box that has none of these.
TRAINING_PACKAGES = {"torch", "transformers", "datasets", "accelerate", "safetensors", "sklearn", "pandas"}
# The one folder of engine/ that computes with torch, by our kernels: where its engines run, there are a GPU and both.
WITH_TORCH = ROOT / "engine" / "backends" / "inductor"
NOT_OF_THE_NAME = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "PyYAML", "onnx_ir": "onnx-ir",
                   "markdown_it": "markdown-it-py"}  # fmt: skip
# Imported inside the one file that needs them, and not required (triton comes with a torch for GPUs).
OPTIONAL = {"tensorrt", "tensorrt_rtx", "polygraphy", "matplotlib", "ray", "triton"}
MODULES = sorted(path for room in OURS for path in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Return the full names of the modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            found.add(node.module or "")
    return found


def requirements(name: str) -> dict[str, str]:
    """Return package → the whole line of one requirements file."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith(("#", "-r"))]
    return {re.split(r"[=\[ ]", line)[0].lower(): line for line in lines}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_imports_upward_or_a_script(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & SCRIPTS or path.name == "__main__.py"
    is_command = path.name == "__main__.py" or path == ROOT / "eval" / "demo.py"
    if not is_command:
        # engine/cli.py is on the ground floor: every command takes its parser and whole outputs from there.
        allowed = MAY_IMPORT[room] | ({"kernels"} if path.parent == WITH_TORCH else set())
        upward = {n for n in imports(path) if n.split(".")[0] in OURS - {room} - allowed} - {"engine.cli"}
        assert not upward, f"{path.relative_to(ROOT)} may not import {upward}"
    bare = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import)]
    names = {alias.name for node in bare for alias in node.names}
    assert "eval" not in names, "write 'from eval.tasks import get_task', never 'import eval'"
    if room == "engine":
        assert not roots & (TRAINING_PACKAGES - ({"torch"} if path.parent == WITH_TORCH else set()))


def code_files() -> list[Path]:
    """Return all files of code but __init__.py."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split() if (path := ROOT / name).exists() and path.name != "__init__.py"]


def test_files_and_folders_stay_small() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in code_files()}
    long = {str(path.relative_to(ROOT)): lines for path, lines in lengths.items() if lines > MAX_LINES}
    assert not long, f"split them: {long}"
    assert statistics.median(lengths.values()) <= MEDIAN_LINES
    folders = Counter(str(path.parent.relative_to(ROOT)) for path in lengths)
    full = {name: number for name, number in folders.items() if number > MAX_FILES}
    assert not full, f"make a room: {full}"


def test_no_module_imports_itself_through_others() -> None:
    """At import time; what a function imports when it is called cannot close a circle."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in code_files()}
    graph = {
        name: {
            module
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.ImportFrom) and node.module
            for module in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
            if module in names
        }
        for name, path in names.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_scripts_do_not_import_each_other() -> None:
    for script in ROOT.glob("*.py"):
        assert not {name.split(".")[0] for name in imports(script)} & SCRIPTS, script.name


REQUIREMENTS = [*sorted(path.name for path in ROOT.glob("requirements*.txt")), "engine/requirements.txt"]


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_every_requirement_is_pinned_with_its_reason(name: str) -> None:
    lines = requirements(name).values()
    assert lines
    for line in lines:
        assert re.match(r"[\w.-]+==[\w.]+( ; .*)? +# .{8,}", line), f"{name}: {line!r} needs 'name==version  # reason'"


def test_every_import_is_required() -> None:
    required = requirements("requirements.txt")
    for path in MODULES:
        for name in {full.split(".")[0] for full in imports(path)} - OURS - OPTIONAL - set(sys.stdlib_module_names):
            package = NOT_OF_THE_NAME.get(name, name).lower()
            assert package in required, f"{path.relative_to(ROOT)} imports {name}, which requirements.txt does not name"


def test_torch_pin_is_the_documented_one() -> None:
    assert requirements("requirements.txt")["torch"].startswith("torch==2.13.0 ")


def test_export_names_every_target() -> None:
    assert export.TARGETS == ALL_TARGETS


def test_shipped_recipes_load() -> None:
    assert {"int8_linear", "int8_attention", "int8_full"} <= set(shipped_recipes())
    for name in shipped_recipes():
        assert load_recipe(name).name == name


def test_ci_runs_lint_and_all_tests_and_a_page_names_the_quick_ones() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "make lint\n" in script and "make test-all " in script
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert any("make test " in page.read_text() for page in pages)
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_license_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "9. Accepting Warranty" in text and "END OF TERMS AND CONDITIONS" in text
