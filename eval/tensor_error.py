"""How far an output is from the reference's: absolute and relative errors, cosine, SQNR.

Fed batch by batch, so that the logits of a language model need not be kept; sums are float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# |x - ref| / max(|ref|, floor): an element of the reference below the floor is measured against the floor, since a
# logit of
# 1e-7 would otherwise make any error infinite. Logits are of order 1; a thousandth of that is nothing.
RELATIVE_FLOOR = 1e-3
# Errors kept for median and p99. Up to this many elements they are exact; beyond it every second, fourth, ... element
# is kept.
KEPT_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class TensorError:
    """Errors of one output (or several pooled) against the reference's.

    Relative error is |x - ref| / max(|ref|, 1e-3). SQNR = 10 log10(sum ref² / sum (x - ref)²) in dB, None where the two
    are equal.
    Cosine is that of the two outputs as one long vector, None where one of them is zero.
    """

    num_elements: int
    abs_max: float
    abs_mean: float
    abs_median: float
    abs_p99: float
    rel_max: float
    rel_mean: float
    rel_median: float
    rel_p99: float
    cosine: float | None
    sqnr_db: float | None


class ErrorStream:
    """Sums errors over batches; `result()` gives the TensorError."""

    def __init__(self) -> None:
        self._count = 0
        self._abs_sum = self._rel_sum = self._dot = self._x_square = self._ref_square = self._error_square = 0.0
        self._abs_max = self._rel_max = 0.0
        self._stride = 1
        self._kept_abs: list[np.ndarray] = []
        self._kept_rel: list[np.ndarray] = []
        self._num_kept = 0

    def add(self, name: str, x: np.ndarray, ref: np.ndarray) -> None:
        """Add one batch of output `name`.

        Raises: ValueError: if the shapes differ, or either side holds NaN or infinity (named, with the first place).
        """
        if x.shape != ref.shape:
            raise ValueError(
                f"output {name} has shape {x.shape}, the reference's {ref.shape}; both must see the same feeds"
            )
        check_finite(f"output {name}", x)
        check_finite(f"the reference's output {name}", ref)
        if x.size == 0:
            return
        x, ref = x.astype(np.float64).ravel(), ref.astype(np.float64).ravel()
        error = np.abs(x - ref)
        relative = error / np.maximum(np.abs(ref), RELATIVE_FLOOR)
        self._count += x.size
        self._abs_sum += float(error.sum())
        self._rel_sum += float(relative.sum())
        self._dot += float(x @ ref)
        self._x_square += float(x @ x)
        self._ref_square += float(ref @ ref)
        self._error_square += float(error @ error)
        self._abs_max = max(self._abs_max, float(error.max()))
        self._rel_max = max(self._rel_max, float(relative.max()))
        self._keep(error, relative)

    def _keep(self, error: np.ndarray, relative: np.ndarray) -> None:
        self._kept_abs.append(error[:: self._stride].astype(np.float32))
        self._kept_rel.append(relative[:: self._stride].astype(np.float32))
        self._num_kept += len(self._kept_abs[-1])
        while self._num_kept > KEPT_ELEMENTS:
            self._stride *= 2
            self._kept_abs = [kept[::2] for kept in self._kept_abs]
            self._kept_rel = [kept[::2] for kept in self._kept_rel]
            self._num_kept = sum(len(kept) for kept in self._kept_abs)

    def result(self) -> TensorError:
        """Return the errors so far. Raises: RuntimeError: if nothing was added."""
        if self._count == 0:
            raise RuntimeError("no outputs were compared; call add() with at least one element first")
        absolute, relative = np.concatenate(self._kept_abs), np.concatenate(self._kept_rel)
        norm = float(np.sqrt(self._x_square) * np.sqrt(self._ref_square))
        has_noise = self._error_square > 0 and self._ref_square > 0
        return TensorError(
            num_elements=self._count,
            abs_max=self._abs_max,
            abs_mean=self._abs_sum / self._count,
            abs_median=float(np.median(absolute)),
            abs_p99=float(np.quantile(absolute, 0.99)),
            rel_max=self._rel_max,
            rel_mean=self._rel_sum / self._count,
            rel_median=float(np.median(relative)),
            rel_p99=float(np.quantile(relative, 0.99)),
            cosine=min(1.0, self._dot / norm) if norm > 0 else None,
            sqnr_db=float(10 * np.log10(self._ref_square / self._error_square)) if has_noise else None,
        )


def tensor_error(x: np.ndarray, ref: np.ndarray, name: str = "tensor") -> TensorError:
    """Return the errors of one whole tensor against the reference's of the same shape."""
    stream = ErrorStream()
    stream.add(name, x, ref)
    return stream.result()


def check_finite(what: str, x: np.ndarray) -> None:
    """Raise ValueError naming how many values of `x` are NaN or infinite and where the first stands."""
    is_bad = ~np.isfinite(x)
    if is_bad.any():
        first = tuple(int(i) for i in np.argwhere(is_bad)[0])
        raise ValueError(
            f"{what} holds {int(np.isnan(x).sum())} NaN and {int(np.isinf(x).sum())} infinite of {x.size} values, "
            "the first at "
            f"{first}; look for overflow (fp16) or a site with amax 0 in 'quantization.json'"
        )
