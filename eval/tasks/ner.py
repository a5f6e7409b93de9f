"""Named entities: which words are a person, a place, ...? IOB tags word by word, scored by whole entities.

The columns are those of CoNLL-2003 (Tjong Kim Sang and De Meulder 2003): a list of words and a list of as many tags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from eval.metrics import scores as metrics
from eval.metrics.types import Metric
from eval.tasks.base import Task
from eval.tasks.parts.encoding import model_inputs, tokenize
from eval.tasks.parts.outcome import Arrays, Rows, Scores

IGNORED = -100  # torch's cross entropy leaves such labels out: special tokens, padding, all but a word's first sub-word
ENTITY_F1 = Metric("entity_f1")
MARKS = ("B", "I", "O", "E", "S", "L", "U")  # of IOB, IOBES and BILOU


@dataclass(frozen=True)
class NamedEntities(Task):
    """Token classification; the first sub-word of a word speaks for it, and words beyond the length are not scored."""

    def rename_columns(
        self,
        dataset: datasets.Dataset,
        source: str,
        columns: tuple[str, ...] | None = None,
        label_column: str | None = None,
    ) -> datasets.Dataset:
        """Return the data set with the task's columns, and tags that it numbers by name numbered as the model does."""
        dataset = super().rename_columns(dataset, source, columns, label_column)
        names = tag_names(dataset.features[self.label_column])
        if names is None or not set(names) <= set(self.label2id or {}):
            return dataset
        tags = [[names[tag] for tag in row] for row in dataset[self.label_column]]
        return dataset.remove_columns(self.label_column).add_column(self.label_column, tags)

    def num_labels(self, dataset: datasets.Dataset) -> int | None:
        """Return the number of tags: of the data's names, else the largest number plus one."""
        names = self.label_names(dataset)
        return len(names) if names else 1 + max(max(row, default=0) for row in dataset[self.label_column])

    def label_names(self, dataset: datasets.Dataset) -> tuple[str, ...] | None:
        """Return the tags' names, as the data numbers them or sorted; None where it has numbers alone."""
        named = tag_names(dataset.features[self.label_column])
        if named is not None:
            return named
        found = {tag for row in dataset[self.label_column] for tag in row}
        return tuple(sorted(found)) if all(isinstance(tag, str) for tag in found) else None

    def inputs(self, rows: Rows, processor: Any, max_length: int | None = None) -> Arrays:
        """Return token inputs without labels: calibration samples need none."""
        return model_inputs(self._tokenize(rows, processor, max_length, "longest"))

    def encode(self, rows: Rows, processor: Any, max_length: int | None = None, padding: str = "max") -> Arrays:
        """Return token inputs and "labels" (N, L): the tag of a word at its first sub-word, IGNORED elsewhere."""
        encoding = self._tokenize(rows, processor, max_length, padding)
        labels = np.full(encoding["input_ids"].shape, IGNORED, dtype=np.int64)  # (N, L)
        for i, (words, tags) in enumerate(zip(rows[self.columns[0]], rows[self.label_column], strict=True)):
            if len(words) != len(tags):
                raise ValueError(f"task {self.name}: sample {i} has {len(words)} words and {len(tags)} tags")
            firsts: dict[int, int] = {}
            for position, word in enumerate(encoding.word_ids(i)):
                if word is not None:
                    firsts.setdefault(word, position)
            labels[i, list(firsts.values())] = self._tag_ids(tags)[list(firsts)]
        return {**model_inputs(encoding), "labels": labels}

    def _tokenize(self, rows: Rows, processor: Any, max_length: int | None, padding: str) -> Any:
        words, length = list(rows[self.columns[0]]), max_length or self.default_length
        return tokenize(processor, words, None, length, padding, is_split_into_words=True)

    def _tag_ids(self, tags: Sequence[Any]) -> np.ndarray:
        known: Mapping[str, int] = self.label2id or {}
        unknown = sorted({tag for tag in tags if isinstance(tag, str) and tag not in known})
        if unknown:
            raise ValueError(
                f"task {self.name}: tag(s) {', '.join(unknown[:5])} are not among the model's "
                f"({', '.join(known) or 'none named in config.json'})"
            )
        return np.array([known[tag] if isinstance(tag, str) else tag for tag in tags], dtype=np.int64)

    def reduce(self, features: Arrays, outputs: Arrays) -> Arrays:
        """Keep the tag and the predicted tag of each word: arrays of as many elements as the batch has words."""
        logits, labels = outputs["logits"], features["_labels"]  # (B, L, C), (B, L)
        if logits.ndim != 3:
            raise ValueError(
                f"task {self.name} needs logits of shape (batch, tokens, labels), got {logits.shape}; this model has "
                "another head"
            )
        if labels.max(initial=0) >= logits.shape[2]:
            raise ValueError(
                f"task {self.name}: tag {labels.max()} is outside the model's head of {logits.shape[2]} labels; give a "
                "model trained for this data, or another --data"
            )
        is_word = labels != IGNORED  # (B, L)
        row = np.broadcast_to(features["_row"][:, None], labels.shape)
        return {"row": row[is_word], "labels": labels[is_word], "predictions": logits.argmax(-1)[is_word]}

    def score(self, dataset: datasets.Dataset, kept: Arrays) -> Scores:
        """Return the entities' F1 and the words' accuracy.

        Words of one sentence are not independent, which McNemar's test supposes: nothing is said of each being right.
        """
        names = self._names(int(max(kept["labels"].max(initial=0), kept["predictions"].max(initial=0))))
        starts = np.flatnonzero(np.diff(kept["row"], prepend=-1))[1:]
        right, said = (np.split(names[kept[which]], starts) for which in ("labels", "predictions"))
        hits = kept["labels"] == kept["predictions"]
        num_right, num_words = (np.add.reduceat(x.astype(np.int64), [0, *starts]) for x in (hits, np.ones_like(hits)))
        of_words = metrics.ratio_score("accuracy", num_right, num_words)
        return Scores((entity_f1(right, said), of_words), kept["predictions"], None, len(right))

    def _names(self, largest: int) -> np.ndarray:
        """Return the tags' names by number. Raises: ValueError: the model's labels are no tags."""
        by_id = {number: name for name, number in (self.label2id or {}).items()}
        bad = [str(by_id.get(i)) for i in range(max(largest + 1, len(by_id))) if not is_tag(by_id.get(i))]
        if bad:
            raise ValueError(
                f"task {self.name}: the model's labels {', '.join(bad[:3])} are no tags such as B-PER, I-PER, O; name "
                "them in label2id and id2label of its config.json"
            )
        return np.array([by_id[i] for i in range(len(by_id))], dtype=object)

    def training_score(self, outputs: np.ndarray, labels: np.ndarray) -> float:
        """Return the share of words with the right tag."""
        is_word = labels != IGNORED
        return float((outputs.argmax(-1) == labels)[is_word].mean())


