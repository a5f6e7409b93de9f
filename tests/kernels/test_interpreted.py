"""Runs the kernels' tests on the CPU: Triton decides at its import, so in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need the package triton")
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels' tests run on this machine's GPU")
@pytest.mark.parametrize("name", ["linear", "attention", "rows"])
def test_in_the_interpreter(name: str) -> None:
    run = [
        sys.executable,
        "-m",
        "pytest",
        f"tests/kernels/test_{name}.py",
        "-k",
        "not gpu and not many_scales",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        run, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "skipped" not in done.stdout, done.stdout[-2000:]
