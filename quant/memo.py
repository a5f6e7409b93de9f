"""What a shared quantizer keeps between the readers of one tensor: its output, and all that this was made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Source:
    """Tensors and settings that an output follows from, in the state in which they are now.

    Args:
        tensors: compared by identity and version, so that a write into one counts. settings: compared by value.
    """

    def __init__(self, tensors: tuple[Tensor | None, ...], settings: tuple[Any, ...]) -> None:
        versions = tuple(None if each is None or each.is_inference() else each._version for each in tensors)
        self.tensors = tensors  # held, so that no other tensor takes their place in memory
        self.settings = (*versions, *settings, torch.is_grad_enabled())

    def is_like(self, other: Source) -> bool:
        """Return whether the other gives the same output."""
        same = all(a is b for a, b in zip(self.tensors, other.tensors, strict=True))
        return same and self.settings == other.settings


class Memo:
    """An output for `left` readers more."""

    def __init__(self, source: Source, output: Tensor, left: int) -> None:
        self.source, self.output, self.left = source, output, left
        self.version = output._version

    def is_of(self, source: Source) -> bool:
        """Return whether this is the output of `source`: made of the same, and not written into since."""
        return self.source.is_like(source) and self.output._version == self.version
