"""What every benchmark feeds: SST-2 sentences as integer arrays, and the float model that all are compared with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class FloatModel:
    """The float model: fp32 on the CPU, eval mode, with its tokenizer and the folder it came from."""

    model: PreTrainedModel
    tokenizer: Any
    folder: Path


def load_float(folder: str | Path, attention: str = "eager") -> FloatModel:
    """Return the model in `folder` in float32, whatever it is stored in; `attention` is its attn_implementation."""
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    )
    return FloatModel(model.eval(), AutoTokenizer.from_pretrained(folder), Path(folder))


def read_split(data: str | Path, split: str) -> tuple[list[str], np.ndarray]:
    """Return the sentences and the integer labels of `DATA/SPLIT.parquet`."""
    frame = pandas.read_parquet(Path(data) / f"{split}.parquet")
    return frame["sentence"].tolist(), frame["label"].to_numpy()


def draw_sentences(data: str | Path, num_samples: int, seed: int) -> list[str]:
    """Return `num_samples` different sentences of the train split; the same for every system with the same seed."""
    sentences, _ = read_split(data, "train")
    chosen = np.random.default_rng(seed).choice(len(sentences), num_samples, replace=False)
    return [sentences[index] for index in chosen]


def tokenize(tokenizer: Any, sentences: list[str], length: int | None = None) -> Feeds:
    """Return int64 arrays of shape (sentences, tokens), padded and cut to `length`, or to the longest if None."""
    options: dict[str, Any] = (
        {"padding": "max_length", "truncation": True, "max_length": length} if length else {"padding": "longest"}
    )
    encoded = tokenizer(sentences, return_tensors="np", **options)
    return {name: encoded[name].astype(np.int64) for name in INPUT_NAMES}


def single_feeds(tokenizer: Any, sentences: list[str], length: int | None = None) -> Iterator[Feeds]:
    """Yield one sentence at a time, unpadded unless `length` is given: no peer is made to count padding as data."""
    for sentence in sentences:
        yield tokenize(tokenizer, [sentence], length)


def equal_length_feeds(tokenizer: Any, sentences: list[str]) -> Iterator[Feeds]:
    """Yield sentences of the same number of tokens as one batch: unpadded too, in fewer forward passes."""
    groups: dict[int, list[str]] = defaultdict(list)
    for sentence in sentences:
        groups[len(tokenizer(sentence)["input_ids"])].append(sentence)
    for group in groups.values():
        yield tokenize(tokenizer, group)


def full_feeds(batch_size: int, length: int, vocabulary: int, seed: int = 0) -> Feeds:
    """Return random token ids of shape (batch_size, length) without padding, for timing."""
    ids = np.random.default_rng(seed).integers(1000, vocabulary, (batch_size, length), dtype=np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
