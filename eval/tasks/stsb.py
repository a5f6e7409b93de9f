"""STS-B: how similar are two sentences, 0 to 5?

Solved by a regression head, or by the cosine of a sentence encoder's embeddings.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from eval.metrics import scores as metrics
from eval.tasks.base import Task
from eval.tasks.parts.encoding import model_inputs, tokenize
from eval.tasks.parts.outcome import Arrays, Rows, Scores


@dataclass(frozen=True)
class SentenceSimilarity(Task):
    """Spearman's and Pearson's correlation with the similarity that people gave."""

    def num_labels(self, dataset: datasets.Dataset) -> int | None:
        """Return 1: one score."""
        return 1

    def for_outputs(self, output_names: tuple[str, ...]) -> Task:
        """Return this task for a model with logits, its cosine form for an encoder without a head."""
        if "logits" in output_names or "last_hidden_state" not in output_names:
            return super().for_outputs(output_names)
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return CosineSimilarity(
            **values | {"output_names": ("last_hidden_state",), "head": "feature-extraction", "per_token": True}
        )

    def encode(self, rows: Rows, processor: Any, max_length: int | None = None, padding: str = "max") -> Arrays:
        """Return the inputs of sentence pairs and "labels", float32."""
        first, second = (list(rows[column]) for column in self.columns)
        encoding = tokenize(processor, first, second, max_length or self.default_length, padding)
        return {**model_inputs(encoding), "labels": self._similarities(rows).astype(np.float32)}

    def reduce(self, features: Arrays, outputs: Arrays) -> Arrays:
        """Keep the predicted similarity of each pair."""
        logits = outputs["logits"]
        if logits.ndim != 2 or logits.shape[1] != 1:
            raise ValueError(
                f"task {self.name} needs a regression head with one output, got logits of shape {logits.shape}"
            )
        return {"labels": features["_labels"], "predictions": logits[:, 0]}

    def score(self, dataset: datasets.Dataset, kept: Arrays) -> Scores:
        """Return both correlations; there are no discrete predictions, hence no flips."""
        x, y = kept["predictions"], kept["labels"]
        return Scores((metrics.spearman(x, y), metrics.pearson(x, y)), None, None, len(y))

    def _similarities(self, rows: Rows) -> np.ndarray:
        try:
            return np.asarray(rows[self.label_column], dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"column '{self.label_column}' holds no numbers; choose it with --label-column") from None


@dataclass(frozen=True)
class CosineSimilarity(SentenceSimilarity):
    """The same data by a sentence encoder.

    Mean pooling over the attention mask, then the cosine of the two embeddings.
    """

    def features(self, rows: Rows, processor: Any, max_length: int | None = None) -> Arrays:
        """Return the inputs of single sentences: features 2i and 2i + 1 are the two of row i."""
        first, second = (list(rows[column]) for column in self.columns)
        sentences = [sentence for pair in zip(first, second, strict=True) for sentence in pair]
        encoding = tokenize(processor, sentences, None, max_length or self.default_length)
        labels = self._similarities(rows)
        return {**model_inputs(encoding), "_row": np.arange(len(labels)).repeat(2), "_labels": labels.repeat(2)}

    def reduce(self, features: Arrays, outputs: Arrays) -> Arrays:
        """Keep the embedding of each sentence."""
        mask = features["attention_mask"][..., None].astype(np.float64)  # (B, L, 1)
        embeddings = (outputs["last_hidden_state"] * mask).sum(1) / np.maximum(mask.sum(1), 1)  # (B, H)
        return {"labels": features["_labels"], "embeddings": embeddings}

    def score(self, dataset: datasets.Dataset, kept: Arrays) -> Scores:
        """Return both correlations of the cosines with the labels."""
        first, second = kept["embeddings"][0::2], kept["embeddings"][1::2]
        norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        cosines = (first * second).sum(1) / np.maximum(norms, 1e-12)
        return super().score(dataset, {"predictions": cosines, "labels": kept["labels"][0::2]})


STSB = SentenceSimilarity(
    name="stsb",
    columns=("sentence1", "sentence2"),
    label_column="label",
    head="sequence-classification",
    problem_type="regression",
    metric_names=("spearman", "pearson"),
    default_data="nyu-mll/glue:stsb",
    aliases={"label": ("score", "similarity_score")},
)
