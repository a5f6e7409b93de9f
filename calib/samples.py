"""Samples for calibration: a seeded draw from a folder, a file, a data set or the digits, as batches of model inputs.

It stands at the start of the calibration pass. What is drawn is kept raw (text, paths, rows); tensors are made one
batch at a time through the model's own tokenizer or processor, so that memory does not grow with the number of samples.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path

import datasets
import numpy as np
from torch import Tensor

from calib.sample_batches import check_raw, longest_input, make_batch, sort_by_length
from calib.sample_files import (
    ARRAY_SUFFIXES,
    IMAGE_SUFFIXES,
    TABLE_SUFFIXES,
    TEXT_SUFFIXES,
    ColumnRows,
    ImageArray,
    Reader,
    Sample,
    choose_columns,
    read_file,
)
from quant.models.digits import digits_split
from quant.models.pretrained import DIGITS, LoadedModel

logger = logging.getLogger(__name__)
TRAIN, SCORED = "train", ("validation", "valid", "val", "dev", "test")  # as `datasets` knows a folder's splits

MODALITIES = {"input_ids": "text", "pixel_values": "image"}  # other main inputs take raw arrays only
TAKES = f"a folder or file of {', '.join((*TEXT_SUFFIXES, *TABLE_SUFFIXES))}, images, or {' / '.join(ARRAY_SUFFIXES)}"


@dataclass(frozen=True)
class Samples:
    """Drawn samples; iterating gives batches ready for model(**batch), padded to the longest of each batch.

    Attributes:
        num_samples: how many were drawn.
        source: what the user passed.
        digest: sha256 over the drawn raw samples, in hexadecimal.
    """

    num_samples: int
    source: str
    digest: str
    batch_size: int
    _readers: tuple[Reader, ...] = field(repr=False)
    _drawn: tuple[tuple[int, int], ...] = field(repr=False)  # (reader, row), samples of like length side by side
    _loaded: LoadedModel = field(repr=False)
    _max_length: int | None = field(repr=False)

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for start in range(0, self.num_samples, self.batch_size):
            chosen = self._drawn[start : start + self.batch_size]
            yield make_batch([self._readers[r].read(row) for r, row in chosen], self._loaded, self._max_length)

    def num_shared_with(self, other: Samples) -> int:
        """Return how many of them another draw from the same source has too."""
        return len({*self._drawn} & {*other._drawn})

    def spread(self, num_samples: int) -> Samples:
        """Return so many of them, spread evenly over their lengths, as one batch."""
        count = min(num_samples, self.num_samples)
        chosen = tuple(self._drawn[i * self.num_samples // count] for i in range(count))
        return replace(self, num_samples=count, batch_size=count, _drawn=chosen)


def load_samples(
    source: str | Path,
    loaded: LoadedModel,
    *,
    columns: Sequence[str] | None = None,
    num_samples: int | None = 256,
    seed: int = 0,
    after: int = 0,
    batch_size: int = 32,
    max_length: int | None = None,
    skip_bad: bool = False,
    reader: Reader | None = None,
) -> Samples:
    """Return a seeded draw of samples from `source` as batches for the model.

    Args:
        source: a folder or file, a hub data set "id" or "id:config" (its train split), or "digits".
        loaded: the model, and the tokenizer or processor that makes its inputs.
        columns: the text columns (one, or a pair) or the image column; default: the usual names.
        num_samples: how many to draw without replacement; None takes all.
        after: draw after so many of this seed's order: none of a first draw of so many, while the source has others.
        max_length: tokens at which text is cut; default the model's maximum.
        skip_bad: leave out what cannot be read instead of refusing.
        reader: what reads `source` in place of the readers of this package, as a task with its own inputs does.
    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if there are no samples, some cannot be read, or they do not fit the model.
    """
    if (num_samples is not None and num_samples < 1) or batch_size < 1:
        raise ValueError(f"the number of samples and the batch size start at 1; got {num_samples} and {batch_size}")
    wanted = MODALITIES.get(loaded.model.main_input_name, "raw")
    limit = longest_input(loaded)
    if max_length is not None and limit is not None and max_length > limit:
        raise ValueError(f"max_length {max_length} is over the maximum of {loaded.name}, {limit} tokens")
    readers = [reader] if reader else _open_source(str(source), wanted, columns, loaded, skip_bad)
    kind = readers[0].kind
    if kind != "raw" and loaded.processor is None:
        raise ValueError(f"{loaded.name} has no tokenizer or processor, so {kind} does not fit it; give .npy or .npz")
    drawn, digest = _draw(readers, num_samples, seed, after, str(source), loaded, limit, skip_bad)
    cut = max_length or limit
    if kind == "text":
        drawn = sort_by_length(readers, drawn, loaded, cut)
    return Samples(len(drawn), str(source), digest, batch_size, tuple(readers), tuple(drawn), loaded, cut)


def _open_source(
    source: str, wanted: str, columns: Sequence[str] | None, loaded: LoadedModel, skip_bad: bool
) -> list[Reader]:
    path = Path(source).expanduser()
    if path.is_dir() or path.is_file():
        return _open_files(path, wanted, columns, loaded, skip_bad)
    if source == DIGITS:
        if wanted != "image":
            raise ValueError(f"digits are images, but {loaded.name} reads {loaded.model.main_input_name}")
        return [ImageArray(digits_split("train")[0])]
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1 or path.suffix != ""
    if looks_local or ("/" in source and path.parent.is_dir()):
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.5)
        hint = f" (did you mean {', '.join(near)}?)" if near else ""
        raise FileNotFoundError(f"there is no file or folder {source}{hint}; --samples takes {TAKES}")
    return [_open_data_set(source, wanted, columns)]


def _open_data_set(source: str, wanted: str, columns: Sequence[str] | None) -> Reader:
    name, _, config = source.partition(":")
    try:
        rows = datasets.load_dataset(name, config or None, split="train")
    except (OSError, ValueError) as error:  # the hub's own errors are OSError or ValueError
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"{source} is no local file or folder, and the hub did not give it: {reason}"
        ) from error
    return ColumnRows(rows, choose_columns(dict(rows.features), wanted, columns), wanted)


def _open_files(
    path: Path, wanted: str, columns: Sequence[str] | None, loaded: LoadedModel, skip_bad: bool
) -> list[Reader]:
    """Return a reader of each usable file; refuse, or with skip_bad name, those that cannot be read."""
    files = (
        _train_only(sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path)), path)
        if path.is_dir()
        else [path]
    )
    fitting, others = _split_by_fit(files, wanted)
    if not fitting:
        if not others:
            raise ValueError(f"{path} holds no samples; --samples takes {TAKES}")
        raise ValueError(
            f"{path} holds {_counted(others)}, but {loaded.name} reads {loaded.model.main_input_name}; "
            f"give {'text' if wanted == 'text' else 'images' if wanted == 'image' else 'raw inputs'} or .npy / .npz"
        )
    if others:
        logger.warning("%s: %s skipped: no %s samples", path, _counted(others), wanted)
    readers: list[Reader] = []
    bad: list[str] = []
    for file in fitting:
        try:
            readers.append(read_file(file, wanted, columns, loaded.model.main_input_name))
        except (ValueError, OSError) as error:
            bad.append(f"{file.name} ({error})")
    _refuse_bad(bad, f"of {len(fitting)} files", str(path), skip_bad)
    if not readers:
        raise ValueError(f"{path} holds no usable samples: {_listed(bad)}")
    if len(kinds := sorted({reader.kind for reader in readers})) > 1:
        raise ValueError(f"{path} holds both {' and '.join(kinds)} samples; give a folder or file of one kind")
    return readers


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _train_only(files: list[Path], root: Path) -> list[Path]:
    """Return the train files alone where a folder holds a data set's splits: what is scored must not calibrate."""
    splits = {file: _split_of(file, root) for file in files}
    if TRAIN not in splits.values() or not set(SCORED) & set(splits.values()):
        return files
    left_out = [file for file, split in splits.items()
                if split in SCORED or (split != TRAIN and file.suffix.lower() in TABLE_SUFFIXES)]  # fmt: skip
    names = list(dict.fromkeys(file.relative_to(root).parts[0] for file in left_out))
    logger.info("samples come from the train split; left out: %s", _listed(names))
    return [file for file in files if file not in left_out]


