"""Input shapes of an engine: `name:min:opt:max` on the command line, static where min equals max."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

from engine.cli import UsageError, did_you_mean


@dataclass(frozen=True)
class ShapeRange:
    """The smallest, usual and largest shape of one input; equal sizes make an axis static."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def sizes(self) -> tuple[int | None, ...]:
        """Return each axis' static size, or None where it is dynamic."""
        return tuple(low if low == high else None for low, high in zip(self.min, self.max, strict=True))

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of this shape may be fed."""
        return len(shape) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )

    def __str__(self) -> str:
        return ":".join("x".join(map(str, shape)) for shape in (self.min, self.opt, self.max))


def parse_shapes(texts: Iterable[str]) -> dict[str, ShapeRange]:
    """Return ranges by input name from texts such as "input_ids:1x1:8x64:32x128" or "input_ids:8x64" (static).

    Raises: UsageError: if a text has another form, sizes below 1, or min <= opt <= max does not hold.
    """
    ranges: dict[str, ShapeRange] = {}
    for text in texts:
        name, *parts = text.rsplit(":", 3) if text.count(":") >= 3 else text.split(":")
        try:
            shapes = [tuple(int(size) for size in part.split("x")) for part in parts]
        except ValueError:
            shapes = []
        if len(shapes) == 1:
            shapes *= 3
        if (
            not name
            or len(shapes) != 3
            or len({len(shape) for shape in shapes}) != 1
            or min(min(s) for s in shapes) < 1
        ):
            raise UsageError(
                f"--shapes {text!r} is not name:min:opt:max with sizes like 8x64, for example input_ids:1x1:8x64:32x128"
            )
        low, opt, high = shapes
        if any(not a <= b <= c for a, b, c in zip(low, opt, high, strict=True)):
            raise UsageError(f"--shapes {text!r}: min <= opt <= max must hold on every axis")
        if name in ranges:
            raise UsageError(f"--shapes names {name!r} twice; give one range for each input")
        ranges[name] = ShapeRange(low, opt, high)
    return ranges


def check_shapes(model: onnx.ModelProto, ranges: Mapping[str, ShapeRange]) -> None:
    """Raise UsageError if a range names no input of `model`, has another rank, or differs from a size fixed in the
    file."""
    inputs = {each.name: each for each in graph_inputs(model)}
    for name, shape_range in ranges.items():
        if name not in inputs:
            hint = did_you_mean(name, inputs, most=3)
            raise UsageError(
                f"--shapes names {name!r}, which is no input of the model; its inputs are {', '.join(inputs)}{hint}"
            )
        dims = inputs[name].type.tensor_type.shape.dim
        if len(dims) != len(shape_range.min):
            raise UsageError(
                f"--shapes {name}:{shape_range} has {len(shape_range.min)} axes, the model's input has {len(dims)}"
            )
        for axis, dim in enumerate(dims):
            if dim.HasField("dim_value") and {shape_range.min[axis], shape_range.max[axis]} != {dim.dim_value}:
                raise UsageError(
                    f"--shapes {name}:{shape_range}: axis {axis} of the model's input is fixed at {dim.dim_value}"
                )


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that must be fed (old files list initializers among them)."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    return [each for each in model.graph.input if each.name not in initializers]


def spread(model: onnx.ModelProto, ranges: Mapping[str, ShapeRange]) -> dict[str, ShapeRange]:
    """Return a range for every input: an input that shares its axis names with a given one (attention_mask) takes
    its range."""
    by_axes = {_axes(each): ranges[each.name] for each in graph_inputs(model) if each.name in ranges}
    full = dict(ranges)
    for each in graph_inputs(model):
        if each.name not in full and _axes(each) in by_axes:
            full[each.name] = by_axes[_axes(each)]
    return full


def _axes(value: onnx.ValueInfoProto) -> tuple[str | int, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)


def set_static_sizes(model: onnx.ModelProto, ranges: Mapping[str, ShapeRange]) -> None:
    """Write every size with min = max into the inputs of `model` (changed in place)."""
    for each in graph_inputs(model):
        if each.name in ranges:
            for dim, size in zip(each.type.tensor_type.shape.dim, ranges[each.name].sizes(), strict=True):
                if size is not None:
                    dim.dim_value = size
