"""How many lines a user types: the one rule by which all recipes are counted.

A recipe is a program that does the whole job, from the float model and a file of sentences to an INT8 file. Every line
counts, import or command or configuration, but empty lines, comments, docstrings, and lines that end in `# job`: those
take the job's paths from whoever measures, where a user would write them in place. No line is wider than MAX_COLUMNS;
a command or a call that is wider is broken, and counts as the lines it then has.
"""

from __future__ import annotations

import ast
from pathlib import Path

MAX_COLUMNS = 120
JOB = "# job"


def counted_lines(recipe: Path) -> list[str]:
    """Return the lines of a recipe that count, as they stand in it.

    Raises: ValueError: a line is too wide, or two statements stand in one.
    """
    text = recipe.read_text(encoding="utf-8")
    left_out = _docstrings(text) if recipe.suffix == ".py" else set()
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > MAX_COLUMNS:
            raise ValueError(f"{recipe.name}:{number} has {len(line)} columns, over {MAX_COLUMNS}; break it")
        bare = line.strip()
        if number not in left_out and bare and not bare.startswith("#") and not bare.endswith(JOB):
            found.append(line)
    return found


def _docstrings(text: str) -> set[int]:
    """Return the line numbers of docstrings. Raises: ValueError: statements share a line."""
    tree = ast.parse(text)
    starts = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    if shared := {number for number in starts if starts.count(number) > 1}:
        raise ValueError(f"line {min(shared)} holds two statements; write one a line")
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    texts = [node.body[0] for node in nodes if ast.get_docstring(node) is not None]
    return {number for each in texts for number in range(each.lineno, (each.end_lineno or each.lineno) + 1)}