def _split_of(file: Path, root: Path) -> str:
    """Return the split that a file is of: by its folder under the root, of a table or text by its name."""
    folder = file.relative_to(root).parts[0].lower()  # of a file at the root its own name, which is no split
    is_named = file.suffix.lower() in (*TABLE_SUFFIXES, *TEXT_SUFFIXES)
    return file.stem.split("-")[0].lower() if is_named and folder not in (TRAIN, *SCORED) else folder


def _split_by_fit(files: list[Path], wanted: str) -> tuple[list[Path], list[Path]]:
    suffixes = set(ARRAY_SUFFIXES)
    if wanted == "text":
        suffixes |= {*TEXT_SUFFIXES, *TABLE_SUFFIXES}
    elif wanted == "image":
        images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        suffixes |= set(IMAGE_SUFFIXES) | (set() if images else set(TABLE_SUFFIXES))  # labels.csv beside images
    fitting = [file for file in files if file.suffix.lower() in suffixes]
    return fitting, [file for file in files if file.suffix.lower() not in suffixes]


def _draw(
    readers: list[Reader],
    num_samples: int | None,
    seed: int,
    after: int,
    source: str,
    loaded: LoadedModel,
    limit: int | None,
    skip_bad: bool,
) -> tuple[list[tuple[int, int]], str]:
    """Return the drawn (reader, row) pairs in the source's order, and the digest of what they hold."""
    starts = [0, *accumulate(len(reader) for reader in readers)]
    total = starts[-1]
    order = np.roll(np.random.default_rng(seed).permutation(total), -min(after, total))
    asked = total if num_samples is None else num_samples
    good: dict[int, bytes] = {}
    bad: list[str] = []
    for index in order:
        if len(good) == min(asked, total):
            break
        reader = bisect_right(starts, index) - 1
        try:
            sample = readers[reader].read(int(index) - starts[reader])
            if isinstance(sample, dict):
                check_raw(sample, loaded, limit)
            good[int(index)] = _sample_digest(sample)
        except ValueError as error:
            place = getattr(readers[reader], "path", None)
            bad.append(f"{place.name} ({error})" if place else str(error))
    _refuse_bad(bad, f"of {total} samples", source, skip_bad)
    if not good:
        raise ValueError(f"{source} holds no usable samples: {_listed(bad)}")
    if num_samples is not None and len(good) < num_samples:
        logger.warning("%s: %d samples asked for, %d are there: all are used", source, num_samples, len(good))
    chosen = sorted(good)
    digest = hashlib.sha256(b"".join(good[index] for index in chosen)).hexdigest()
    readers_of = [bisect_right(starts, index) - 1 for index in chosen]
    return [(reader, index - starts[reader]) for reader, index in zip(readers_of, chosen, strict=True)], digest


