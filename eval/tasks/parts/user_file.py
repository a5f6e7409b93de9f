"""A task from a file of the user's own: the file is executed as Python code, and must define one Task."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.cli import did_you_mean, one_line
from eval.tasks.base import Task

CHOSEN = "TASK"  # of several tasks in one file, the one of this name counts
NEEDED = ("reduce", "score")


def load_task(path: str | Path) -> Task:
    """Return the task that a file defines, with its path and digest.

    Raises: FileNotFoundError: no such file (near matches named). ValueError: it cannot be executed, or defines no task
        or several.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        there = [each.name for each in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise FileNotFoundError(
            f"--task {path}: no such file{did_you_mean(file.name, there)}; a task of your own is a "
            "Python file that defines one eval.tasks.base.Task"
        )
    text = file.read_bytes()
    return _executed(file.resolve(), hashlib.sha256(text).hexdigest()[:16])


@functools.lru_cache
def _executed(file: Path, digest: str) -> Task:
    """Return the task of a file of this digest: one process executes it once."""
    name = f"int8kit_task_{digest}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class up by its module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code raises what it likes
        del sys.modules[name]
        raise ValueError(f"--task {file}: its import raised {type(error).__name__}: {one_line(error)}") from error
    task = task_in(module, f"--task {file}")
    missing = [method for method in NEEDED if getattr(type(task), method) is getattr(Task, method)]
    if type(task).features is Task.features and type(task).encode is Task.encode:
        missing.insert(0, "encode")
    if missing:
        raise ValueError(f"--task {file}: its {type(task).__name__} does not define {', '.join(missing)}")
    return dataclasses.replace(task, file=str(file), file_digest=digest)


def task_in(module: ModuleType, where: str) -> Task:
    """Return the one task that a module defines. Raises: ValueError: it defines none, or several."""
    found: dict[str, Any] = {name: x for name, x in vars(module).items() if isinstance(x, Task)}
    if CHOSEN in found:
        return found[CHOSEN]
    unique = {id(task): name for name, task in found.items()}
    if len(unique) == 1:
        return next(iter(found.values()))
    if not found:
        named = f"; its {CHOSEN} is a {type(getattr(module, CHOSEN)).__name__}" if hasattr(module, CHOSEN) else ""
        raise ValueError(
            f"{where} defines no task{named}; it needs one instance of a subclass of eval.tasks.base.Task, as TASK = "
            "MyTask(name=...)"
        )
    raise ValueError(
        f"{where} defines {len(unique)} tasks ({', '.join(unique.values())}); keep one, or name the one that counts "
        f"{CHOSEN}"
    )
