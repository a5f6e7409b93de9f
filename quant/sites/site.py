"""A site: one quantizer of one model, with its role, what it reads and why it is on or off, all as fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import nn

from quant.formats import INT8
from quant.recipe import Recipe
from quant.sites.roles import Role
from quant.tensor_quantizer import TensorQuantizer, named_quantizers


class Why(StrEnum):
    """Why a site is on or off."""

    RULE = "rule"
    """The recipe's last rule that speaks of it says so."""
    COVERED = "covered"
    """Other quantizers (`Site.reads`) round what it would."""
    UNREACHED = "unreached"
    UNREAD = "unread"
    LEAVING = "leaving"
    SPOILED = "spoiled"
    NO_INTERFACE = "no_interface"
    UNSEEN = "unseen"
    OUTLIERS = "outliers"
    OLDER = "older"
    """An older version's file tells it in words alone (`Site.told`)."""


SENTENCES = {
    Why.UNREACHED: "the traced forward did not reach this layer",
    Why.UNREAD: "no quantized product reads it",
    Why.LEAVING: "the decoder reads it and rounds it for itself",
    Why.SPOILED: "a layer that reads it also reads a tensor of another making and rounds both itself",
    Why.NO_INTERFACE: "transformers' attention interface does not reach this module",
    Why.OUTLIERS: "a few channels are so large that INT8 would leave the rest of the residual stream fewer than three "
    "steps; a rule with its exact name puts it on",
    Why.UNSEEN: "no calibration sample reached this layer",
}


class How(StrEnum):
    """What SmoothQuant did at a site."""

    EXPLICIT = "explicit"
    """The input is multiplied by 1/s before it is rounded."""
    FOLDED = "folded"
    """The producer's parameters carry 1/s."""
    BRANCHED = "branched"
    """Nothing: another branch reads the same integers, and no fold is exact."""
    USELESS = "useless"
    """Nothing: no alpha lowers the error."""
    OLDER = "older"
    """An older version's file tells it in words alone (`SiteSmoothing.told`)."""


@dataclass(frozen=True)
class SiteSmoothing:
    """What SmoothQuant did at one site."""

    how: How
    alpha: float | None = None
    """The share of the range that was moved; None where nothing was, or another tool chose it (an import)."""
    into: str | None = None
    """The layer or norm that carries a fold."""
    told: str = ""

    def __str__(self) -> str:
        strength = "imported" if self.alpha is None else f"alpha {self.alpha:g}"
        return {
            How.EXPLICIT: f"explicit, {strength}",
            How.FOLDED: f"folded into {self.into}, {strength}",
            How.BRANCHED: "none: another branch reads the same INT8 tensor",
            How.USELESS: "none: no alpha lowers the error",
            How.OLDER: self.told,
        }[self.how]


@dataclass(frozen=True)
class Site:
    """One quantizer of one model."""

    module: str
    """The module that holds it; of a shared one the first reader, e.g. `bert.encoder.layer.0.attention.self.query`."""
    role: Role
    kind: str
    """linear, conv, norm_output, bmm, softmax or embedding."""
    enabled: bool
    why: Why = Why.RULE
    rule: str = ""
    """The recipe's last rule that switches it on or off, as text."""
    reads: tuple[str, ...] = ()
    """The sites whose rounded output it reads, so that it need not round itself."""
    consumers: tuple[str, ...] = ()
    """The layers that read the quantized tensor."""
    axis: int | None = None
    """The channel axis of its scales; None is one scale for the whole tensor."""
    producer: str | None = None
    """The norm or layer whose output channels may be this tensor's channels: what SmoothQuant tries to fold into."""
    producer_channels: tuple[int, int] | None = None
    """Which of its output channels (start, end) they are; None is all."""
    smoothing: SiteSmoothing | None = None
    """What SmoothQuant did here; None where it was not asked."""
    format: str = INT8.name
    """The number format it rounds to, by the recipe's rules; a checkpoint that does not say means int8."""
    method: str | None = None
    """The calibrator that the recipe's rules give it; None is the recipe's own (quant.sites.settings.calibrator_of)."""
    percentile: float | None = None
    """The percentile that rules give it; None is the recipe's own."""
    alpha: float | str | bool | None = None
    """SmoothQuant's alpha by the rules, `off` for none; None is the recipe's own. `smoothing` says what was done."""
    told: str = ""
    """The reason as an older version's file words it."""

    @property
    def name(self) -> str:
        """Where it lives in the model, as recipes, statistics and checkpoints call it."""
        return f"{self.module}.{self.role}"

    @property
    def is_weight(self) -> bool:
        """Whether it quantizes a parameter, so that its amax needs no samples."""
        return self.role is Role.WEIGHT

    @property
    def reads_samples(self) -> bool:
        """Whether its amax comes from samples: on, of an activation, and no probability, whose range is known."""
        return self.enabled and not self.is_weight and self.role is not Role.SOFTMAX

    @property
    def reason(self) -> str:
        """Why it is on or off, for readers."""
        if self.why is Why.RULE:
            is_shared = self.role is Role.INPUT and len(self.consumers) > 1
            shared = f"; shared by {len(self.consumers)} layers that read the same tensor" if is_shared else ""
            return f"rule {self.rule}{shared}"
        if self.why is Why.COVERED:
            return f"reads {' and '.join(self.reads)}"
        return self.told if self.why is Why.OLDER else SENTENCES[self.why]


@dataclass(frozen=True)
class Quantization:
    """What `insert_quantizers` leaves on a model as `model.quantization`."""

    recipe: Recipe
    sites: tuple[Site, ...]
    folds: tuple[Any, ...] = dataclasses.field(default=(), compare=False, repr=False)
    """SmoothQuant's folds that the weights bear, in order, while they can be undone (calib.folding.AppliedFold)."""


def quantization_of(model: nn.Module) -> Quantization:
    """Return what was inserted. Raises: RuntimeError: the model is a float model."""
    quantization = getattr(model, "quantization", None)
    if quantization is None:
        raise RuntimeError(
            f"{type(model).__name__} has no quantizers; call insert_quantizers(model, recipe) or load a checkpoint"
        )
    return quantization


def site_quantizers(model: nn.Module) -> Iterator[tuple[Site, TensorQuantizer]]:
    """Yield every site with its quantizer, in the order of the sites; of a float model none.

    One part of an encoder-decoder has the sites of the whole, and is asked for its own.
    """
    quantizers = dict(named_quantizers(model))
    sites = quantization_of(model).sites if hasattr(model, "quantization") else ()
    yield from ((site, quantizers[site.name]) for site in sites if site.name in quantizers)
