"""Runs the compile-only tests in a process of their own where this session's Triton interprets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.device import INTERPRETED

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not INTERPRETED, reason="they run in this session itself")
@pytest.mark.parametrize("tests", ["tests/kernels/test_compile.py", "tests/engine/backends/inductor/test_binaries.py"])
def test_kernels_compile_without_a_gpu(tests: str) -> None:
    run = [sys.executable, "-m", "pytest", tests, "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "SKIPPED" not in done.stdout, done.stdout[-2000:]
