"""Does an INT8 program compute what the quantized model computes? Run on the CPU, by each op's plain formula."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from engine.backends.inductor.compiled import load_module
from engine.backends.inductor.program import read_program
from engine.passes.targets import PROGRAM_TARGET
from eval.parity.check import ParityReport, check_padding, expect, outputs_of
from eval.parity.graph import active_quantizers
from eval.parity.limits import compare, num_exact_rows
from eval.parity.random_feeds import random_feeds
from eval.pytorch_runner import PyTorchRunner
from eval.timing.latency import Feeds
from quant.models.pretrained import LoadedModel
from quant.sites.roles import Role


class ProgramRunner:
    """A program's file on the CPU, as written: no compiler and no kernel takes part."""

    def __init__(self, path: str | Path) -> None:
        self.program = read_program(path)
        self.input_names, self.output_names = list(self.program.inputs), list(self.program.outputs)
        self.batch_size = None
        self._module: Any = load_module(path, "cpu")

    def __call__(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Return the outputs by name."""
        given = [
            torch.from_numpy(np.ascontiguousarray(feeds[name], dtype=dtype))
            for name, (dtype, _) in self.program.inputs.items()
        ]
        with torch.no_grad():
            return dict(zip(self.output_names, (y.numpy() for y in self._module(*given)), strict=True))

    def __enter__(self) -> ProgramRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
                 ) -> None:  # fmt: skip
        del self._module


def check_program(
    path: str | Path, quantized: LoadedModel, dtype: str, *, feeds: list[Feeds] | None = None, seed: int = 0
) -> ParityReport:
    """Return how close a program is to the fake-quantized model it was made of.

    Args: as `eval.parity.check.check_parity` takes them; dtype: of what is not INT8.
    Raises: ValueError: the outputs differ by more than the half type's rounding explains, or see the padding.
    """
    batches = feeds if feeds is not None else list(random_feeds(quantized, seed))
    expected = expect(quantized, None, batches, dtype)
    with ProgramRunner(path) as runner:
        written = outputs_of(runner, batches)
        check_padding(runner, batches, written, PyTorchRunner(quantized))
    found = compare(written, expected.outputs, batches, expected.limits.margin)
    if not expected.limits.admits(found):
        raise ValueError(
            f"the program does not compute what the quantized model computes: {found}; {expected.limits}. Look for "
            "what overflows in this type (take the other --dtype), or report it: the program's ops are ours"
        )
    active = [site.role for site, _ in active_quantizers(quantized.model)]
    weights = active.count(Role.WEIGHT)
    exact = sum(num_exact_rows(*each) for each in zip(written, expected.outputs, batches, strict=True))
    return ParityReport(
        PROGRAM_TARGET, weights, len(active) - weights, 1.0, found.error_max, found.error_mean, found.error_max,
        found.error_mean, expected.quantization_error_mean, found.num_flips, found.num_rows, False, exact,
    )  # fmt: skip
