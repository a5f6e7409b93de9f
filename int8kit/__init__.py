"""int8kit: one command and one function. `int8kit quantize my-bert --samples reviews.csv --out my-bert-int8`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from int8kit.pipeline import Quantized


def quantize(model: str, samples: str | None = None, *, out: str | Path, **options: Any) -> Quantized:
    """Quantize a Hugging Face model from samples and compare it with the float one; see `int8kit.pipeline.quantize`."""
    from int8kit.pipeline import quantize as run  # torch and transformers, when they are needed

    return run(model, samples, out, **options)


__all__ = ["quantize"]
