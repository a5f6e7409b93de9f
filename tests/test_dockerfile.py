"""The Dockerfile's COPY and pip steps, replayed in an empty folder; Docker itself is not needed, nor a network."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def steps() -> list[tuple[str, str]]:
    """Return (instruction, arguments) of each step, continued lines joined and comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def copy_into(folder: Path, arguments: str) -> None:
    """Copy what a COPY names, as Docker does: patterns expand, a source that is not there is an error."""
    *sources, target = shlex.split(arguments)
    for source in sources:
        found = sorted(ROOT.glob(source))
        assert found, f"COPY {source}: no such file in the build's folder"
        for path in found:
            shutil.copy(path, folder / target / path.name)


def test_the_pip_step_has_every_file_that_it_reads(tmp_path: Path) -> None:
    """Fails where a file includes one that was not copied; all else is installed already, so that pip asks nobody."""
    run = None
    for instruction, arguments in steps():
        if instruction == "COPY":
            copy_into(tmp_path, arguments)
        elif instruction == "RUN" and "pip install" in arguments:
            run = next(part for part in arguments.split("&&") if "pip install" in part)
            break
    assert run is not None
    words = shlex.split(run)
    assert words[:4] == [".venv/bin/python", "-m", "pip", "install"]
    command = [sys.executable, *words[1:], "--dry-run", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Requirement already satisfied: pytest==" in done.stdout and "Would install" not in done.stdout


def test_the_image_has_all_the_files_that_the_stamp_of_make_depends_on() -> None:
    """A file that the Makefile does not list changes without a new installation; one that is ignored is not copied."""
    included, left = set(), ["requirements-dev.txt"]
    while left:
        name = left.pop()
        included.add(name)
        left += re.findall(r"^-r (\S+)", (ROOT / name).read_text(), flags=re.MULTILINE)
    (listed,) = re.findall(r"^\$\(STAMP\): (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(listed.split()) == included
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not [name for name in {"Makefile", *included} for pattern in ignored if Path(name).match(pattern)]
    assert [arguments for instruction, arguments in steps() if instruction == "COPY"][-1] == ". ."
