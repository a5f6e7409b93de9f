"""What can hold samples: tables of text or images, image files, arrays of raw inputs, and a data set's rows.

Each is a small reader with a length and `read(row)`; `samples.py` draws from them and makes batches. A reader that
cannot use its file raises ValueError with the reason alone: the caller names the file.
"""

from __future__ import annotations

import difflib
import io
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from PIL import Image, UnidentifiedImageError

logger = logging.getLogger(__name__)
TEXT_SUFFIXES = (".txt",)
TABLE_SUFFIXES = (".parquet", ".csv", ".jsonl")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
ARRAY_SUFFIXES = (".npy", ".npz")
# The columns that hold a sample's text in the usual data sets, the more specific first.
TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("question", "context"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence",),
    ("text",),
    ("content",),
)
IMAGE_COLUMNS = ("image", "img", "pixel_values")

Text = tuple[str, ...]  # one string, or a pair
Raw = dict[str, np.ndarray]  # one sample's inputs by name, without a batch axis
Sample = Text | Image.Image | Raw


class Reader(Protocol):
    """One file's samples. `kind` is "text", "image" or "raw"."""

    @property
    def kind(self) -> str: ...

    def __len__(self) -> int: ...

    def read(self, row: int) -> Sample:
        """Return one sample. Raises: ValueError: with the reason if it cannot be read."""
        ...


@dataclass(frozen=True)
class ColumnRows:
    """Rows of a table or a data set: texts of one or two columns, or images of one."""

    rows: Any  # a pyarrow.Table or a datasets.Dataset: both give rows without loading the rest
    columns: tuple[str, ...]
    kind: str
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> Sample:
        if isinstance(self.rows, pa.Table):
            values = [self.rows[column][row].as_py() for column in self.columns]
        else:
            values = [self.rows[row][column] for column in self.columns]
        if self.kind == "image":
            return image_from_value(values[0])
        if not all(isinstance(value, str) and value.strip() for value in values):
            raise ValueError(f"row {row} has no text in {', '.join(self.columns)}")
        return tuple(values)


@dataclass(frozen=True)
class TextLines:
    """A .txt file, one sample a line; blank lines are none."""

    lines: list[str]
    kind: str = "text"

    def __len__(self) -> int:
        return len(self.lines)

    def read(self, row: int) -> Sample:
        return (self.lines[row],)


@dataclass(frozen=True)
class ImageFile:
    """One image."""

    path: Path
    kind: str = "image"

    def __len__(self) -> int:
        return 1

    def read(self, row: int) -> Sample:
        return open_image(self.path)


@dataclass(frozen=True)
class ImageArray:
    """Images already in memory, shape (N, H, W)."""

    images: np.ndarray
    kind: str = "image"

    def __len__(self) -> int:
        return len(self.images)

    def read(self, row: int) -> Sample:
        return Image.fromarray(self.images[row])


@dataclass(frozen=True)
class RawArrays:
    """Ready-made inputs by name, each with the samples on its first axis; .npy files stay on the disk."""

    arrays: dict[str, np.ndarray]
    path: Path
    kind: str = "raw"

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def read(self, row: int) -> Sample:
        sample = {name: np.array(array[row]) for name, array in self.arrays.items()}
        for name, value in sample.items():
            if not np.isfinite(value).all():
                raise ValueError(f"row {row} of {name} holds NaN or infinite values")
        return sample


def open_image(source: Path | io.BytesIO) -> Image.Image:
    """Return the decoded image. Raises: ValueError: if it is none or is cut short."""
    try:
        with Image.open(source) as image:
            image.load()
            return image.copy()
    except UnidentifiedImageError:
        raise ValueError("not an image that Pillow can read") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"unreadable image: {error}") from error


def image_from_value(value: Any) -> Image.Image:
    """Return the image in a table's cell: encoded bytes, {"bytes": ...}, an array, or already an image."""
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, dict) and value.get("bytes"):
        return open_image(io.BytesIO(value["bytes"]))
    if isinstance(value, bytes):
        return open_image(io.BytesIO(value))
    if isinstance(value, list):
        return Image.fromarray(np.asarray(value, dtype=np.uint8))
    raise ValueError(f"a cell holds {type(value).__name__}, not an image")


