"""Artifacts by content digest: statistics, checkpoints, ONNX files, engines and scores are made once and shared.

An artifact is a folder, made under a partial name and renamed when it is whole; a kill leaves either all or nothing.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INPUTS_FILE = "inputs.json"
TIMELINE_FILE = "timeline.jsonl"
MIN_FREE_BYTES = 16 << 20  # less than this on the disk: whatever error came is a full disk


class ArtifactStore:
    """The folder of all artifacts of a run; several processes may use it at once."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path_of(self, kind: str, inputs: dict[str, Any]) -> Path:
        """Return where the artifact of these inputs lies, made or not."""
        return self.folder / f"{kind}-{digest_of(inputs)}"

    def make(self, kind: str, inputs: dict[str, Any], build: Callable[[Path], None], label: str = "") -> Path:
        """Return the folder of the artifact that `inputs` determine, built by `build(folder)` if it is not there yet.

        Args:
            kind: statistics, checkpoint, ...: the first part of the folder's name.
            inputs: everything that decides its content, as JSON values.
            label: what the time line calls it.
        """
        key = digest_of(inputs)
        target = self.path_of(kind, inputs)
        if target.is_dir():
            return target
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked(f"{kind}-{key}"):
            if target.is_dir():
                return target
            partial = self.folder / f".{kind}-{key}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            started, clock = time.time(), time.perf_counter()
            try:
                build(partial)
                (partial / INPUTS_FILE).write_text(json.dumps(inputs, indent=1, sort_keys=True) + "\n")
                os.replace(partial, target)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            self._note(kind, label or key, started, time.perf_counter() - clock)
        return target

    def make_json(self, kind: str, inputs: dict[str, Any], compute: Callable[[], Any], label: str = "") -> Any:
        """Return a computed JSON value, kept like any artifact."""

        def build(folder: Path) -> None:
            (folder / "value.json").write_text(json.dumps(compute(), sort_keys=True, allow_nan=False) + "\n")

        return json.loads((self.make(kind, inputs, build, label) / "value.json").read_text())

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with open(self.folder / f".{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _note(self, kind: str, label: str, started: float, seconds: float) -> None:
        line = {"kind": kind, "label": label, "started": round(started, 3), "seconds": round(seconds, 3)}
        with open(self.folder / TIMELINE_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")


def digest_of(inputs: Any) -> str:
    """Return the sha256 of JSON values, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def check_disk(error: BaseException, folder: str | Path) -> None:
    """Raise OSError in one clear line if `error` came from a full disk: that is no property of a point."""
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if is_full or shutil.disk_usage(folder).free < MIN_FREE_BYTES:
        raise OSError(
            errno.ENOSPC, f"the disk of {folder} is full; all finished rows are kept. Free some space and run the same "
            "command again"
        ) from error  # fmt: skip
