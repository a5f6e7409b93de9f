"""Make batches of model inputs from raw samples: text by the tokenizer, images by the processor, arrays as they are."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from calib.sample_files import Raw, Reader, Sample
from quant.models.pretrained import LoadedModel

logger = logging.getLogger(__name__)

NO_LIMIT = 1_000_000  # a tokenizer without a maximum says 1e30
TEXTS_PER_CHUNK = 256
PAD_VALUES = {"attention_mask": 0, "token_type_ids": 0}


def longest_input(loaded: LoadedModel) -> int | None:
    """Return the most tokens that the model takes, None where it has no such limit."""
    limits = [getattr(loaded.model.config, "max_position_embeddings", None)]
    for name, module in loaded.model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # RoBERTa's positions start after its padding index.
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    limits.append(getattr(loaded.processor, "model_max_length", None))
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < NO_LIMIT]
    return min(known) if known and loaded.model.main_input_name == "input_ids" else None


def make_batch(samples: Sequence[Sample], loaded: LoadedModel, max_length: int | None) -> dict[str, Tensor]:
    """Return the samples, all of one kind, as the model's inputs, padded to the longest.

    Returns: input_ids, attention_mask (B, S) int64, or pixel_values (B, C, H, W) float32, or the raw inputs by name.
    """
    first = samples[0]
    if isinstance(first, dict):
        return _stack_raw([sample for sample in samples if isinstance(sample, dict)], loaded)
    if isinstance(first, tuple):
        encoded = _tokenize([sample for sample in samples if isinstance(sample, tuple)], loaded, max_length)
    else:
        mode = "L" if getattr(loaded.model.config, "num_channels", 3) == 1 else "RGB"
        images = [sample.convert(mode) for sample in samples if isinstance(sample, Image.Image)]
        encoded = loaded.processor(images, return_tensors="pt")
    accepted = inspect.signature(loaded.model.forward).parameters
    return {name: value for name, value in encoded.items() if name in accepted}


def _tokenize(texts: list[tuple[str, ...]], loaded: LoadedModel, max_length: int | None, **options: Any) -> Any:
    columns = [list(column) for column in zip(*texts, strict=True)]
    options = options or {"return_tensors": "pt", "padding": True}
    return loaded.processor(*columns, truncation=max_length is not None, max_length=max_length, **options)


def sort_by_length(
    readers: Sequence[Reader], drawn: list[tuple[int, int]], loaded: LoadedModel, max_length: int | None
) -> list[tuple[int, int]]:
    """Return the drawn samples ordered by their number of tokens, so that batches hold little padding.

    Logs how many are longer than max_length and therefore cut.
    """
    lengths: list[int] = []
    for start in range(0, len(drawn), TEXTS_PER_CHUNK):
        texts = [readers[r].read(row) for r, row in drawn[start : start + TEXTS_PER_CHUNK]]
        encoded = _tokenize([text for text in texts if isinstance(text, tuple)], loaded, None, verbose=False)
        lengths += [len(ids) for ids in encoded["input_ids"]]
    if max_length is not None and (num_cut := sum(length > max_length for length in lengths)):
        logger.warning("%d of %d samples are longer than %d tokens and are cut there", num_cut, len(drawn), max_length)
    return [drawn[i] for i in np.argsort(lengths, kind="stable")]


def check_raw(sample: Raw, loaded: LoadedModel, limit: int | None) -> None:
    """Raise ValueError if one sample's raw inputs cannot go into the model: names, types, ids, length or channels."""
    accepted = list(inspect.signature(loaded.model.forward).parameters)
    if unknown := [name for name in sample if name not in accepted]:
        raise ValueError(f"{loaded.name} has no input {', '.join(unknown)}; it takes {', '.join(accepted[:6])}, ...")
    config, value = loaded.model.config, sample[loaded.model.main_input_name]
    if loaded.model.main_input_name == "input_ids":
        vocabulary = config.get_text_config().vocab_size
        if not np.issubdtype(value.dtype, np.integer) or value.ndim != 1:
            raise ValueError(f"input_ids must be integers, (samples, tokens); got {value.dtype} {('N', *value.shape)}")
        if limit is not None and len(value) > limit:
            raise ValueError(f"{len(value)} tokens are over the maximum of {loaded.name}, {limit}; cut them before")
        if value.size and not 0 <= value.min() <= value.max() < vocabulary:
            raise ValueError(f"ids go from {value.min()} to {value.max()}; the vocabulary has 0 to {vocabulary - 1}")
    elif loaded.model.main_input_name == "pixel_values":
        channels = getattr(config, "num_channels", None)
        if value.ndim != 3 or (channels is not None and value.shape[0] != channels):
            raise ValueError(f"pixel_values must be (samples, {channels}, height, width); got {('N', *value.shape)}")


def _stack_raw(samples: list[Raw], loaded: LoadedModel) -> dict[str, Tensor]:
    batch: dict[str, Tensor] = {}
    for name in samples[0]:
        rows = [torch.from_numpy(sample[name]) for sample in samples]
        rows = [row.float() if row.is_floating_point() else row.long() for row in rows]
        if rows[0].ndim == 1:
            pad = PAD_VALUES.get(name, getattr(loaded.model.config, "pad_token_id", None) or 0)
            batch[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)  # (B, S)
        else:
            batch[name] = torch.stack(rows)
    if "input_ids" in batch and "attention_mask" not in batch:
        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        mask = torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]  # (B, S)
        tokenizer = loaded.processor
        if tokenizer is not None and tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
            mask &= batch["input_ids"] != tokenizer.pad_token_id  # padding that the file already holds is no data
        batch["attention_mask"] = mask.long()
    return batch
