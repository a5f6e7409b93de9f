"""Feeds for a run whose results nobody reads: of the right types and sizes, and valid for every model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from engine.shapes import ShapeRange

# Sizes of axes that neither the engine nor its manifest fixes: batch, then length.
DEFAULT_SIZES = (8, 64)


def make_feeds(
    inputs: Mapping[str, tuple[np.dtype, tuple[int | None, ...]]], shapes: Mapping[str, ShapeRange]
) -> dict[str, np.ndarray]:
    """Return one batch: floats are normal numbers, masks and ids are 1, other integers 0 (token types, positions).

    Args:
        inputs: type and sizes (None where free) by name.
        shapes: the ranges the engine was built for; their usual size is taken.
    """
    generator = np.random.default_rng(0)
    feeds = {}
    for name, (dtype, sizes) in inputs.items():
        usual = shapes[name].opt if name in shapes else (*DEFAULT_SIZES, *[1] * len(sizes))
        shape = tuple(size if size is not None else usual[axis] for axis, size in enumerate(sizes))
        if np.dtype(dtype).kind == "f":
            feeds[name] = generator.normal(size=shape).astype(dtype)
        else:
            feeds[name] = np.full(shape, int("mask" in name or name == "input_ids"), dtype)
    return feeds


def fit_feeds(
    feeds: Mapping[str, np.ndarray], inputs: Mapping[str, tuple[np.dtype, tuple[int | None, ...]]], batch_size: int
) -> dict[str, np.ndarray]:
    """Return the first batch of given feeds in the engine's types, repeated where there are fewer samples.

    Raises: ValueError: if an input is missing, or an axis that the engine fixes has another size.
    """
    fitted = {}
    for name, (dtype, sizes) in inputs.items():
        if name not in feeds:
            raise ValueError(f"the feeds lack input {name}; they hold {', '.join(feeds)}")
        x = np.asarray(feeds[name])
        rows = (sizes[0] if sizes and sizes[0] is not None else batch_size) if x.ndim else 1
        x = np.resize(x, (rows, *x.shape[1:])).astype(dtype)
        if len(x.shape) != len(sizes) or any(b is not None and a != b for a, b in zip(x.shape, sizes, strict=True)):
            wanted = "x".join(str(size) if size else "?" for size in sizes)
            raise ValueError(
                f"input {name} of the feeds has shape {'x'.join(map(str, x.shape))}, the engine's {wanted}"
            )
        fitted[name] = x
    return fitted


def batch_of(shapes: Mapping[str, ShapeRange]) -> int:
    """Return the usual batch size an engine was built for."""
    return next((each.opt[0] for each in shapes.values() if each.opt), DEFAULT_SIZES[0])


def in_words(feeds: Mapping[str, np.ndarray]) -> str:
    """Return the shapes of feeds, such as "input_ids 8x64, attention_mask 8x64"."""
    return ", ".join(f"{name} {'x'.join(map(str, x.shape))}" for name, x in feeds.items())