def read_file(path: Path, wanted: str, columns: Sequence[str] | None, main_input: str) -> Reader:
    """Return the reader of one file.

    Args:
        path: a file with one of the suffixes above.
        wanted: "text" or "image": what the model reads, so that the right columns of a table are chosen.
        columns: the columns of a table, or None to choose them by name.
        main_input: the model's main input: the name of what a .npy holds.
    Raises: ValueError: with the reason, if the file is empty, cannot be read, or lacks the columns.
    """
    if path.stat().st_size == 0:
        raise ValueError("empty file")
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return ImageFile(path)
    if suffix in ARRAY_SUFFIXES:
        return _read_arrays(path, main_input)
    if suffix in TEXT_SUFFIXES:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 text (byte {error.start})") from error
        if not lines:
            raise ValueError("no line with text")
        return TextLines(lines)
    return _read_table(path, wanted, columns)


def _read_table(path: Path, wanted: str, columns: Sequence[str] | None) -> Reader:
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            schema = pyarrow.parquet.read_schema(path)
            chosen = choose_columns({f.name: f.type for f in schema}, wanted, columns)
            table = pyarrow.parquet.read_table(path, columns=list(chosen), memory_map=True)
        else:
            parsed = pyarrow.csv.read_csv(path) if suffix == ".csv" else pyarrow.json.read_json(path)
            if not len(parsed):
                raise ValueError("no rows")
            chosen = choose_columns({f.name: f.type for f in parsed.schema}, wanted, columns)
            table = parsed.select(list(chosen))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"unreadable {suffix[1:]}: {str(error).splitlines()[0]}") from error
    if not len(table):
        raise ValueError("no rows")
    return ColumnRows(table, chosen, wanted, path)


def choose_columns(types: dict[str, pa.DataType], wanted: str, columns: Sequence[str] | None) -> tuple[str, ...]:
    """Return the columns that hold a sample: those asked for, else the first usual ones that are all there.

    Raises: ValueError: for an unknown column (near matches), more than two, or where none can be told.
    """
    there = ", ".join(types)
    if columns:
        unknown = [column for column in columns if column not in types]
        if unknown:
            near = difflib.get_close_matches(unknown[0], list(types), n=3, cutoff=0.5)
            hint = f" (did you mean {', '.join(near)}?)" if near else ""
            raise ValueError(f"no column {', '.join(map(repr, unknown))}{hint}; it has {there}")
        if len(columns) > (2 if wanted == "text" else 1):
            raise ValueError(f"a sample is one text or a pair, or one image; got the columns {', '.join(columns)}")
        return tuple(columns)
    if wanted == "image":
        found = [name for name in IMAGE_COLUMNS if name in types]
        if found:
            return _said((found[0],), there)
        raise ValueError(f"no image column ({', '.join(IMAGE_COLUMNS)}); it has {there}")
    for names in TEXT_COLUMNS:
        if all(name in types and _is_text(types[name]) for name in names):
            return _said(names, there)
    strings = [name for name, kind in types.items() if _is_text(kind)]
    if len(strings) == 1:
        return _said((strings[0],), there)
    raise ValueError(f"which column is the text? it has {there}; name one or two with --column")


def _said(names: tuple[str, ...], there: str) -> tuple[str, ...]:
    """Return columns that nobody named, and log them."""
    logger.info("samples are read from %s of the columns %s", " and ".join(names), there)
    return names


def _is_text(kind: Any) -> bool:
    return getattr(kind, "dtype", None) == "string" or (
        isinstance(kind, pa.DataType) and (pa.types.is_string(kind) or pa.types.is_large_string(kind))
    )


def _read_arrays(path: Path, main_input: str) -> Reader:
    try:
        # No pickle: an object array is refused by numpy itself.
        if path.suffix.lower() == ".npy":
            arrays = {main_input: np.load(path, mmap_mode="r", allow_pickle=False)}
        else:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"unreadable array: {str(error).splitlines()[0]}") from error
    if main_input not in arrays:
        raise ValueError(f"no array {main_input!r}; it has {', '.join(arrays) or 'none'}")
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if min(array.ndim for array in arrays.values()) < 2 or len(set(lengths.values())) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"each array needs the samples on its first axis, as (samples, ...); got {shapes}")
    if not lengths[main_input]:
        raise ValueError("no samples in it")
    return RawArrays(arrays, path)
