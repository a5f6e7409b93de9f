"""Language modelling: how probable is a text, cut into fixed blocks of tokens? The metric is its perplexity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from eval.metrics import scores as metrics
from eval.tasks.base import ROWS_PER_CHUNK, Task
from eval.tasks.parts.outcome import Arrays, Rows, Scores

# What stands between two rows of text: lines of wikitext are paragraphs (the usual form of its perplexity).
ROW_SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Perplexity(Task):
    """Causal language modelling in blocks that do not overlap; the last, shorter block is left out."""

    def training_set(
        self, dataset: datasets.Dataset, processor: Any, max_length: int | None = None
    ) -> datasets.Dataset:
        """Return one block a row, in the column "input_ids": a row of text may be a line or a whole book."""
        blocks = self._blocks(list(dataset[self.columns[0]]), processor, max_length)
        return datasets.Dataset.from_dict({"input_ids": blocks["input_ids"]})

    def encode(self, rows: Rows, processor: Any, max_length: int | None = None, padding: str = "max") -> Arrays:
        """Return blocks and "labels" equal to them (the model shifts them itself); rows of text are joined and cut."""
        if "input_ids" in rows:
            ids = np.asarray(rows["input_ids"], dtype=np.int64)
            return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids.copy()}
        arrays = self._blocks(list(rows[self.columns[0]]), processor, max_length)
        return {**arrays, "labels": arrays["input_ids"].copy()}

    def features(self, rows: Rows, processor: Any, max_length: int | None = None) -> Arrays:
        """Return blocks of the rows' joined text; "_row" is the block's number."""
        arrays = self._blocks(list(rows[self.columns[0]]), processor, max_length)
        return {**arrays, "_row": np.arange(len(arrays["input_ids"]))}

    def iter_features(
        self,
        dataset: datasets.Dataset,
        processor: Any,
        max_length: int | None = None,
        num_samples: int | None = None,
        seed: int = 0,
    ) -> Iterator[Arrays]:
        """Yield blocks of the whole text; `num_samples` counts blocks, the first ones are taken."""
        features = self.features(dataset[:], processor, max_length)
        if num_samples is not None:
            features = {name: array[:num_samples] for name, array in features.items()}
        for start in range(0, len(features["_row"]), ROWS_PER_CHUNK):
            yield {name: array[start : start + ROWS_PER_CHUNK] for name, array in features.items()}

    def _blocks(self, texts: list[Any], tokenizer: Any, max_length: int | None) -> Arrays:
        if not hasattr(tokenizer, "convert_ids_to_tokens"):
            got = "no processor" if tokenizer is None else f"a {type(tokenizer).__name__}"
            raise ValueError(f"task {self.name} needs a tokenizer, the model has {got}; choose a language model")
        length = max_length or self.default_length or 256
        text = ROW_SEPARATOR.join(str(line) for line in texts if line is not None)
        ids = np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)
        num_blocks = len(ids) // length
        if num_blocks == 0 or length < 2:
            raise ValueError(
                f"the text has {len(ids)} tokens, not one block of {length}; choose a --seq-length from 2 to {len(ids)}"
            )
        blocks = ids[: num_blocks * length].reshape(num_blocks, length)
        return {"input_ids": blocks, "attention_mask": np.ones_like(blocks)}

    def reduce(self, features: Arrays, outputs: Arrays) -> Arrays:
        """Keep the summed loss in nats and the number of predicted tokens of each block."""
        logits, targets = outputs["logits"][:, :-1], features["input_ids"][:, 1:]  # (B, L - 1, V), (B, L - 1)
        if outputs["logits"].ndim != 3:
            raise ValueError(
                f"task {self.name} needs logits of shape (batch, tokens, vocabulary), got {outputs['logits'].shape}"
            )
        top = logits.max(-1, keepdims=True).astype(np.float32)
        log_sum = np.log(np.exp(logits - top).sum(-1, dtype=np.float64)) + top[..., 0]  # (B, L - 1)
        right = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return {"loss": (log_sum - right).sum(1), "tokens": np.full(len(targets), targets.shape[1], dtype=np.int64)}

    def score(self, dataset: datasets.Dataset, kept: Arrays) -> Scores:
        """Return the perplexity over all blocks."""
        return Scores((metrics.perplexity(kept["loss"], kept["tokens"]),), None, None, len(kept["loss"]))


PERPLEXITY = Perplexity(
    name="perplexity",
    columns=("text",),
    label_column="text",
    head="causal-lm",
    problem_type="language_modeling",
    metric_names=("perplexity",),
    default_data="Salesforce/wikitext:wikitext-2-raw-v1",
    default_length=256,
    per_token=True,
)
