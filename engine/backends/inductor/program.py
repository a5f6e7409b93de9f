"""A program's archive (.pt2) and an engine's file, read without torch: what they hold and for which shapes."""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from engine.cli import UsageError, did_you_mean
from engine.manifest import Products
from engine.shapes import ShapeRange

DESCRIPTION = "int8kit.json"  # in a .pt2 archive, under its folder of extra files
PROGRAM, PLANS, CACHE = "program.pt2", "plans.json", "cache"  # in an engine's file
SCHEMA = 1
BATCH = "batch"
SHORTEST = 16  # no bucket of a length below: its kernels would take as long
MAX_BUCKETS = 64

Bucket = dict[str, int]  # free axis → size


@dataclass(frozen=True)
class Program:
    """What a program says of itself; see `quant.int8_program.export.Description`."""

    inputs: dict[str, tuple[str, tuple[int | str, ...]]]
    outputs: dict[str, tuple[int | str | None, ...]]
    limits: dict[str, int]
    reads_padding: bool
    dtype: str
    products: tuple[dict[str, Any], ...]
    unfused: int
    metadata: dict[str, str]

    def sorted_products(self) -> Products:
        """Return which products run in INT8: the program's ops say it, nothing else decides."""
        names: dict[tuple[str, bool], list[str]] = {}
        for each in self.products:
            names.setdefault((each["kind"], each["is_int8"]), []).append(each["name"])
        return Products(*(tuple(names.get(key, ())) for key in (
            ("linear", True), ("linear", False), ("attention", True), ("attention", False))))  # fmt: skip

    def shape(self, name: str, bucket: Bucket) -> tuple[int, ...]:
        """Return the shape of an input in a bucket."""
        return tuple(bucket[size] if isinstance(size, str) else size for size in self.inputs[name][1])

    @property
    def axes(self) -> list[str]:
        """The names of the free axes, the batch first."""
        found = dict.fromkeys(size for _, sizes in self.inputs.values() for size in sizes if isinstance(size, str))
        return sorted(found, key=lambda name: name != BATCH)


class StoredMember(io.RawIOBase):
    """A member of a zip that was stored as it is, read where it lies; `open_stored` opens one.

    Args: file: the zip, open; closed with this. start, size: where its content lies, in bytes.
    """

    def __init__(self, file: io.BufferedReader, start: int, size: int) -> None:
        super().__init__()
        self._file, self._start, self._size, self._position = file, start, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position within the member and return it."""
        self._position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the member goes; return the number of bytes."""
        length = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._start + self._position)
        found = self._file.readinto(memoryview(buffer)[:length])
        self._position += found
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def open_stored(path: str | Path, name: str) -> IO[bytes]:
    """Open a member of a zip for reading where it lies.

    A program of 1 GB loads in a quarter of the time that reading it out of the zip first takes. Its check sum is not
    compared: the digest of the whole file is.

    Raises: KeyError: no such member. ValueError: it is compressed.
    """
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{path}: {name} is compressed")
    file = open(path, "rb")  # noqa: SIM115 (the member closes it)
    file.seek(member.header_offset + 26)  # the header's last two fields: the lengths of the name and of what follows
    start = member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
    return cast(IO[bytes], StoredMember(file, start, member.file_size))


def read_program(source: str | Path | IO[bytes], name: str | None = None) -> Program:
    """Return what a .pt2 archive says of itself.

    Args: source: its path, or its content open for reading; then `name` is what errors call it.

    Raises: FileNotFoundError: no such file. ValueError: truncated, or not a program of `export.py --target inductor`.
    """
    path = name or str(source)
    if isinstance(source, str | Path) and not Path(source).is_file():
        raise FileNotFoundError(f"no program {path}; export one with 'python export.py --target inductor --out {path}'")
    try:
        with zipfile.ZipFile(source) as archive:
            entry = next((each for each in archive.namelist() if each.endswith(f"extra/{DESCRIPTION}")), None)
            content = None if entry is None else json.loads(archive.read(entry))
    except (zipfile.BadZipFile, json.JSONDecodeError, OSError) as error:
        raise ValueError(f"{path} is not a whole .pt2 archive: {error}. Export it again") from None
    if content is None or content.get("schema") != SCHEMA:
        raise ValueError(f"{path} is no program of int8kit; export it with 'python export.py --target inductor'")
    inputs = {name: (dtype, tuple(sizes)) for name, (dtype, sizes) in content["inputs"].items()}
    outputs = {name: tuple(sizes) for name, sizes in content["outputs"].items()}
    return Program(
        inputs, outputs, content["limits"], content["reads_padding"], content["dtype"], tuple(content["products"]),
        content["unfused"], content["metadata"],
    )  # fmt: skip