def tag_names(feature: Any) -> tuple[str, ...] | None:
    """Return the names of a column of lists of class labels, None for another column."""
    inner = getattr(feature, "feature", None)
    return tuple(inner.names) if isinstance(inner, datasets.ClassLabel) else None


def is_tag(name: str | None) -> bool:
    """Return whether a label is a tag: "O", or a mark and the kind of entity, "B-PER"."""
    return name is not None and (name == "O" or (name[:2].rstrip("-") in MARKS and len(name) > 2))


def entity_f1(right: Sequence[np.ndarray], said: Sequence[np.ndarray]) -> metrics.MetricValue:
    """Return the F1 of entities that are right in kind, start and end (micro), with its interval over sentences.

    Source: conlleval, as seqeval's default mode counts. F1 = 2 hits / (entities said + entities there).
    """
    from seqeval.metrics.sequence_labeling import get_entities  # imported here: scikit-learn's metrics take a second

    counts = []
    for tags, predicted in zip(right, said, strict=True):
        there, found = set(get_entities(list(tags))), set(get_entities(list(predicted)))
        counts.append((2 * len(there & found), len(there) + len(found)))
    return metrics.ratio_score(ENTITY_F1, *np.array(counts).T)


NER = NamedEntities(
    name="ner",
    columns=("tokens",),
    label_column="ner_tags",
    head="token-classification",
    problem_type="token_classification",
    metric_names=("entity_f1", "accuracy"),
    default_data=None,
    per_token=True,
    aliases={"tokens": ("words",), "ner_tags": ("tags", "labels")},
    training_metric="accuracy",
)
