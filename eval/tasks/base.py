"""What a task is: raw columns in, model inputs out, outputs to scores.

One subclass instance per task, registered in `__init__`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from eval.metrics.scores import MetricValue
from eval.tasks.data import load_split

Arrays = dict[str, np.ndarray]
Rows = Mapping[str, Any]

# Model inputs that a processor may give; everything else in a dict of features is for scoring and starts with "_".
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
ROWS_PER_CHUNK = 256
HEADS = ("sequence-classification", "question-answering", "image-classification", "causal-lm", "feature-extraction")


@dataclass(frozen=True)
class Scores:
    """What a system's outputs are worth on a task.

    Attributes:
        metrics: the primary metric first.
        predictions: one discrete prediction of each example, shape (num_examples,), or None (regression, language
            modelling).
        is_correct: whether each prediction is right, shape (num_examples,), or None.
        num_examples: scored examples (rows; blocks of tokens in language modelling).
    """

    metrics: tuple[MetricValue, ...]
    predictions: np.ndarray | None
    is_correct: np.ndarray | None
    num_examples: int


@dataclass(frozen=True)
class Task:
    """One thing a model is evaluated on, and trained for.

    Attributes:
        name: the registry's name.
        columns: raw columns of one sample; these are what a calibration sample needs too.
        label_column: the raw column with the right answer.
        head: the auto-class head, one of HEADS.
        problem_type: as in the model's config ("single_label_classification", "regression", ...).
        metric_names: the primary one first.
        output_names: outputs of a model that this task can score.
        default_data: "hub id" or "hub id:config" used without --data, None where --data is required.
        default_length: tokens of a sample without --seq-length, None for images.
        per_token: whether outputs have a value per token, so that padding is left out of the errors.
        aliases: other usual names of a column, canonical name → alternatives.
        label2id: names of labels where the data gives text, from the model's config.
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
            columns, label_column: the data's own names, where they are neither the task's nor known aliases.
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
        missing, renamed = [], {}
        for canonical, wanted in own.items():
            found = next(
                (name for name in (wanted, *self.aliases.get(canonical, ())) if name in dataset.column_names), None
            )
            if found is None:
                missing.append(wanted)
            elif found != canonical:
                renamed[found] = canonical
        if missing:
            raise ValueError(
                f"task {self.name}: {source} has no column {', '.join(missing)}; it has "
                f"{', '.join(dataset.column_names)}. "
                "Name them with --column and --label-column, or choose another --task"
            )
        # A column that already bears a canonical name but was overridden would collide with the renamed one.
        dataset = dataset.remove_columns([name for name in renamed.values() if name in dataset.column_names])
        return dataset.rename_columns(renamed) if renamed else dataset

    def num_labels(self, dataset: Dataset) -> int | None:
        """Return how many outputs the head needs for this data, None where the head has a fixed form."""
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
        raise NotImplementedError

    def features(self, rows: Rows, processor: Any, max_length: int | None = None) -> Arrays:
        """Return model inputs padded to max_length, "_row" (which row each belongs to) and "_..." arrays that scoring
        needs.
        """
        raise NotImplementedError

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
            features = self.features(dataset[indices.tolist()], processor, max_length)
            features["_row"] = indices[features["_row"]]
            yield features

    def reduce(self, features: Arrays, outputs: Arrays) -> Arrays:
        """Return what scoring keeps of one batch: small arrays, one element per feature."""
        raise NotImplementedError

    def score(self, dataset: Dataset, kept: Arrays) -> Scores:
        """Return the scores from what `reduce` kept, concatenated over all batches in order."""
        raise NotImplementedError


def choose_rows(num_rows: int, num_samples: int | None, seed: int) -> np.ndarray:
    """Return sorted row numbers.

    All of them, or `num_samples` drawn without replacement. Raises: ValueError: below 1.
    """
    if num_samples is None or num_samples >= num_rows:
        return np.arange(num_rows)
    if num_samples < 1:
        raise ValueError(f"--num-samples must be at least 1, got {num_samples}")
    return np.sort(np.random.default_rng(seed).choice(num_rows, size=num_samples, replace=False))


def tokenize(
    tokenizer: Any,
    texts: list[str],
    pairs: list[str] | None,
    max_length: int | None,
    padding: str = "max",
    **options: Any,
) -> Any:
    """Return the tokenizer's numpy encoding of texts or text pairs, cut to max_length and padded.

    Raises: ValueError: if the processor is no tokenizer, a text is missing, or the tokenizer cannot pad.
    """
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        got = "no processor" if tokenizer is None else f"a {type(tokenizer).__name__}"
        raise ValueError(
            f"this task's samples are text and need a tokenizer, the model has {got}; choose a text model or an "
            "image task"
        )
    for column in (texts, pairs or []):
        bad = next((i for i, text in enumerate(column) if not isinstance(text, str)), None)
        if bad is not None:
            raise ValueError(
                f"sample {bad} is not text but {type(column[bad]).__name__}; choose the text column with --column"
            )
    if padding not in ("max", "longest"):
        raise ValueError(f"padding '{padding}' is not known; allowed: max, longest")
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "the tokenizer has no pad token; set one and save it with the model (tokenizer.pad_token = "
            "tokenizer.eos_token)"
        )
    encoding = tokenizer(
        texts, pairs, max_length=max_length, truncation=options.pop("truncation", True),
        padding="max_length" if padding == "max" else "longest", return_tensors="np", **options,
    )  # fmt: skip
    for name in MODEL_INPUTS:
        if name in encoding:
            encoding[name] = np.asarray(encoding[name]).astype(np.int64)
    return encoding


def model_inputs(encoding: Mapping[str, Any]) -> Arrays:
    """Return only the model inputs of a processor's encoding."""
    return {name: np.asarray(encoding[name]) for name in MODEL_INPUTS if name in encoding}