def ranges_of(program: Program, shapes: Mapping[str, ShapeRange]) -> dict[str, ShapeRange]:
    """Return a range for every input; those that share free axes with a given one follow it.

    Raises: UsageError: an unknown input, a rank or a size that does not fit, an axis of which nothing is told.
    """
    sizes: dict[str, tuple[int, int, int]] = {}
    for name, given in shapes.items():
        if name not in program.inputs:
            hint = did_you_mean(name, program.inputs, most=3)
            raise UsageError(f"--shapes names {name!r}, which is no input of the program; its inputs are "
                             f"{', '.join(program.inputs)}{hint}")  # fmt: skip
        own = program.inputs[name][1]
        if len(own) != len(given.min):
            raise UsageError(f"--shapes {name}:{given} has {len(given.min)} axes, the program's input has {len(own)}")
        for axis, low, opt, high in zip(own, given.min, given.opt, given.max, strict=True):
            if isinstance(axis, str):
                if sizes.setdefault(axis, (low, opt, high)) != (low, opt, high):
                    raise UsageError(f"--shapes gives the axis {axis} two ranges; inputs share it")
                if high > program.limits.get(axis, high):
                    raise UsageError(f"--shapes {name}:{given}: the program takes a {axis} of at most "
                                     f"{program.limits[axis]}")  # fmt: skip
            elif {low, high} != {axis}:
                raise UsageError(f"--shapes {name}:{given}: an axis of the program's input is fixed at {axis}")
    if missing := [axis for axis in program.axes if axis not in sizes]:
        example = "x".join(str(8 if axis == BATCH else 128) if isinstance(axis, str) else str(axis)
                           for axis in next(iter(program.inputs.values()))[1])  # fmt: skip
        raise UsageError(
            f"a program is tuned for shapes, and --shapes does not tell the {' and '.join(missing)}; for example "
            f"--shapes {next(iter(program.inputs))}:{example}"
        )
    return {
        name: ShapeRange(*(tuple(sizes[a][i] if isinstance(a, str) else a for a in own) for i in range(3)))
        for name, (_, own) in program.inputs.items()
    }


def buckets_of(program: Program, ranges: Mapping[str, ShapeRange]) -> list[Bucket]:
    """Return the sizes for which kernels are tuned and graphs captured: the largest, the usual one, powers of two
    between; a call is padded up to the next. The usual bucket comes first."""
    choices: dict[str, list[int]] = {}
    usual: Bucket = {}
    for axis in program.axes:
        name, place = next((n, sizes.index(axis)) for n, (_, sizes) in program.inputs.items() if axis in sizes)
        low, opt, high = (shape[place] for shape in (ranges[name].min, ranges[name].opt, ranges[name].max))
        is_length = axis != BATCH
        if is_length and program.reads_padding and low != high:
            raise UsageError(f"this model reads its padding, so that no call can be padded along the {axis}; give one "
                             f"{axis} in --shapes instead of {low} to {high}")  # fmt: skip
        first = max(low, min(SHORTEST, high)) if is_length and not program.reads_padding else low
        powers = [2**n for n in range(math.ceil(math.log2(first)), 32) if 2**n < high]
        usual[axis] = max(opt, first)
        choices[axis] = sorted({*powers, usual[axis], high})
    found: list[Bucket] = [{}]
    for axis, sizes in choices.items():
        found = [{**bucket, axis: size} for bucket in found for size in sizes]
    if len(found) > MAX_BUCKETS:
        raise UsageError(f"--shapes asks for {len(found)} buckets of shapes, each tuned and compiled; narrow the "
                         f"ranges to at most {MAX_BUCKETS}")  # fmt: skip
    return sorted(found, key=lambda bucket: bucket != usual)


def bucket_for(buckets: list[Bucket], wanted: Bucket) -> Bucket | None:
    """Return the smallest bucket that holds these sizes, None where none does."""
    fits = [each for each in buckets if all(each[axis] >= size for axis, size in wanted.items())]
    return min(fits, key=lambda each: math.prod(each.values()), default=None)


def bucket_name(bucket: Bucket) -> str:
    """Return a bucket in words: "batch 8, sequence 128"."""
    return ", ".join(f"{axis} {size}" for axis, size in bucket.items()) or "the one shape"
