"""What every loaded engine is: arrays in by name, arrays out by name, checked, padded to a static batch and timed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType

import numpy as np

from engine.cli import did_you_mean
from engine.shapes import ShapeRange


class Runner(ABC):
    """A loaded engine: a context manager that maps arrays to arrays by name.

    `has_device_clock`: whether `time` is told by the device itself, inputs and outputs lying there.
    """

    has_device_clock = False

    def __init__(
        self,
        shapes: Mapping[str, ShapeRange],
        inputs: Mapping[str, tuple[np.dtype, tuple[int | None, ...]]],
        output_names: list[str],
    ) -> None:
        self.input_names, self.output_names = list(inputs), output_names
        self.inputs, self.shapes = inputs, shapes

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def batch_size(self) -> int | None:
        """The static batch size, else the usual one it was built for, else None."""
        for name in self.input_names:
            sizes = self.inputs[name][1]
            if sizes and sizes[0] is not None:
                return sizes[0]
            if name in self.shapes:
                return self.shapes[name].opt[0]
        return None

    @property
    def static_batch(self) -> int | None:
        """The batch size every call is padded to, or None if the batch is dynamic."""
        return next((sizes[0] for _, sizes in self.inputs.values() if sizes and sizes[0] is not None), None)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name; a batch smaller than a static one is padded, and the result cut to the samples
        fed.

        Raises: ValueError: if an input is missing, unknown, of another kind, or of a shape the engine was not built
        for.
        """
        arrays, num_samples = self._check(feeds)
        static = self.static_batch
        if static is None or num_samples == static:
            return self._infer(arrays)
        padded = {
            name: np.concatenate([x, np.repeat(x[-1:], static - num_samples, axis=0)]) for name, x in arrays.items()
        }
        return {
            name: y[:num_samples] if y.ndim and y.shape[0] == static else y for name, y in self._infer(padded).items()
        }

    def time(self, feeds: Mapping[str, np.ndarray], iterations: int = 50, warmup: int = 10) -> list[float]:
        """Return the latency of each of `iterations` calls in milliseconds, after `warmup` calls that are dropped."""
        arrays, _ = self._check(feeds)
        for _ in range(warmup):
            self._infer(arrays)
        latency_ms = []
        for _ in range(iterations):
            start = time.perf_counter()
            self._infer(arrays)
            latency_ms.append((time.perf_counter() - start) * 1e3)
        return latency_ms

    @abstractmethod
    def _infer(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs for checked, contiguous arrays."""

    def close(self) -> None:  # noqa: B027  (a backend without memory of its own has nothing to free)
        """Free what the engine holds."""

    def _check(self, feeds: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
        problems = [f"input {name} is missing" for name in self.input_names if name not in feeds]
        for name in feeds:
            if name not in self.inputs:
                problems.append(f"{name} is no input" + did_you_mean(name, self.input_names, " ({})"))
        if problems:
            raise ValueError(f"{'; '.join(problems)}. The engine's inputs are {', '.join(self.input_names)}")
        arrays, lengths = {}, set()
        for name, (dtype, sizes) in self.inputs.items():
            x = np.asarray(feeds[name])
            if np.dtype(dtype).kind != x.dtype.kind and not (dtype.kind in "iu" and x.dtype.kind in "iub"):
                raise ValueError(f"input {name} has type {x.dtype}, the engine takes {dtype}; convert it first")
            self._check_shape(name, x.shape, sizes)
            arrays[name] = _converted(name, x, dtype)
            lengths.add(x.shape[0] if x.ndim else 1)
        if len(lengths) > 1:
            raise ValueError(
                f"the inputs hold different numbers of samples: {sorted(lengths)}; feed the same number in each"
            )
        return arrays, lengths.pop() if lengths else 0

    def _check_shape(self, name: str, shape: tuple[int, ...], sizes: tuple[int | None, ...]) -> None:
        given = self.shapes.get(name)
        low: list[float] = list(given.min) if given else [size or 1 for size in sizes]
        high: list[float] = list(given.max) if given else [size or float("inf") for size in sizes]
        if sizes and sizes[0] is not None:
            low[0] = 1  # fewer samples than a static batch are padded
        is_admitted = len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if not is_admitted:
            wanted = "x".join(str(size) if size else "?" for size in sizes)
            ranged = f" (min:opt:max {self.shapes[name]})" if name in self.shapes else ""
            raise ValueError(
                f"input {name} has shape {'x'.join(map(str, shape))}, the engine takes {wanted}{ranged}; "
                f"feed that, or build an engine with other --shapes"
            )


def _converted(name: str, x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return a contiguous array of the engine's type.

    Raises: ValueError: a number that this type cannot hold (an id beyond int32, a float beyond fp16).
    """
    with np.errstate(over="ignore"):  # looked for below
        made = np.ascontiguousarray(x, dtype=dtype)
    if not np.can_cast(x.dtype, dtype):
        is_lost = (made != x) if np.dtype(dtype).kind in "iu" else np.isinf(made) & ~np.isinf(x)
        if is_lost.any():
            lost = x[is_lost].flat[0]
            raise ValueError(f"input {name} holds {lost}, which {np.dtype(dtype)} does not; convert it first")
    return made