def _sample_digest(sample: Sample) -> bytes:
    digest = hashlib.sha256()
    if isinstance(sample, tuple):
        digest.update("\0".join(sample).encode())
    elif isinstance(sample, dict):
        for name in sorted(sample):
            digest.update(f"{name} {sample[name].dtype} {sample[name].shape} ".encode() + sample[name].tobytes())
    else:
        digest.update(f"{sample.mode} {sample.size} ".encode() + sample.tobytes())
    return digest.digest()


def _refuse_bad(bad: list[str], of: str, source: str, skip_bad: bool) -> None:
    """Raise ValueError naming what cannot be read; with skip_bad only log it."""
    if not bad:
        return
    if not skip_bad:
        raise ValueError(
            f"{source}: {len(bad)} {of} cannot be used: {_listed(bad)}; mend or remove them, or pass --skip-bad"
        )
    logger.warning("%s: %d %s skipped: %s", source, len(bad), of, _listed(bad))


def _counted(files: list[Path]) -> str:
    """Return the files by suffix, as "2 .csv (labels.csv, more.csv), 1 .md (README.md)"."""
    by_suffix: dict[str, list[str]] = {}
    for file in files:
        by_suffix.setdefault(file.suffix.lower() or "without a suffix", []).append(file.name)
    return ", ".join(f"{len(names)} {suffix} ({_listed(names, 3)})" for suffix, names in sorted(by_suffix.items()))


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
