"""Folds that can be undone to the bit, so that statistics are applied as often as one likes.

A product and its division back miss the weight by a step or two of the float grid: that difference is kept, a byte for
each value, where a copy of the weight would take four.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calib.folding import Fold

WORDS = {4: torch.int32, 2: torch.int16, 8: torch.int64}  # by the bytes of a value: floats seen as whole numbers


@dataclass(frozen=True)
class AppliedFold:
    """A fold that a model bears, with what restores its weights."""

    fold: Fold
    s: Tensor
    missed: tuple[Tensor, ...]
    """For each changed tensor: its words before the fold minus those that dividing back gives."""

    def undo(self) -> None:
        """Restore the weights as they were before the fold, to the bit; those of later folds are undone already."""
        for (part, factor, is_divided), missed in zip(self.fold.parts(self.s), self.missed, strict=True):
            words = _words(_back(part, factor, is_divided))
            part.copy_((words + missed.to(words)).view(part.dtype))

    def redo(self) -> None:
        """Fold again what `undo` restored: the same operations on the same numbers."""
        self.fold.apply(self.s)


def apply_fold(fold: Fold, s: Tensor) -> AppliedFold:
    """Fold a constrained s into the weights, in place, and return what undoes it."""
    before = [part.clone() for part, _, _ in fold.parts(s)]
    fold.apply(s)
    missed = [
        _narrow(_words(value) - _words(_back(part, factor, is_divided)))
        for value, (part, factor, is_divided) in zip(before, fold.parts(s), strict=True)
    ]
    return AppliedFold(fold, s.clone(), tuple(missed))


def _back(part: Tensor, factor: Tensor, is_divided: bool) -> Tensor:
    return part * factor if is_divided else part / factor


def _words(values: Tensor) -> Tensor:
    return values.contiguous().view(WORDS[values.element_size()])


def _narrow(words: Tensor) -> Tensor:
    """Return the differences in a byte each, unless one is too large (a product that left the normal floats)."""
    return words.to(torch.int8) if not words.numel() or bool((words.abs() < 128).all()) else words
