"""Tasks whose answer is one of C labels: scoring that text and image classification share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from eval.metrics import scores as metrics
from eval.tasks.base import Task
from eval.tasks.parts.outcome import Arrays, Scores

# Macro F1 over a thousand classes costs a matrix per class and says little; accuracy alone is reported above this.
MAX_F1_LABELS = 32


@dataclass(frozen=True)
class ClassificationTask(Task):
    """A task with one right label per sample; scored by accuracy, and F1 if `metric_names` has it."""

    def rename_columns(
        self,
        dataset: datasets.Dataset,
        source: str,
        columns: tuple[str, ...] | None = None,
        label_column: str | None = None,
    ) -> datasets.Dataset:
        """Return the data set with the task's column names, and its named labels numbered as the model numbers them.

        A folder of images numbers its labels by their order, and may lack one; the model's own names decide.
        """
        dataset = super().rename_columns(dataset, source, columns, label_column)
        feature, known = dataset.features[self.label_column], self.label2id or {}
        if not isinstance(feature, datasets.ClassLabel) or not set(feature.names) <= set(known):
            return dataset
        wanted = datasets.ClassLabel(names=sorted(known, key=lambda name: known[name]))
        if wanted.names == feature.names:
            return dataset
        own = np.array([wanted.str2int(name) for name in feature.names] + [-1])  # -1, a hidden label, stays -1
        labels = own[np.asarray(dataset[self.label_column])]
        return dataset.remove_columns(self.label_column).add_column(self.label_column, labels, feature=wanted)

    def label_ids(self, values: Sequence[Any]) -> np.ndarray:
        """Return label numbers, shape (N,), int64; names are looked up in the model's label2id.

        Raises: ValueError: for a name that the model does not know, or a value that is no label.
        """
        if any(isinstance(value, str) for value in values):
            known = self.label2id or {}
            unknown = sorted({str(value) for value in values if str(value) not in known})
            if unknown:
                raise ValueError(
                    f"label(s) {', '.join(unknown[:5])} are not among the model's "
                    f"({', '.join(known) or 'none named in config.json'})"
                )
            return np.array([known[str(value)] for value in values], dtype=np.int64)
        labels = np.asarray(values)
        if labels.dtype.kind not in "iub" and not (
            labels.dtype.kind == "f" and np.array_equal(labels, np.round(labels))
        ):
            raise ValueError(
                f"column '{self.label_column}' holds {values[0]!r}, not a label number; choose it with --label-column"
            )
        return labels.astype(np.int64)

    def num_labels(self, dataset: datasets.Dataset) -> int | None:
        """Return the number of labels.

        Of the ClassLabel feature, of the model's names, else the largest label plus one.
        """
        feature = dataset.features[self.label_column]
        if isinstance(feature, datasets.ClassLabel):
            return feature.num_classes
        values = dataset.unique(self.label_column)
        return len(values) if any(isinstance(value, str) for value in values) else int(max(self.label_ids(values))) + 1

    def training_score(self, outputs: np.ndarray, labels: np.ndarray) -> float:
        """Return the accuracy."""
        return float((outputs.argmax(-1) == labels).mean())

    def reduce(self, features: Arrays, outputs: Arrays) -> Arrays:
        """Keep the predicted label of each sample."""
        logits = outputs["logits"]  # (B, C)
        check_labels(features["_labels"], logits, self.name)
        return {
            "labels": features["_labels"],
            "predictions": logits.argmax(-1),
            "num_labels": np.full(len(logits), logits.shape[-1]),
        }

    def score(self, dataset: datasets.Dataset, kept: Arrays) -> Scores:
        """Return accuracy, and F1 where the task asks for it."""
        predictions, labels, num_labels = kept["predictions"], kept["labels"], int(kept["num_labels"].max())
        values = [metrics.accuracy(predictions, labels)]
        if "f1" in self.metric_names and num_labels <= MAX_F1_LABELS:
            values.append(metrics.f1(predictions, labels, num_labels))
        return Scores(tuple(values), predictions, predictions == labels, len(labels))


def check_labels(labels: np.ndarray, logits: np.ndarray, task_name: str) -> None:
    """Raise ValueError if the logits are not (B, C) or a label has no place in them."""
    if logits.ndim != 2:
        raise ValueError(
            f"task {task_name} needs logits of shape (batch, labels), got {logits.shape}; this model has another head"
        )
    if (labels < 0).any():
        raise ValueError(
            f"task {task_name}: this split's labels are hidden ({int(labels.min())}); choose another one with --split"
        )
    if labels.max(initial=0) >= logits.shape[1]:
        raise ValueError(
            f"task {task_name}: label {int(labels.max())} is outside the model's head of {logits.shape[1]} labels; "
            "give a model trained for this data, or another --data"
        )
