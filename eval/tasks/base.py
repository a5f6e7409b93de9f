"""What a task is: raw columns in, model inputs out, outputs to scores.

A task is one file that makes one instance of a subclass: one of this folder, which the registry in `__init__` names in
a line, or the user's own, behind `--task path/to/my_task.py`. Nothing outside that file knows a task by its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from eval.tasks.parts.data import load_split
from eval.tasks.parts.outcome import Arrays, Rows, Scores, check_features, said_by

ROWS_PER_CHUNK = 256
# Kinds of problem whose answer is the largest of several values; not a regression, nor labels that hold side by side.
CHOOSING = ("single_label_classification", "token_classification", "question_answering", "language_modeling")


@dataclass(frozen=True)
class Task:
    """One thing a model is evaluated on, and trained for.

    What a subclass says: `encode` (samples as model inputs, with their labels), `reduce` and `score`; `features` where
    scoring needs more than the labels or a row gives several inputs; `num_labels` for a head of the data's size;
    `inputs` where its columns are neither plain text nor images.

    Attributes:
        name: as rows and reports show it, and as --task names it.
        columns: raw columns of one sample; these are what a calibration sample needs too.
        label_column: the raw column with the right answer.
        head: what the model must have: a head of `quant.models.pretrained.HEADS`, or an auto class of transformers by
            its name ("AutoModelForMaskedLM").
        problem_type: as in the model's config ("single_label_classification", "regression", ...); those of `CHOOSING`
            have answers.
        metric_names: the primary one first; what they are stands in the `MetricValue`s that `score` returns.
        output_names: outputs of a model that this task can score.
        default_data: "hub id" or "hub id:config" used without --data, None where --data is required.
        default_length: tokens of a sample without --seq-length, None for images.
        per_token: whether outputs have a value per token, so that padding is left out of the errors.
        aliases: other usual names of a column, canonical name → alternatives.
        label2id: names of labels where the data gives text, from the model's config.
        training_labels: what `encode` returns beside the model's inputs, by the names that the model's `forward` has.
        training_metric: name of what `training_score` returns, drawn over the steps; None has the loss alone.
        file, file_digest: of a user's own task: its path, and sha256 over its text, 16 digits.
    """

    name: str
    columns: tuple[str, ...]
    label_column: str
    head: str
    problem_type: str
    metric_names: tuple[str, ...]
    output_names: tuple[str, ...] = ("logits",)
    default_data: str | None = None
    default_length: int | None = 128
    per_token: bool = False
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label2id: Mapping[str, int] | None = None
    training_labels: tuple[str, ...] = ("labels",)
    training_metric: str | None = None
    file: str | None = None
    file_digest: str | None = None

    @property
    def answers(self) -> tuple[str, ...]:
        """Outputs whose largest value along the last axis is the model's answer, or a part of it.

        An answer is one of a sample, of a token, or a span's start and end; a problem type outside `CHOOSING` has none.
        """
        return self.output_names if self.problem_type in CHOOSING else ()

    @property
    def is_text(self) -> bool:
        """Whether samples are text, turned into inputs by a tokenizer; else images."""
        return self.default_length is not None

    def load(
        self,
        data: str | Path | None = None,
        split: str = "validation",
        *,
        columns: tuple[str, ...] | None = None,
        label_column: str | None = None,
    ) -> Dataset:
        """Return one split with its columns under the task's own names.

        Args:
            data: hub id ("path" or "path:config"), folder or file; None takes `default_data`.
            split: the split's name.
            columns: the data's own names, where they are neither the task's nor known aliases.
            label_column: the same of the labels.
        Raises: ValueError: if a column is missing (the data's columns are named); FileNotFoundError: for a missing
            path.
        """
        source = data if data is not None else self.default_data
        if source is None:
            raise ValueError(
                f"task {self.name} has no default data set; give --data (a hub id or a folder with {split}.parquet)"
            )
        dataset = load_split(source, split)
        return self.rename_columns(dataset, str(source), columns, label_column)

    def rename_columns(
        self, dataset: Dataset, source: str, columns: tuple[str, ...] | None = None, label_column: str | None = None
    ) -> Dataset:
        """Return the data set with the task's own column names; see `load`."""
        if columns and len(columns) != len(self.columns):
            raise ValueError(
                f"task {self.name} takes {len(self.columns)} column(s) ({', '.join(self.columns)}), got --column "
                f"{' '.join(columns)}"
            )
        own = dict(zip(self.columns, columns or self.columns, strict=True)) | {
            self.label_column: label_column or self.label_column
        }
        renamed = {found: name for name, found in self.find_columns(dataset, source, own).items() if found != name}
        # A column that already bears a canonical name but was overridden would collide with the renamed one.
        dataset = dataset.remove_columns([name for name in renamed.values() if name in dataset.column_names])
        return dataset.rename_columns(renamed) if renamed else dataset

    def find_columns(self, dataset: Dataset, source: str, wanted: Mapping[str, str]) -> dict[str, str]:
        """Return the data's own name of each of the task's columns: the wanted one, or an alias.

        Raises: ValueError: naming every one that is missing.
        """
        found = {
            canonical: next((n for n in (name, *self.aliases.get(canonical, ())) if n in dataset.column_names), None)
            for canonical, name in wanted.items()
        }
        missing = [wanted[canonical] for canonical, name in found.items() if name is None]
        if missing:
            raise ValueError(
                f"task {self.name}: {source} has no column {', '.join(missing)}; it has "
                f"{', '.join(dataset.column_names)}. "
                "Name them with --column and --label-column, or choose another --task"
            )
        return {canonical: name for canonical, name in found.items() if name is not None}

    def sample_columns(self, given: Sequence[str] | None = None) -> tuple[str, ...] | None:
        """Return the columns of one calibration sample: those given, else the task's own; None: the usual names."""
        return tuple(given) if given else self.columns

    def num_labels(self, dataset: Dataset) -> int | None:
        """Return how many outputs the head needs for this data, None where the head has a fixed form."""
        return None

    def label_names(self, dataset: Dataset) -> tuple[str, ...] | None:
        """Return the labels' names, which a head that is trained anew keeps in its config; None where it needs none."""
        return None

    def for_outputs(self, output_names: tuple[str, ...]) -> Task:
        """Return the task as a model with these outputs solves it.

        Raises: ValueError: if none of them can be scored.
        """
        if not set(self.output_names) <= set(output_names):
            raise ValueError(
                f"task {self.name} scores {', '.join(self.output_names)}; this model gives {', '.join(output_names)}. "
                f"Give a model with a {self.head} head, or another --task"
            )
        return self

    def with_labels(self, label2id: Mapping[str, int] | None) -> Task:
        """Return the task with the names of the model's labels, needed where the data gives labels as text."""
        return dataclasses.replace(self, label2id=dict(label2id)) if label2id else self

    def training_set(self, dataset: Dataset, processor: Any, max_length: int | None = None) -> Dataset:
        """Return a split with one training sample a row, whose rows `encode` takes: here the split as it is."""
        return dataset

    def encode(self, rows: Rows, processor: Any, max_length: int | None = None, padding: str = "max") -> Arrays:
        """Return model inputs and labels for training: "labels" (or "start_positions" and "end_positions").

        Args:
            rows: column → list of values, as `Dataset[i:j]` or `Dataset.map(batched=True)` gives them.
            processor: the model's tokenizer or image processor.
            max_length: tokens of a sample; None takes `default_length`. Longer samples are cut.
            padding: "max" (to max_length) or "longest" (of these rows).
        """
        raise NotImplementedError(f"task {self.name} has no `encode`: it cannot make model inputs of its samples")

    def inputs(self, rows: Rows, processor: Any, max_length: int | None = None) -> Arrays:
        """Return the model's inputs alone, one sample a row: for calibration, of columns that are no text or image."""
        raise NotImplementedError(f"task {self.name} has no `inputs`")

    @property
    def makes_own_inputs(self) -> bool:
        """Whether calibration asks `inputs`, as the task's columns are neither text nor images."""
        return type(self).inputs is not Task.inputs

    def features(self, rows: Rows, processor: Any, max_length: int | None = None) -> Arrays:
        """Return model inputs padded to max_length, "_row" (which row each belongs to) and "_..." arrays that scoring
        needs: here what `encode` returns, its labels with "_" before their names.
        """
        arrays = self.encode(rows, processor, max_length)
        given = {f"_{name}" if name in self.training_labels else name: array for name, array in arrays.items()}
        return {**given, "_row": np.arange(len(next(iter(arrays.values()))))}

    def iter_features(
        self,
        dataset: Dataset,
        processor: Any,
        max_length: int | None = None,
        num_samples: int | None = None,
        seed: int = 0,
    ) -> Iterator[Arrays]:
        """Yield features of the data set in chunks; `_row` counts over the whole data set.

        Args:
            num_samples: how many rows, drawn with `seed` (None: all, in order).
        """
        chosen = choose_rows(len(dataset), num_samples, seed)
        for start in range(0, len(chosen), ROWS_PER_CHUNK):
            indices = chosen[start : start + ROWS_PER_CHUNK]
            with said_by(self.name, "features"):
                features = self.features(dataset[indices.tolist()], processor, max_length)
            check_features(self.name, features)
            features["_row"] = indices[features["_row"]]
            yield features

    def reduce(self, features: Arrays, outputs: Arrays) -> Arrays:
        """Return what scoring keeps of one batch: small arrays, joined over all batches along their first axis."""
        raise NotImplementedError(f"task {self.name} has no `reduce`: it cannot score a batch")

    def score(self, dataset: Dataset, kept: Arrays) -> Scores:
        """Return the scores from what `reduce` kept, concatenated over all batches in order."""
        raise NotImplementedError(f"task {self.name} has no `score`")

    def training_score(self, outputs: np.ndarray, labels: np.ndarray) -> float:
        """Return `training_metric` of the first output and the first of `training_labels`, padded with -100."""
        raise NotImplementedError(f"task {self.name} names the training metric {self.training_metric} and has no "
                                  "`training_score`")  # fmt: skip


def choose_rows(num_rows: int, num_samples: int | None, seed: int) -> np.ndarray:
    """Return sorted row numbers.

    All of them, or `num_samples` drawn without replacement. Raises: ValueError: below 1.
    """
    if num_samples is None or num_samples >= num_rows:
        return np.arange(num_rows)
    if num_samples < 1:
        raise ValueError(f"--num-samples must be at least 1, got {num_samples}")
    return np.sort(np.random.default_rng(seed).choice(num_rows, size=num_samples, replace=False))
