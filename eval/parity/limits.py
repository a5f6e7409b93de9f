"""What two programs that compute the same quantized model may differ by: outputs compared, limits, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.tensor_error import check_finite
from eval.timing.latency import Feeds
from quant.models.example_inputs import SAMPLE_OUTPUTS

# Tiny models agree to 1e-7; a hundred times that still is rounding of sums, and far below one INT8 step.
EXACT_TOLERANCE = 1e-5
# A rounding flip in one layer moves later ones: noise of 1e-6 on a real model's embeddings alone moves its logits by
# a tenth to a quarter of the quantization error, and the engine's by up to 0.4 of it. A wrong scale or a lost mask is
# far above half.
MAX_ERROR_SHARE = 0.5
# Another program may err as much as the fake-quantized model itself does with other roundings (of float32 sums, or of
# a half type), and as much again, since it rounds otherwise than the one that is compared with.
MAX_ROUNDING_SHARE = 2.0
MAX_FLIP_SHARE = 0.01
# Float engines: fused kernels and other summation orders over a dozen layers.
FLOAT_TOLERANCE = 1e-3
# The same in a half type: 16 and 8 times its rounding (2^-11, 2^-8), over a dozen layers.
HALF_TOLERANCE = {None: FLOAT_TOLERANCE, "fp16": 8e-3, "bf16": 6e-2}
# Outputs whose largest entry is a prediction.
PREDICTIONS = ("logits", "start_logits", "end_logits", "logits_per_image")


@dataclass(frozen=True)
class Comparison:
    """How far the outputs of one program are from those of another, over all batches; padding left out."""

    error_max: float
    error_mean: float
    num_flips: int
    num_rows: int

    def __str__(self) -> str:
        return (
            f"max {self.error_max:.2g}, mean {self.error_mean:.2g}, {self.num_flips} of {self.num_rows} predictions "
            "differ"
        )


@dataclass(frozen=True)
class Limits:
    """What is allowed between the quantized model and a program that computes it.

    A prediction counts as flipped where the model's two best scores lie further apart than `margin`, twice the largest
    change that other roundings alone make: a near tie says nothing. `max_error` is that of a float model, None else.
    """

    max_mean: float
    margin: float
    max_flips: int
    max_error: float | None = None

    def admits(self, found: Comparison) -> bool:
        """Return whether the difference is one of rounding."""
        if found.error_max <= EXACT_TOLERANCE:
            return True
        if self.max_error is not None:
            return found.error_max <= self.max_error
        return found.error_mean <= self.max_mean and found.num_flips <= self.max_flips

    def __str__(self) -> str:
        if self.max_error is not None:
            return f"allowed is a maximum of {self.max_error:.2g}"
        return (
            f"allowed are a mean of {self.max_mean:.2g} and {self.max_flips} flips of predictions whose margin is "
            f"above {self.margin:.2g}, all that other roundings explain"
        )


def float_limits(outputs: list[Feeds], dtype: str | None) -> Limits:
    """Return the limits of a file without quantizers, computed in `dtype` (None: fp32)."""
    scale = max(1.0, max(float(np.abs(array).max()) for batch in outputs for array in batch.values()))
    return Limits(0.0, 0.0, 0, HALF_TOLERANCE[dtype] * scale)


def quantized_limits(batches: list[Feeds], fake: list[Feeds], plain: list[Feeds], rounded: list[list[Feeds]]) -> Limits:
    """Return the limits of a quantized file.

    Args:
        fake, plain: outputs of the fake-quantized and of the float model.
        rounded: outputs of the fake-quantized model with other roundings: float32 noise, a half type.
    """
    max_mean = MAX_ERROR_SHARE * float(all_differences(fake, plain, batches).mean())
    margin = 0.0
    for each in rounded:
        max_mean = max(max_mean, MAX_ROUNDING_SHARE * float(all_differences(each, fake, batches).mean()))
        margin = max(margin, 2 * _largest_score_change(each, fake))
    num_rows = sum(len(next(iter(batch.values()))) for batch in fake)
    return Limits(max_mean, margin, max(1, int(MAX_FLIP_SHARE * num_rows)))


def compare(x: list[Feeds], ref: list[Feeds], batches: list[Feeds], margin: float) -> Comparison:
    """Return how far outputs are from reference outputs.

    Raises: ValueError: if an output is missing, of another shape or not finite.
    """
    error = all_differences(x, ref, batches)
    return Comparison(
        float(error.max()),
        float(error.mean()),
        sum(int(flips(each, other, margin).sum()) for each, other in zip(x, ref, strict=True)),
        sum(len(next(iter(batch.values()))) for batch in ref),
    )


def all_differences(x: list[Feeds], ref: list[Feeds], batches: list[Feeds]) -> np.ndarray:
    """Return |x - ref| of all batches as one vector; see `differences`."""
    return np.concatenate([differences(*each) for each in zip(x, ref, batches, strict=True)])


def differences(x: Feeds, ref: Feeds, feeds: Feeds) -> np.ndarray:
    """Return |x - ref| of all outputs as one vector, padding positions of per-token outputs left out.

    Raises: ValueError: if an output is missing, of another shape or not finite.
    """
    missing = [name for name in ref if name not in x]
    if missing:
        raise ValueError(
            f"the engine gives {', '.join(x)}, the model also {', '.join(missing)}; export the model again"
        )
    found = []
    for name, expected in ref.items():
        check_finite(f"output {name} of the engine", x[name])
        if x[name].shape != expected.shape:
            raise ValueError(f"output {name} of the engine has shape {x[name].shape}, of the model {expected.shape}")
        difference = np.abs(x[name].astype(np.float64) - expected)
        mask = feeds.get("attention_mask")
        is_per_token = name not in SAMPLE_OUTPUTS and (name != "logits" or difference.ndim == 3)
        found.append((difference[mask.astype(bool)] if is_per_token and mask is not None else difference).ravel())
    return np.concatenate(found)


def num_exact_rows(x: Feeds, ref: Feeds, feeds: Feeds) -> int:
    """Return how many samples of a batch agree to EXACT_TOLERANCE in every output, padding left out."""
    num_rows = len(next(iter(ref.values())))
    if "text_embeds" in ref:  # each logit is of a pair: those of other samples say nothing of this one
        x, ref = ({name: a for name, a in each.items() if name != "logits_per_image"} for each in (x, ref))
    rows = ([{name: a[i : i + 1] for name, a in each.items()} for each in (x, ref, feeds)] for i in range(num_rows))
    return sum(float(differences(*row).max()) <= EXACT_TOLERANCE for row in rows)


def flips(x: Feeds, ref: Feeds, margin: float) -> np.ndarray:
    """Return for each row whether a prediction differs though the reference's two best scores lie `margin` apart.

    Language models are judged by their last token, encoders and maps of pixels not at all.
    """
    found = [_flips_of(_scores(name, x[name]), _scores(name, ref[name]), margin) for name in _predictions(ref)]
    num_rows = len(next(iter(ref.values())))
    return np.any(found, axis=0) if found else np.zeros(num_rows, bool)


def _largest_score_change(x: list[Feeds], ref: list[Feeds]) -> float:
    changes = [
        float(np.abs(_scores(name, each[name]).astype(np.float64) - _scores(name, other[name])).max())
        for each, other in zip(x, ref, strict=True)
        for name in _predictions(other)
    ]
    return max(changes, default=0.0)


def _predictions(outputs: Feeds) -> list[str]:
    return [name for name, x in outputs.items() if name in PREDICTIONS and x.ndim <= 3 and x.shape[-1] > 1]


def _flips_of(x: np.ndarray, ref: np.ndarray, margin: float) -> np.ndarray:
    best = np.sort(ref, axis=-1)[..., -2:]
    return (x.argmax(-1) != ref.argmax(-1)) & (best[..., 1] - best[..., 0] > margin)


def _scores(name: str, output: np.ndarray) -> np.ndarray:
    return output[:, -1] if name == "logits" and output.ndim == 3 else output
