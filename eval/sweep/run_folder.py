"""The run folder: locked while it is used, resumed only by the same sweep, its rows read back whole."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.backend import BACKENDS, get_backend
from engine.gpu import find_gpu
from eval.results import ResultRow, device_name, package_versions, parse_row
from eval.sweep.grid import SweepOptions, options_from_dict
from eval.timing.point_details import NO_DETAILS, Details, details_from_dict
from quant.recipe import load_recipe

logger = logging.getLogger(__name__)
MANIFEST, ROWS, LOCK, ARTIFACTS, TIMINGS = "manifest.json", "results.jsonl", ".lock", "artifacts", "timings"
ANALYSIS, LOAD = "analysis.json", "load.json"
SWEEP_SCHEMA = 1


@dataclass(frozen=True)
class SweepRow:
    """One point: the result row of the contract, and what only a sweep knows, under the key "sweep" of its line.

    Attributes:
        row: the fields every result has.
        system: the system's name.
        shape: the shape's name.
        number: its line in results.jsonl, from 1; 0 before it is written.
    """

    row: ResultRow
    system: str
    shape: str
    details: Details = NO_DETAILS
    number: int = 0

    def as_line(self) -> str:
        """Return the row as its line in results.jsonl."""
        extra = {"schema": SWEEP_SCHEMA, "system": self.system, "shape": self.shape, **self.details.as_dict()}
        return json.dumps({**self.row.as_dict(), "sweep": extra}, sort_keys=True, ensure_ascii=False, allow_nan=False)


def parse_sweep_row(line: str, where: str, number: int) -> SweepRow:
    """Return the row of one line. Raises: ValueError: not JSON, or of another schema (`where` is named)."""
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not a JSON object ({error.msg}); delete the broken line") from None
    extra = values.pop("sweep", None) if isinstance(values, dict) else None
    row = parse_row(values, where)
    if not isinstance(extra, dict) or extra.get("schema") != SWEEP_SCHEMA:
        found = extra.get("schema") if isinstance(extra, dict) else "none"
        raise ValueError(
            f"{where}: sweep schema {found}, this version reads {SWEEP_SCHEMA}; start a new sweep in another --out"
        )
    missing = [name for name in ("system", "shape") if name not in extra]
    if missing:
        raise ValueError(f"{where}: its sweep names no {' and no '.join(missing)}; delete the broken line")
    rest = {name: value for name, value in extra.items() if name not in ("schema", "system", "shape")}
    try:
        return SweepRow(row, extra["system"], extra["shape"], details_from_dict(rest), number)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


@dataclass(frozen=True)
class RunFolder:
    """The files of one sweep."""

    path: Path

    @property
    def rows_path(self) -> Path:
        return self.path / ROWS

    @property
    def artifacts(self) -> Path:
        return self.path / ARTIFACTS

    def manifest(self) -> dict[str, Any]:
        """Return manifest.json. Raises: FileNotFoundError, ValueError: no run folder, or a damaged one."""
        path = self.path / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{self.path} is no run folder (it has no {MANIFEST}); make one with 'python -m "
                                    f"eval.sweep --out {self.path}'")  # fmt: skip
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is damaged: {error}") from None

    def options(self) -> SweepOptions:
        """Return the options of this run."""
        return options_from_dict(self.manifest()["options"])

    def rows(self) -> list[SweepRow]:
        """Return every row, in order. Raises: ValueError: a broken line or one of another schema."""
        if not self.rows_path.exists():
            return []
        lines = self.rows_path.read_text(encoding="utf-8").splitlines()
        return [parse_sweep_row(line, f"{self.rows_path}, line {n}", n) for n, line in enumerate(lines, 1)]

    def append(self, row: SweepRow) -> None:
        """Append one row, written and synced in one go; a write cut short by a full disk is taken back."""
        data = (row.as_line() + "\n").encode()
        descriptor = os.open(self.rows_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            before = os.fstat(descriptor).st_size
            try:
                written = os.write(descriptor, data)
                if written != len(data):
                    raise OSError(28, f"only {written} of {len(data)} bytes of a row could be written")
            except OSError:
                os.ftruncate(descriptor, before)
                raise
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def repair(self) -> str | None:
        """Cut off a last line that a crash left unfinished and return what was done, None if all lines are whole."""
        if not self.rows_path.exists():
            return None
        data = self.rows_path.read_bytes()
        if not data:
            return None
        kept = len(data) if data.endswith(b"\n") else data.rfind(b"\n") + 1
        if kept == len(data):
            start = data.rfind(b"\n", 0, len(data) - 1) + 1
            try:
                json.loads(data[start:])
            except ValueError:
                kept = start
        if kept == len(data):
            return None
        with open(self.rows_path, "r+b") as file:
            file.truncate(kept)
        return (f"{self.rows_path}: the last line was broken by a crash ({len(data) - kept} bytes); it was cut off and "
                "its point is measured again")  # fmt: skip

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file of the run, whole or not at all."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        partial.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, target)

    def read_json(self, name: str) -> Any:
        """Return one JSON file of the run, None where it is not there."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run folder for this process; the lock goes with the process however it ends.

        Raises: RuntimeError: another process holds it (named).
        """
        with open(self.path / LOCK, "a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                raise RuntimeError(
                    f"{self.path} is in use by {holder}; wait for it to end, or choose another --out"
                ) from None
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            lock.flush()
            yield


def recipe_digests(recipes: Iterable[str]) -> dict[str, str]:
    """Return the digest of every recipe that is a file: its content may change under its name."""
    return {each: load_recipe(each).digest for each in recipes if each.endswith((".yaml", ".yml"))}


def machine_of(options: SweepOptions) -> dict[str, str]:
    """Return what the timings of a run are bound to: the device of PyTorch, and the GPU of a backend that uses one."""
    machine = {"device": device_name("cuda" if options.device != "cpu" else "cpu")}
    if any(name in BACKENDS and get_backend(name).info.uses_gpu for name in options.backends):
        machine["gpu"] = str(find_gpu())
    return machine


def claim(path: str | Path, options: SweepOptions, identity: dict[str, Any], command: str) -> tuple[RunFolder, bool]:
    """Return the run folder for this sweep, and whether it goes on with an earlier run.

    Args: identity: digests of model and data, which must be the same on resume as options, versions and device.
    Raises: FileExistsError: the folder holds another sweep, or something else.
    """
    run = RunFolder(Path(path))
    wanted = {"schema": SWEEP_SCHEMA, "options": options.as_dict(), "identity": identity,
              "versions": package_versions(), **machine_of(options)}  # fmt: skip
    if contents := recipe_digests(options.recipes):
        wanted["recipes"] = contents
    if (run.path / MANIFEST).is_file():
        found = run.manifest()
        wrong = list(differences(wanted, {key: found.get(key) for key in wanted}))
        if wrong:
            raise FileExistsError(f"{path} holds another sweep: {'; '.join(wrong[:4])}. Choose another --out, or "
                                  "start anew there with --force")  # fmt: skip
        return run, True
    if run.path.exists() and any(p.name != LOCK for p in run.path.iterdir()):
        raise FileExistsError(f"{path} exists and is no run folder of a sweep; choose another --out")
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_json(MANIFEST, {**wanted, "command": command})
    return run, False


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    """Yield what one mapping has otherwise than another, deep: "key is X there, Y here"."""
    for key, value in wanted.items():
        other = found.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            yield from differences({**dict.fromkeys(other), **value}, other)
        elif value != other:
            yield f"{key} is {_shown(other)} there, {_shown(value)} here"


def _shown(value: Any) -> str:
    return "''" if value == "" else str(value)
