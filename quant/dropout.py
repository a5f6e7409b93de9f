"""Noise that a model adds to itself in training: switched off, so that QAT computes what is exported, and put back.

Dropout, stochastic depth, layer drop, router jitter and SpecAugment. A rate may stand in a module, as a number of a
module, or in a configuration that a forward reads; the last is also what `save_pretrained` writes, so a checkpoint is
saved with the rates put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedConfig

RATES = ("drop", "jitter")  # in the names of numbers: drop_prob, layerdrop, attention_dropout, router_jitter_noise
SWITCHES = ("apply_spec_augment",)
STOCHASTIC_DEPTH = ("DropPath", "StochasticDepth")  # in the names of classes that call their rate p
Change = tuple[Any, str, Any]  # (module or configuration, attribute, value before)


def switch_dropout_off(model: nn.Module) -> None:
    """Set every rate of random noise in the model to 0, in modules and in their configurations (in place)."""
    changes: list[Change] = []
    for owner in _owners(model):
        for name, value in _rates(owner):
            changes.append((owner, name, value))
            setattr(owner, name, type(value)(0))
    model.__dict__["dropout_changes"] = [*model.__dict__.get("dropout_changes", ()), *changes]


def switch_dropout_back(model: nn.Module) -> None:
    """Put the rates back that `switch_dropout_off` found."""
    for owner, name, value in model.__dict__.pop("dropout_changes", ()):
        setattr(owner, name, value)


@contextmanager
def own_configuration(model: nn.Module) -> Iterator[None]:
    """Let the configurations inside the block hold the rates that they came with: saved, they are the model's own."""
    changed = [each for each in model.__dict__.get("dropout_changes", ()) if isinstance(each[0], PreTrainedConfig)]
    off = [getattr(owner, name) for owner, name, _ in changed]
    for owner, name, value in changed:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(changed, off, strict=True):
            setattr(owner, name, value)


def _owners(model: nn.Module) -> Iterator[Any]:
    """Yield the modules and every configuration that one of them holds, with its parts, each once."""
    seen: set[int] = set()
    configs = [config for module in model.modules() for config in vars(module).values()]
    while configs:
        config = configs.pop()
        if isinstance(config, PreTrainedConfig) and id(config) not in seen:
            seen.add(id(config))
            configs += vars(config).values()
            yield config
    yield from model.modules()


def _rates(owner: Any) -> list[tuple[str, Any]]:
    """Return the rates and switches of a module or configuration that add noise, and are on."""
    is_dropout = isinstance(owner, _DropoutNd) or any(name in type(owner).__name__ for name in STOCHASTIC_DEPTH)

    def is_noisy(name: str, value: Any) -> bool:
        if isinstance(value, float):
            return (is_dropout and name == "p") or any(part in name for part in RATES)
        return value is True and name in SWITCHES

    return [(name, value) for name, value in vars(owner).items() if is_noisy(name, value)]


class FrozenStatistics:
    """Mixed into a batch norm while ranges train: it computes by its running statistics, as the exported one does."""

    def forward(self: Any, input: Tensor) -> Tensor:
        """Return what the norm gives in evaluation mode; its weight and bias still learn."""
        if self.running_mean is None:  # it has none: the batch's own are also what it is evaluated with
            return super().forward(input)  # type: ignore[misc]
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


@cache
def _frozen_class(norm_class: Any) -> type:
    return type(f"Frozen{norm_class.__name__}", (FrozenStatistics, norm_class), {"float_class": norm_class})


def freeze_statistics(model: nn.Module) -> None:
    """Let every batch norm of the model compute by its running statistics also in training (in place)."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, FrozenStatistics):
            float_class: Any = type(module)
            module.__class__ = _frozen_class(float_class)


def release_statistics(model: nn.Module) -> None:
    """Make the batch norms that `freeze_statistics` froze plain ones again."""
    for module in model.modules():
        if isinstance(module, FrozenStatistics):
            module.__class__ = type(module).float_class  # type: ignore[attr-defined]


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Let the model compute as in evaluation inside the block: dropout would make two forwards differ."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
