"""From a float model and samples to a folder that stands alone: checkpoint, ONNX file, engine, page and model card."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from engine.backend import get_backend, outlook
from eval.sweep.run_folder import RunFolder
from int8kit.checks import AUTO, MAX_LOSS, check_quantize
from int8kit.choose import choose_backend
from int8kit.compared import compare_with_float
from int8kit.result import Quantized
from int8kit.scored import score
from quant.recipe import DEFAULT_RECIPE


def quantize(
    model: str, samples: str | None, out: str | Path, *, task: str | None = None, data: str | None = None,
    backend: str = AUTO, recipe: str = DEFAULT_RECIPE, max_loss: float | None = None, num_samples: int = 256,
    column: list[str] | None = None, seq_length: int | None = None, threads: int | None = None, seed: int = 0,
) -> Quantized:  # fmt: skip
    """Calibrate a float model, export and build it, compare it with the float one; leave all in `out`.

    Args:
        model: Hugging Face id or folder.
        samples: texts or images; None takes the task's training data.
        task: what it is scored on; where the recipe loses more than `max_loss` (0.005), a search follows.
        data: the task's data set or folder.
        backend: a runtime's name, or "auto".
        seq_length: tokens at which it is timed; None takes the samples' own.
    Returns: what was measured. What an earlier run of the same model, samples and options made is used again.
    Raises: ValueError, FileNotFoundError, RuntimeError: with the next step.
    """
    check_quantize(model, samples, task, data, backend, recipe, max_loss, num_samples, seq_length)
    out = Path(out).resolve()
    chosen, why = choose_backend(backend)
    print("\n".join([why, *([] if get_backend(chosen).info.uses_gpu else outlook((chosen,)))]), file=sys.stderr)
    torch.set_num_threads(threads or torch.get_num_threads())
    work = out / ".work"
    if out.exists() and not work.is_dir() and any(out.iterdir()):
        raise FileExistsError(f"{out} exists and is no folder of int8kit quantize; choose another --out")
    work.mkdir(parents=True, exist_ok=True)
    if Path(model).exists():
        model = str(Path(model).resolve())
    with RunFolder(out).locked():
        if task is not None:
            return score(model, samples, out, task=task, data=data, backend=chosen, why=why, recipe=recipe,
                         max_loss=MAX_LOSS if max_loss is None else max_loss, num_samples=num_samples, column=column,
                         seq_length=seq_length, threads=threads, seed=seed)  # fmt: skip
        assert samples is not None  # check_quantize refuses neither
        return compare_with_float(
            model, samples, out, chosen, why, recipe, num_samples, column, seq_length, threads, seed
        )
