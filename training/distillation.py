"""What a quantized student learns from its float teacher: logits, hidden states, attention probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from quant.models.example_inputs import OUTPUT_NAMES
from quant.recipe import QatOptions

TOKEN_CLASSES = ("start_logits", "end_logits")  # outputs whose last axis is the tokens of the sample


class Teacher:
    """A frozen float model that answers each batch once."""

    def __init__(self, model: nn.Module, options: QatOptions) -> None:
        self.model = model.eval().requires_grad_(False)
        self.options = options

    def __call__(self, inputs: dict[str, Tensor]) -> Any:
        """Return the float model's outputs for a batch (labels are not passed on)."""
        device = next(iter(inputs.values())).device
        if next(self.model.parameters()).device != device:
            self.model.to(device)
        with torch.no_grad():
            return self.model(**inputs, **extra_outputs(self.options))


def extra_outputs(options: QatOptions) -> dict[str, bool]:
    """Return the arguments that make a model return what is compared besides its logits."""
    wanted = {"output_hidden_states": options.distill_hidden > 0, "output_attentions": options.distill_attention > 0}
    return {name: True for name, value in wanted.items() if value}


def distillation_loss(student: Any, teacher: Any, mask: Tensor | None, options: QatOptions) -> Tensor:
    """Return the weighted sum of what the options compare.

    Args:
        student: the trained model's outputs.
        teacher: the float model's.
        mask: (B, S), 1 where a token is real; outputs per token count only there.

    Logits are compared by squared difference, or by KL divergence x temperature^2 (Hinton et al. 2015,
    arXiv:1503.02531), hidden states by mean squared error over the teacher's mean square, attention by KL divergence
    over the keys.
    Raises: ValueError: nothing to compare.
    """
    losses = []
    if options.distill_logits:
        names = [name for name in OUTPUT_NAMES if teacher.get(name) is not None]
        losses += [options.distill_logits * _logit_loss(name, student, teacher, mask, options) for name in names]
    if options.distill_hidden:
        pairs = _layers(student, teacher, "hidden_states", "distill_hidden")
        losses.append(options.distill_hidden * torch.stack([_relative_error(s, t, mask) for s, t in pairs]).mean())
    if options.distill_attention:
        pairs = _layers(student, teacher, "attentions", "distill_attention")
        losses.append(options.distill_attention * torch.stack([_attention_loss(s, t, mask) for s, t in pairs]).mean())
    if not losses:
        raise ValueError(f"the model returns none of {', '.join(OUTPUT_NAMES)} to distil from")
    return torch.stack(losses).sum()


def _layers(student: Any, teacher: Any, name: str, option: str) -> Iterator[tuple[Tensor, Tensor]]:
    layers = _found(teacher, name)
    if not layers:
        raise ValueError(f"the model returns no {name} to distil from; set {option}: 0 under qat in the recipe")
    return zip(_found(student, name), layers, strict=True)


def _found(output: Any, name: str) -> list[Tensor]:
    """Return the tensors under `name` in a model's output, and in its parts where it has several towers (CLIP)."""
    own = list(output.get(name) or ())
    return own + [x for part in output.values() if isinstance(part, ModelOutput) for x in _found(part, name)]


def _logit_loss(name: str, student: Any, teacher: Any, mask: Tensor | None, options: QatOptions) -> Tensor:
    x, y = student[name].float(), teacher[name].float()
    # (B, S) of question answering: the classes are the tokens, and padding is none of them.
    no_class = ~mask.bool() if mask is not None and name in TOKEN_CLASSES else None
    if x.shape[-1] == 1 or options.logit_loss == "mse":
        squares = (x - y).square()
        return _mean_of_real(squares.mean(-1) if no_class is None else _mean_of_row(squares, ~no_class), mask)
    t = options.temperature
    x, y = x / t, y / t
    if no_class is not None:
        x, y = (z.masked_fill(no_class, torch.finfo(z.dtype).min) for z in (x, y))
    divergence = F.kl_div(F.log_softmax(x, -1), F.log_softmax(y, -1), log_target=True, reduction="none")
    return _mean_of_real(divergence.sum(-1) * t * t, mask)  # of (B,) or (B, S)


def _mean_of_row(values: Tensor, is_counted: Tensor) -> Tensor:
    return (values * is_counted).sum(-1) / is_counted.sum(-1)


def _mean_of_real(per_row: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None and per_row.shape == mask.shape:
        return per_row[mask.bool()].mean()
    return per_row.mean()


def _relative_error(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    student, teacher = student.float(), teacher.float()
    if mask is not None and mask.shape == student.shape[:2]:
        student, teacher = student[mask.bool()], teacher[mask.bool()]
    return F.mse_loss(student, teacher) / teacher.square().mean().clamp_min(1e-6)


def _attention_loss(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean divergence of the rows (B, H, S, T) of real queries."""
    student, teacher = student.float().clamp_min(1e-8), teacher.float().clamp_min(1e-8)
    per_query = (teacher * (teacher.log() - student.log())).sum(-1).mean(1)  # (B, S)
    return _mean_of_real(per_query, mask)
