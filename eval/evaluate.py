"""One evaluation: run a system over a task's samples, score it, and hold its outputs against the reference's on the
same feeds.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from datasets import Dataset
from tqdm import tqdm

from eval.arguments import BatchOptions
from eval.batches import check_length, iter_batches, select_feeds
from eval.metrics.scores import loss_interval, mcnemar_p_value, num_flips
from eval.tasks.base import Task
from eval.tasks.parts.outcome import Arrays, Scores, check_arrays, check_scores, said_by
from eval.tensor_error import ErrorStream, TensorError, check_finite
from eval.timing.latency import Feeds, Latency, measure


class Runner(Protocol):
    """What is evaluated: a system that maps feeds to named outputs."""

    @property
    def input_names(self) -> Sequence[str]:
        """Names of the feeds it takes."""

    @property
    def output_names(self) -> Sequence[str]:
        """Names of the outputs it gives."""

    def __call__(self, feeds: Feeds) -> Feeds:
        """Return the outputs for one batch."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured; None where it was not.

    Attributes:
        task: the task's name.
        scores: the system's own scores.
        reference_scores: the reference's, on the same feeds.
        error: the errors of all outputs pooled; padding positions of per-token outputs are left out.
        errors: the same for each output by its name.
        num_flips: predictions that differ from the reference's; None for regression and language modelling.
        mcnemar_p: p value of the exact McNemar test against the reference.
        loss_interval: 95 % interval of the primary metric's loss against the reference, of paired examples.
        latency: of one call of batch_size × sequence_length.
    """

    task: str
    scores: Scores
    reference_scores: Scores | None
    error: TensorError | None
    errors: dict[str, TensorError]
    num_flips: int | None
    mcnemar_p: float | None
    loss_interval: tuple[float, float] | None
    latency: Latency | None
    sequence_length: int | None


class ReplayRunner:
    """Gives outputs that another machine computed, batch after batch, as `engine.run` wrote them.

    Raises: ValueError: if the arrays have different numbers of rows, or run out before the samples do.
    """

    def __init__(self, outputs: Arrays, source: str = "--outputs") -> None:
        lengths = {name: len(array) for name, array in outputs.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"{source}: the outputs have different numbers of rows: {lengths or 'there are none'}")
        self.input_names: tuple[str, ...] = ()
        self.output_names = tuple(outputs)
        self.num_rows = next(iter(lengths.values()))
        self._outputs, self._source, self._next = outputs, source, 0

    def take(self, num_rows: int) -> Arrays:
        """Return the next rows of every output."""
        if self._next + num_rows > self.num_rows:
            raise ValueError(
                f"{self._source} holds {self.num_rows} rows, the samples are more; give the same --task, --data, "
                "--split, "
                "--seq-length and --num-samples as to 'python -m eval.feeds'"
            )
        start, self._next = self._next, self._next + num_rows
        return {name: array[start : self._next] for name, array in self._outputs.items()}

    def check_used_up(self) -> None:
        """Raise ValueError if outputs are left over."""
        if self._next != self.num_rows:
            raise ValueError(
                f"{self._source} holds {self.num_rows} rows, the samples give {self._next}; give the same --task, "
                "--data, "
                "--split, --seq-length and --num-samples as to 'python -m eval.feeds'"
            )

    def __call__(self, feeds: Feeds) -> Feeds:
        raise RuntimeError("outputs of another machine cannot be run again; they are taken in order")


def evaluate(
    task: Task,
    dataset: Dataset,
    processor: Any,
    runner: Runner,
    *,
    reference: Runner | None = None,
    options: BatchOptions | None = None,
    iterations: int = 0,
    show_progress: bool = True,
) -> Evaluation:
    """Return what a system is worth on a task, and how far it is from the reference.

    Args:
        task: what to score; its form for this runner's outputs is chosen here.
        dataset: one split, from `task.load`.
        processor: the tokenizer or image processor that makes the inputs.
        runner: the system; a ReplayRunner for outputs computed elsewhere.
        reference: the float model's runner; each batch is computed once by each of the two.
        options: batches; see BatchOptions.
        iterations: timed calls on the first full batch; 0 measures no latency.
        show_progress: a bar on stderr.
    Raises: ValueError: on outputs or labels that do not fit the task, on NaN or infinite outputs, or if nothing was
        scored.
    """
    options = options or BatchOptions()
    task = task.for_outputs(tuple(runner.output_names))
    config = getattr(getattr(runner, "model", None), "config", None)
    options = dataclasses.replace(options, seq_length=check_length(task, options.seq_length, config, processor))
    if reference is not None:
        task.for_outputs(tuple(reference.output_names))
    kept: dict[str, list[np.ndarray]] = defaultdict(list)
    reference_kept: dict[str, list[np.ndarray]] = defaultdict(list)
    streams = {name: ErrorStream() for name in task.output_names}
    pooled = ErrorStream()
    first_feeds: Feeds | None = None
    sequence_length = None
    num_rows = options.num_samples or len(dataset)
    with tqdm(total=num_rows, desc=task.name, unit="sample", disable=not show_progress, file=sys.stderr) as bar:
        for features in iter_batches(task, dataset, processor, options):
            num_features = len(features["_row"])
            if isinstance(runner, ReplayRunner):
                outputs = runner.take(num_features)
            else:
                feeds = select_feeds(features, runner.input_names)
                first_feeds = first_feeds or feeds
                outputs = runner(feeds)
            if "input_ids" in features:
                sequence_length = max(sequence_length or 0, features["input_ids"].shape[1])
            _check_outputs(task, outputs, num_features)
            _keep(kept, _reduced(task, features, outputs))
            if reference is not None:
                expected = reference(select_feeds(features, reference.input_names))
                _keep(reference_kept, _reduced(task, features, expected))
                for name, stream in streams.items():
                    x, ref = _compared(task, features, name, outputs, expected)
                    stream.add(name, x, ref)
                    pooled.add(name, x, ref)
            bar.update(len(np.unique(features["_row"])))
    if not kept:
        raise ValueError(f"task {task.name}: there are no samples to score; check --data, --split and --num-samples")
    if isinstance(runner, ReplayRunner):
        runner.check_used_up()
    scores = _scored(task, dataset, kept)
    reference_scores = _scored(task, dataset, reference_kept) if reference is not None else None
    latency = (
        measure(runner, fill_batch(first_feeds, options.batch_size), iterations) if first_feeds and iterations else None
    )
    return Evaluation(
        task=task.name,
        scores=scores,
        reference_scores=reference_scores,
        error=pooled.result() if reference is not None else None,
        errors={name: stream.result() for name, stream in streams.items()} if reference is not None else {},
        num_flips=_flips(scores, reference_scores),
        mcnemar_p=_mcnemar(scores, reference_scores),
        loss_interval=loss_interval(scores.metrics[0], reference_scores.metrics[0]) if reference_scores else None,
        latency=latency,
        sequence_length=sequence_length,
    )


def fill_batch(feeds: Feeds, batch_size: int) -> Feeds:
    """Return the feeds with exactly `batch_size` rows, repeating them where there are fewer."""
    return {name: np.resize(array, (batch_size, *array.shape[1:])) for name, array in feeds.items()}


def _compared(
    task: Task, features: Arrays, name: str, outputs: Feeds, expected: Feeds
) -> tuple[np.ndarray, np.ndarray]:
    """Return the elements of one output that count: those of padding tokens mean nothing."""
    x, ref = outputs[name], expected[name]
    if x.shape != ref.shape:
        raise ValueError(
            f"output {name} has shape {x.shape}, the reference's {ref.shape}; --reference must be the float model it "
            "was made from"
        )
    if task.per_token and "attention_mask" in features:
        is_token = features["attention_mask"].astype(bool)  # (B, L)
        return x[is_token], ref[is_token]
    return x, ref


def _check_outputs(task: Task, outputs: Feeds, num_features: int) -> None:
    for name in task.output_names:
        check_finite(f"output {name}", outputs[name])
        if len(outputs[name]) != num_features:
            raise ValueError(f"output {name} has {len(outputs[name])} rows for a batch of {num_features} samples")


def _keep(kept: dict[str, list[np.ndarray]], arrays: Arrays) -> None:
    for name, array in arrays.items():
        kept[name].append(array)


def _reduced(task: Task, features: Arrays, outputs: Feeds) -> Arrays:
    with said_by(task.name, "reduce"):
        found = task.reduce(features, outputs)
    check_arrays(task.name, "reduce", found)
    return found


def _scored(task: Task, dataset: Dataset, kept: dict[str, list[np.ndarray]]) -> Scores:
    with said_by(task.name, "score"):
        found = task.score(dataset, _joined(kept))
    return check_scores(task.name, found)


def _joined(kept: dict[str, list[np.ndarray]]) -> Arrays:
    return {name: np.concatenate(arrays) for name, arrays in kept.items()}


def _flips(scores: Scores, reference: Scores | None) -> int | None:
    if reference is None or scores.predictions is None or reference.predictions is None:
        return None
    return num_flips(scores.predictions, reference.predictions)


def _mcnemar(scores: Scores, reference: Scores | None) -> float | None:
    if reference is None or scores.is_correct is None or reference.is_correct is None:
        return None
    return mcnemar_p_value(scores.is_correct, reference.is_correct)
