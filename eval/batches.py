"""From a data set to the feeds of a runner.

Batches of one size, padded or cropped, with the inputs that the runner asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from datasets import Dataset

from eval.arguments import BatchOptions
from eval.tasks.base import Task
from eval.tasks.parts.outcome import Arrays


def iter_batches(task: Task, dataset: Dataset, processor: Any, options: BatchOptions) -> Iterator[Arrays]:
    """Yield features in batches of exactly `batch_size` (the last one may be smaller), in a fixed order."""
    chunks = task.iter_features(dataset, processor, options.seq_length, options.num_samples, options.seed)
    for batch in regroup(chunks, options.batch_size):
        yield crop_padding(batch) if options.padding == "longest" else batch


def regroup(chunks: Iterable[Arrays], batch_size: int) -> Iterator[Arrays]:
    """Yield the rows of chunks of any size in batches of `batch_size`."""
    rest: Arrays | None = None
    for chunk in chunks:
        joined = chunk if rest is None else {name: np.concatenate([rest[name], chunk[name]]) for name in chunk}
        num_rows = len(joined["_row"])
        for start in range(0, num_rows - batch_size + 1, batch_size):
            yield {name: array[start : start + batch_size] for name, array in joined.items()}
        num_left = num_rows % batch_size
        rest = {name: array[num_rows - num_left :] for name, array in joined.items()} if num_left else None
    if rest is not None:
        yield rest


def crop_padding(features: Arrays) -> Arrays:
    """Return the features without the positions that are padding in every sample, on either side.

    Images stay as they are.
    """
    if "attention_mask" not in features:
        return features
    mask = features["attention_mask"]
    used = np.flatnonzero(mask.any(0))
    if len(used) == 0:
        return features
    kept = slice(int(used[0]), int(used[-1]) + 1)
    is_per_token = {name: array.ndim >= 2 and array.shape[:2] == mask.shape for name, array in features.items()}
    return {name: array[:, kept] if is_per_token[name] else array for name, array in features.items()}


def select_feeds(features: Arrays, input_names: Iterable[str]) -> Arrays:
    """Return the inputs that a runner asks for; absent token types are zeros, as every model takes them.

    Raises: ValueError: if the runner asks for an input that the samples do not give.
    """
    feeds, missing = {}, []
    for name in input_names:
        if name in features:
            feeds[name] = features[name]
        elif name == "token_type_ids" and "input_ids" in features:
            feeds[name] = np.zeros_like(features["input_ids"])
        else:
            missing.append(name)
    if missing:
        given = ", ".join(name for name in features if not name.startswith("_"))
        raise ValueError(
            f"the model asks for {', '.join(missing)}, the samples give {given}; engine, processor and task do not "
            "belong "
            "together: give the processor of the engine's own model with --processor, or another --task"
        )
    return feeds


def check_length(task: Task, seq_length: int | None, config: Any, processor: Any = None) -> int | None:
    """Return the sequence length that will be used, None for images.

    Raises: ValueError: if it is over the model's maximum.
    """
    if not task.is_text:
        return None
    length = seq_length or task.default_length or 128
    maximum, source = max_length(config, processor)
    if maximum is None or length <= maximum:
        return length
    if seq_length is None:
        return maximum
    raise ValueError(
        f"--seq-length {seq_length} is over the model's maximum of {maximum} ({source}); choose at most {maximum}"
    )


def max_length(config: Any, processor: Any = None) -> tuple[int | None, str]:
    """Return the longest sequence a model takes, and where that is said; None where nothing says it."""
    maxima: dict[str, int] = {}
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if positions and positions > 0:
        # RoBERTa and its kin number positions from pad_token_id + 1, so that many rows of the table are never reached.
        is_offset = getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "mpnet")
        offset = (config.pad_token_id or 0) + 1 if is_offset else 0
        maxima["max_position_embeddings in config.json"] = positions - offset
    declared = getattr(processor, "model_max_length", None)
    if isinstance(declared, int) and declared < 1_000_000:  # transformers writes 1e30 for "not known"
        maxima["model_max_length of the tokenizer"] = declared
    if not maxima:
        return None, ""
    source = min(maxima, key=lambda name: maxima[name])
    return maxima[source], source
