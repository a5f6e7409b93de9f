"""Reads one split of a data set.

A hub id, a folder of parquet/csv/jsonl files or images, with errors that say what there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from engine.cli import did_you_mean

TABLE_SUFFIXES = (".parquet", ".csv", ".jsonl", ".json")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
# Smaller files are read into memory; larger ones go through the memory-mapped cache of `datasets`.
LARGE_FILE_BYTES = 1 << 30


def load_split(source: str | Path, split: str) -> datasets.Dataset:
    """Return one split of `source`.

    Args:
        source: a folder holding SPLIT.parquet | .csv | .jsonl (or SPLIT-*.parquet), or SPLIT/LABEL/*.png; a single
            table or
            image folder LABEL/*.png, which is then the split itself; else a hub id, "path" or "path:config".
        split: the split's name, e.g. "validation".
    Raises:
        FileNotFoundError: if a local path does not exist (near matches named).
        ValueError: if the split is missing (those there are named), or a file cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _read_tables([path])
    if path.is_dir():
        return _load_folder(path, split)
    if _looks_local(str(source)):
        hint = did_you_mean(path.name, _names(path.parent), "{}", most=3)
        hint = hint or "give a folder with train/validation/test files, or a hub id"
        raise FileNotFoundError(f"--data {source}: no such file or folder; {hint}")
    return _load_hub(str(source), split)


def _load_folder(folder: Path, split: str) -> datasets.Dataset:
    found = {
        suffix: folder / f"{split}{suffix}" for suffix in TABLE_SUFFIXES if (folder / f"{split}{suffix}").is_file()
    }
    if len(found) > 1:
        names = ", ".join(path.name for path in found.values())
        raise ValueError(f"--data {folder} holds the split '{split}' more than once: {names}; keep one")
    if found:
        return _read_tables(list(found.values()))
    shards = sorted([*folder.glob(f"{split}-*.parquet"), *folder.glob(f"data/{split}-*.parquet")])
    if shards:
        return _read_tables(shards)
    if (folder / split).is_dir():
        return _load_images(folder / split)
    splits = split_names(folder)
    if not splits and any(_image_files(folder)):
        return _load_images(folder)
    there = (
        f"it has {', '.join(splits)}"
        if splits
        else f"expected {split}.parquet, .csv, .jsonl or a folder {split}/LABEL/*.png"
    )
    raise ValueError(f"--data {folder} has no split '{split}'; {there}. Choose one with --split")


def split_names(folder: Path) -> list[str]:
    """Return the splits that a data folder offers, sorted."""
    tables = {path.stem.split("-")[0] for path in folder.iterdir() if path.is_file() and path.suffix in TABLE_SUFFIXES}
    images = {name for name in ("train", "validation", "test") if (folder / name).is_dir()}
    return sorted(tables | images)


def _read_tables(paths: Sequence[Path]) -> datasets.Dataset:
    if sum(path.stat().st_size for path in paths) > LARGE_FILE_BYTES and all(
        path.suffix == ".parquet" for path in paths
    ):
        return datasets.Dataset.from_parquet([str(path) for path in paths])
    tables = [_read_table(path) for path in paths]
    return datasets.Dataset(datasets.table.InMemoryTable(pa.concat_tables(tables)))


def _read_table(path: Path) -> pa.Table:
    readers = {
        ".parquet": pa.parquet.read_table,
        ".csv": pa.csv.read_csv,
        ".jsonl": pa.json.read_json,
        ".json": pa.json.read_json,
    }
    if path.suffix not in readers:
        raise ValueError(f"--data {path}: '{path.suffix}' is not read; allowed: {', '.join(TABLE_SUFFIXES)}")
    try:
        table = readers[path.suffix](str(path))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"--data {path} cannot be read as {path.suffix[1:]}: {reason}") from None
    if table.num_rows == 0:
        raise ValueError(f"--data {path} holds no rows")
    return table


def _load_images(folder: Path) -> datasets.Dataset:
    """Return a data set of image paths and labels from LABEL/*.png; labels are the sorted folder names."""
    files = sorted(_image_files(folder))
    if not files:
        raise ValueError(f"--data {folder} holds no images in LABEL/ folders; expected e.g. {folder}/cat/1.png")
    names = sorted({path.parent.name for path in files})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    columns = {"image": [str(path) for path in files], "label": [names.index(path.parent.name) for path in files]}
    return datasets.Dataset.from_dict(columns, features=features)


def _image_files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*/*") if path.suffix.lower() in IMAGE_SUFFIXES]


def _load_hub(source: str, split: str) -> datasets.Dataset:
    name, _, config = source.partition(":")
    try:
        return datasets.load_dataset(name, config or None, split=split)
    except ValueError as error:  # an unknown split or config: the message lists what there is
        raise ValueError(f"--data {source}, split '{split}': {' '.join(str(error).split())}") from None
    except (OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"--data {source} could not be loaded from the hub ({type(error).__name__}: {reason}). Without a network "
            "give a folder "
            f"with {split}.parquet, .csv or .jsonl"
        ) from None


def _looks_local(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).suffix in TABLE_SUFFIXES


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []
