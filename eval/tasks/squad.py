"""SQuAD: which span of the context answers the question?

Long contexts are cut into overlapping windows (Rajpurkar et al. 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from eval.metrics import scores as metrics
from eval.tasks.base import Task
from eval.tasks.parts.encoding import model_inputs, tokenize
from eval.tasks.parts.outcome import Arrays, Rows, Scores

DOC_STRIDE = 128  # tokens that neighbouring windows share; the original BERT recipe's value
MAX_ANSWER_TOKENS = 30
NUM_BEST = 20  # start and end positions of one window that are paired


@dataclass(frozen=True)
class ExtractiveAnswers(Task):
    """Exact match and token F1 of the best span over all windows of a row, compared as text."""

    def encode(self, rows: Rows, processor: Any, max_length: int | None = None, padding: str = "max") -> Arrays:
        """Return windows with "start_positions" and "end_positions".

        Both are 0 where the answer is not in the window.
        """
        encoding, offsets, row = self._windows(rows, processor, max_length, padding)
        starts, ends = np.zeros(len(row), np.int64), np.zeros(len(row), np.int64)
        for i, r in enumerate(row):
            answers = rows[self.label_column][r]
            if not len(answers["text"]):
                continue
            first = int(answers["answer_start"][0])
            last = first + len(answers["text"][0])
            in_context = offsets[i, :, 0] >= 0
            inside = np.flatnonzero(in_context & (offsets[i, :, 1] > first) & (offsets[i, :, 0] < last))
            context = np.flatnonzero(in_context)
            if len(inside) and offsets[i, context[0], 0] <= first and offsets[i, context[-1], 1] >= last:
                starts[i], ends[i] = inside[0], inside[-1]
        return {**model_inputs(encoding), "start_positions": starts, "end_positions": ends}

    def features(self, rows: Rows, processor: Any, max_length: int | None = None) -> Arrays:
        """Return windows; "_offsets" (N, L, 2) are characters in the context, -1 for question, specials and padding."""
        encoding, offsets, row = self._windows(rows, processor, max_length, "max")
        return {**model_inputs(encoding), "_row": row, "_offsets": offsets}

    def _windows(
        self, rows: Rows, processor: Any, max_length: int | None, padding: str
    ) -> tuple[Any, np.ndarray, np.ndarray]:
        length = max_length or self.default_length or 384
        if not getattr(processor, "is_fast", True):
            raise ValueError(
                f"task {self.name} needs a fast tokenizer (character offsets), got {type(processor).__name__}"
            )
        questions = [str(question).strip() for question in rows["question"]]
        longest = max(len(ids) for ids in processor(questions, add_special_tokens=True)["input_ids"])
        stride = min(DOC_STRIDE, max(0, (length - longest - 1) // 2))
        if length - longest - 1 < 1:
            raise ValueError(
                f"--seq-length {length} leaves no room for the context after a question of {longest} tokens; choose "
                "a longer one"
            )
        encoding = tokenize(
            processor, questions, list(rows["context"]), length, padding, truncation="only_second", stride=stride,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        offsets = np.asarray(encoding["offset_mapping"]).astype(np.int64)  # (N, L, 2)
        for i in range(len(offsets)):
            is_context = np.array([sequence == 1 for sequence in encoding.sequence_ids(i)])
            offsets[i, ~is_context] = -1
        return encoding, offsets, np.asarray(encoding["overflow_to_sample_mapping"]).astype(np.int64)

    def reduce(self, features: Arrays, outputs: Arrays) -> Arrays:
        """Keep the best span of each window: its score and its characters in the context."""
        offsets = features["_offsets"]
        spans = [
            best_span(start, end, offset)
            for start, end, offset in zip(outputs["start_logits"], outputs["end_logits"], offsets, strict=True)
        ]
        score, first, last = (np.array(values) for values in zip(*spans, strict=True))
        return {"row": features["_row"], "score": score, "first": first, "last": last}

    def score(self, dataset: datasets.Dataset, kept: Arrays) -> Scores:
        """Return F1 and exact match of the answers' text."""
        rows = np.unique(kept["row"])
        order = np.lexsort((-kept["score"], kept["row"]))  # by row, best window first
        best = order[np.searchsorted(kept["row"][order], rows)]
        contexts = dataset.select(rows)["context"]
        answers = dataset.select(rows)[self.label_column]
        predictions = np.array(
            [context[kept["first"][i] : kept["last"][i]] for context, i in zip(contexts, best, strict=True)],
            dtype=object,
        )
        scores = [answer_scores(text, answer["text"]) for text, answer in zip(predictions, answers, strict=True)]
        f1, exact = (np.array(values) for values in zip(*scores, strict=True))
        values = (metrics.mean_score("f1", f1), metrics.mean_score("exact_match", exact))
        return Scores(values, predictions, exact == 1, len(rows))


def best_span(start_logits: np.ndarray, end_logits: np.ndarray, offsets: np.ndarray) -> tuple[float, int, int]:
    """Return the score and the characters (first, last + 1) of the best answer in one window.

    Args:
        start_logits, end_logits: shape (L,).
        offsets: characters of each token, shape (L, 2), -1 outside the context.
    Returns: (-inf, 0, 0), the empty answer, where no span is possible.
    """
    is_context = offsets[:, 0] >= 0
    starts = _best_positions(start_logits, is_context)
    ends = _best_positions(end_logits, is_context)
    if not len(starts):
        return -np.inf, 0, 0
    length = ends[None, :] - starts[:, None]  # (starts, ends)
    score = start_logits[starts][:, None] + end_logits[ends][None, :]
    score = np.where((length >= 0) & (length < MAX_ANSWER_TOKENS), score, -np.inf)
    i, j = np.unravel_index(int(score.argmax()), score.shape)
    if not np.isfinite(score[i, j]):
        return -np.inf, 0, 0
    return float(score[i, j]), int(offsets[starts[i], 0]), int(offsets[ends[j], 1])


def _best_positions(logits: np.ndarray, is_context: np.ndarray) -> np.ndarray:
    positions = np.flatnonzero(is_context)
    return positions[np.argsort(-logits[positions], kind="stable")[:NUM_BEST]]


def answer_scores(prediction: str, answers: list[str]) -> tuple[float, float]:
    """Return (F1, exact match) in [0, 1] of one answer.

    The best over the right answers, by torchmetrics' SQuAD formula.
    """
    from torchmetrics.functional.text import squad  # imported here: it takes seconds to import

    target: Any = {"answers": {"answer_start": [0] * len(answers), "text": list(answers)}, "id": "0"}
    result = squad([{"prediction_text": prediction, "id": "0"}], [target])
    return float(result["f1"]) / 100, float(result["exact_match"]) / 100


SQUAD = ExtractiveAnswers(
    name="squad",
    columns=("question", "context"),
    label_column="answers",
    head="question-answering",
    problem_type="question_answering",
    metric_names=("f1", "exact_match"),
    output_names=("start_logits", "end_logits"),
    default_data="rajpurkar/squad",
    default_length=384,
    per_token=True,
    training_labels=("start_positions", "end_positions"),
)
