"""Any GLUE-like text classification: one text or a pair, and a label. SST-2 is one instance of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from eval.tasks.classification import ClassificationTask
from eval.tasks.parts.encoding import model_inputs, tokenize
from eval.tasks.parts.outcome import Arrays, Rows

# Text columns of GLUE and its kin, in the order in which they are looked for.
KNOWN_COLUMNS = (
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence1", "sentence2"),
    ("text", "text_pair"),
    ("sentence",),
    ("text",),
)


@dataclass(frozen=True)
class TextClassification(ClassificationTask):
    """Classification of a text or a text pair.

    The columns of the data are found by the usual names, or given by --column.
    """

    def rename_columns(
        self,
        dataset: datasets.Dataset,
        source: str,
        columns: tuple[str, ...] | None = None,
        label_column: str | None = None,
    ) -> datasets.Dataset:
        """Return the data set with its text columns named as the task's, and "text_pair" for a second one."""
        if self.columns != ("text",):
            return super().rename_columns(dataset, source, columns, label_column)
        found = columns or next(
            (known for known in KNOWN_COLUMNS if set(known) <= set(dataset.column_names)), ("text",)
        )
        if len(found) > 2:
            raise ValueError(f"task {self.name} takes one or two text columns, got --column {' '.join(found)}")
        if len(found) == 2 and found[1] not in dataset.column_names:
            raise ValueError(
                f"task {self.name}: {source} has no column {found[1]}; it has {', '.join(dataset.column_names)}"
            )
        dataset = super().rename_columns(dataset, source, found[:1], label_column)
        stale = [name for name in ("text_pair",) if name in dataset.column_names and name not in found]
        dataset = dataset.remove_columns(stale)
        return dataset.rename_column(found[1], "text_pair") if len(found) == 2 and found[1] != "text_pair" else dataset

    def sample_columns(self, given: Sequence[str] | None = None) -> tuple[str, ...] | None:
        """Return the columns of a calibration sample; None, the usual names, where the data's own are looked for."""
        return None if self.columns == ("text",) and not given else super().sample_columns(given)

    def encode(self, rows: Rows, processor: Any, max_length: int | None = None, padding: str = "max") -> Arrays:
        """Return token inputs and "labels", each of N rows."""
        encoding = self._tokenize(rows, processor, max_length, padding)
        return {**model_inputs(encoding), "labels": self.label_ids(rows[self.label_column])}

    def _tokenize(self, rows: Rows, processor: Any, max_length: int | None, padding: str) -> Mapping[str, Any]:
        second = self.columns[1] if len(self.columns) > 1 else "text_pair"
        pairs = list(rows[second]) if second in rows else None
        return tokenize(processor, list(rows[self.columns[0]]), pairs, max_length or self.default_length, padding)


TEXT_CLASSIFICATION = TextClassification(
    name="text-classification",
    columns=("text",),
    label_column="label",
    head="sequence-classification",
    problem_type="single_label_classification",
    metric_names=("accuracy", "f1"),
    aliases={"label": ("labels",)},
    training_metric="accuracy",
)
