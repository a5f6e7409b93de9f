"""How long the first load of an engine of backend inductor takes: a fresh process whose compiler caches are empty.

    python -m benchmarks.gpu.first_load --engine runs/gpu --out rows.jsonl

A row for each of: as it is; without the compiled kernels that stand in the engine; as it is where Python's bytecode of
torch lies there (pip leaves it, an image may not). Medians of rounds in turn, after one load that is not measured;
torch's import and the CUDA context are timed apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rows import append_row

WHOLE, WITHOUT, BYTECODE = "as it is", "without our kernels' code", "bytecode there"
KINDS = (WHOLE, WITHOUT, BYTECODE)


def load_once(engine: str, with_kernels: bool) -> dict[str, float]:
    """Load the engine in this process and return the seconds."""
    start = time.perf_counter()
    import torch

    torch.zeros(1).cuda()
    from engine.backend import get_backend
    from engine.backends.inductor import binaries

    if not with_kernels:
        binaries.read_binaries = lambda archive: {}
    begun = time.perf_counter()
    get_backend("inductor").load(engine).close()
    return {"import_s": begun - start, "load_s": time.perf_counter() - begun}


def load_apart(engine: str, kind: str, bytecode: Path) -> dict[str, float]:
    """Load it in a process of its own, in whose home nothing was ever compiled."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HOME": home, "TORCHINDUCTOR_CACHE_DIR": f"{home}/inductor"}
        environment.pop("TRITON_CACHE_DIR", None)
        environment["PYTHONPYCACHEPREFIX"] = str(bytecode) if kind == BYTECODE else f"{home}/bytecode"
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        words = [sys.executable, "-m", "benchmarks.gpu.first_load", "--engine", engine, "--once", kind]
        done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"one load, {kind}: torch and CUDA {found['import_s']:.1f} s, load {found['load_s']:.1f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--out", help="rows; needed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(load_once(args.engine, args.once != WITHOUT)))
        return
    if args.out is None:
        parser.error("--out is missing")
    manifest: dict[str, Any] = json.loads(Path(f"{args.engine}.json").read_text())
    with tempfile.TemporaryDirectory() as bytecode:
        load_apart(args.engine, BYTECODE, Path(bytecode))  # not measured: it reads the files and writes the bytecode
        rounds = [{kind: load_apart(args.engine, kind, Path(bytecode)) for kind in KINDS} for _ in range(args.rounds)]
    for kind in KINDS:
        seconds = {key: statistics.median(each[kind][key] for each in rounds) for key in ("import_s", "load_s")}
        append_row(args.out, "first_load", engine=Path(args.engine).name, kind=kind, gpu=manifest["device"],
                   size_bytes=manifest["size_bytes"], shapes=manifest["shapes"], rounds=args.rounds,
                   **seconds)  # fmt: skip
        print(f"{kind}: torch and CUDA {seconds['import_s']:.1f} s, load {seconds['load_s']:.1f} s")


if __name__ == "__main__":
    main()
