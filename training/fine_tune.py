"""What `train_qat.py` does: calibrate or take a checkpoint, train, save, and score float, PTQ and QAT on the same data.

The Trainer and the quantizers are quant's; the samples and scores are calib's and eval's: here they meet.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainingArguments

from calib.apply import apply_statistics
from calib.collect import collect
from eval.arguments import BatchOptions
from eval.batches import check_length
from eval.evaluate import Evaluation, evaluate
from eval.pytorch_runner import PyTorchRunner
from eval.tasks import get_task
from eval.tasks.base import Task
from eval.tasks.parts.outcome import check_arrays, said_by
from quant.checkpoint import load_checkpoint, read_description, save_checkpoint
from quant.insert import insert_quantizers
from quant.models.pretrained import LoadedModel, has_head, load_float_model
from quant.recipe import Recipe, load_recipe, recipe_from_dict
from quant.sites.settings import check_method
from quant.sites.site import quantization_of
from training.arguments import FineTuneArguments
from training.qat import QatTrainer, finish_qat, start_qat

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs before its first step.

    Attributes:
        start: the float model as it came, None if its head is new.
        train: the training samples, one a row, as `task.training_set` cuts them.
        validation: the split that is scored.
    """

    loaded: LoadedModel
    start: Any
    teacher: Any
    task: Task
    train: Dataset
    validation: Dataset
    recipe: Recipe | None
    seq_length: int | None


class Collator:
    """Makes a training batch of raw rows: inputs and labels as tensors. Runs in the data loader's workers too."""

    def __init__(self, task: Task, processor: Any, seq_length: int | None, padding: str) -> None:
        self.task, self.processor, self.seq_length, self.padding = task, processor, seq_length, padding

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        with said_by(self.task.name, "encode"):
            arrays = self.task.encode(columns, self.processor, self.seq_length, self.padding)
        check_arrays(self.task.name, "encode", arrays)
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def prepare(
    arguments: FineTuneArguments, training: TrainingArguments, recipe: Recipe | None, resume: str | None = None
) -> Prepared:
    """Load model, data and quantizers; calibrate where neither --init nor a run to resume brings the ranges.

    Raises: ValueError: a checkpoint of other rules, or labels that do not fit the head.
    """
    task = get_task(arguments.task)
    loaded = load_float_model(arguments.model, head=None)
    config: Any = loaded.model.config
    task = task.with_labels(config.label2id)
    train, validation = task.load(arguments.data, "train"), task.load(arguments.data, "validation")
    wanted, given = task.num_labels(train), int(config.num_labels or 0)
    why_new = None
    if not has_head(loaded.model, task.head):
        why_new = f"{arguments.model} is a {type(loaded.model).__name__} and has no {task.head} head"
    elif wanted is not None and wanted > given:
        why_new = f"the head of {arguments.model} has {given} outputs and the data {wanted} labels"
    if why_new:
        if recipe is not None:
            raise ValueError(
                f"{why_new}; train the float model first: python train_qat.py --model {arguments.model} "
                f"--task {arguments.task} --recipe none --out ..."
            )
        loaded = load_float_model(arguments.model, head=task.head, num_labels=wanted)
        task = _name_labels(loaded.model.config, task, task.label_names(train))
        logger.warning("%s: its head is trained anew", why_new)
    seq_length = check_length(task, arguments.seq_length, loaded.model.config, loaded.processor)
    train = task.training_set(train, loaded.processor, seq_length)
    start = None if why_new else copy.deepcopy(loaded.model).eval().requires_grad_(False)
    teacher = start if recipe is not None and arguments.teach and recipe.qat.distills else None
    source = resume or arguments.init
    if recipe is not None and source:
        loaded = _take_checkpoint(source, recipe, arguments, loaded.model)
        recipe = quantization_of(loaded.model).recipe
    loaded.model.to(training.device)  # type: ignore[arg-type]
    if recipe is not None and not source:
        sites = insert_quantizers(loaded.model, recipe)
        if arguments.method:
            check_method(arguments.method, sites, recipe)
        batches = list(calibration_batches(task, train, loaded.processor, arguments, training, seq_length))
        statistics = collect(loaded.model, batches, seed=training.seed, progress=not training.disable_tqdm)
        method = arguments.method or ("mse" if recipe.qat.activation_ranges == "learned" else None)
        recipe = apply_statistics(loaded.model, statistics, method)
    return Prepared(loaded, start, teacher, task, train, validation, recipe, seq_length)


def _name_labels(config: Any, task: Task, names: tuple[str, ...] | None) -> Task:
    """Write the labels' names into the config of a model with a new head, and return the task that knows them."""
    if names is None:
        return task
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    return task.with_labels(config.label2id)


def _take_checkpoint(source: str, recipe: Recipe, arguments: FineTuneArguments, model: Any) -> LoadedModel:
    """Return the checkpoint to start from, under the given recipe's options of QAT.

    Raises: ValueError: it was made by other rules, or from a model with other layers than `model`.
    """
    theirs = recipe_from_dict(read_description(source)["recipe"])
    other = [name for name in ("rules", "smoothquant") if getattr(theirs, name) != getattr(recipe, name)]
    if other:
        raise ValueError(
            f"{source} was made by recipe '{theirs.name}', whose {' and '.join(other)} are not those of "
            f"'{recipe.name}'; give --recipe {theirs.name}, or a file that extends it and changes its qat alone"
        )
    if theirs.qat != recipe.qat:
        logger.warning("the qat options are those of recipe '%s', not those that %s bears", recipe.name, source)
    taken = load_checkpoint(source)
    found, wanted = ({key: x.shape for key, x in each.state_dict().items()} for each in (taken.model, model))
    other = [key for key, shape in wanted.items() if found.get(key) != shape]
    if type(taken.model) is not type(model) or other:
        raise ValueError(
            f"{source} is of another model, a {type(taken.model).__name__}; --model {arguments.model} is a "
            f"{type(model).__name__}{f' with another {other[0]}' if other else ''}. Give the --model it was made from"
        )
    used = dataclasses.replace(recipe, calibrator=theirs.calibrator)
    taken.model.quantization = dataclasses.replace(quantization_of(taken.model), recipe=used)  # type: ignore[assignment]
    return taken


def calibration_batches(
    task: Task, train: Dataset, processor: Any, arguments: FineTuneArguments, training: TrainingArguments,
    seq_length: int | None,
) -> Iterator[dict[str, Tensor]]:  # fmt: skip
    """Yield seeded batches of training samples without labels; under several processes each gets its share."""
    rng = np.random.default_rng(training.seed)
    rows = rng.permutation(len(train))[: arguments.num_samples]
    rows = rows[training.process_index :: training.world_size]
    collate = Collator(task, processor, seq_length, "longest")
    for start in range(0, len(rows), 32):
        batch = collate([train[int(row)] for row in rows[start : start + 32]])
        yield {k: v for k, v in batch.items() if k not in task.training_labels}


def make_trainer(prepared: Prepared, arguments: FineTuneArguments, training: TrainingArguments) -> QatTrainer:
    """Return the trainer; the model's ranges are being trained from here on."""
    if prepared.recipe is not None:
        start_qat(prepared.loaded.model, prepared.recipe.qat)
    processor, task = prepared.loaded.processor, prepared.task
    training.label_names = training.label_names or list(task.training_labels)
    validation = task.training_set(prepared.validation, processor, prepared.seq_length)
    return QatTrainer(
        model=prepared.loaded.model, args=training, train_dataset=prepared.train, eval_dataset=validation,
        data_collator=Collator(task, processor, prepared.seq_length, arguments.padding),
        processing_class=processor, compute_metrics=_metrics_of(task),
        options=prepared.recipe.qat if prepared.recipe else load_recipe("int8_linear").qat, teacher=prepared.teacher,
    )  # fmt: skip


def _metrics_of(task: Task) -> Callable[[Any], dict[str, float]] | None:
    """Return what the Trainer calls after each evaluation; None where the task has nothing but the loss."""
    name = task.training_metric
    if name is None:
        return None

    def measure(prediction: Any) -> dict[str, float]:
        outputs, labels = (x[0] if isinstance(x, tuple) else x for x in (prediction.predictions, prediction.label_ids))
        with said_by(task.name, "training_score"):
            return {name: float(task.training_score(outputs, labels))}

    return measure


def score(prepared: Prepared, loaded: LoadedModel, training: TrainingArguments) -> Evaluation:
    """Return the validation scores of a model, and its distance from the float model that the run started from."""
    device = str(training.device)
    runner = PyTorchRunner(loaded, device)
    against = None
    if prepared.start is not None:
        against = PyTorchRunner(LoadedModel(prepared.start, loaded.processor, "float"), device)
    options = BatchOptions(training.per_device_eval_batch_size, prepared.seq_length, "longest")
    return evaluate(prepared.task, prepared.validation, loaded.processor, runner, reference=against, options=options,
                    show_progress=not training.disable_tqdm)  # fmt: skip


def save_result(prepared: Prepared, out: Path) -> None:
    """Write the trained model into OUT: the checkpoint folder that export.py takes, or the plain float model."""
    model, processor = prepared.loaded.model, prepared.loaded.processor
    if prepared.recipe is None:
        model.save_pretrained(out)
        if processor is not None:
            processor.save_pretrained(out)
        return
    finish_qat(model)
    save_checkpoint(
        model, out, processor=processor, provenance={"trained_by": "train_qat.py", "model": prepared.loaded.name}
    )


def plot_curves(history: list[dict[str, float]], path: Path, metric: str | None = None) -> None:
    """Draw the training loss and, where it was measured, the task's training metric on validation over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    loss = [(row["step"], row["loss"]) for row in history if "loss" in row]
    scores = [(row["step"], row[f"eval_{metric}"]) for row in history if f"eval_{metric}" in row]
    if loss:
        axis.plot(*zip(*loss, strict=True), color="tab:blue", marker=".", label="training loss")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("step")
    axis.set_ylabel("training loss")
    axis.set_ylim(bottom=0)
    if scores:
        right = axis.twinx()
        right.plot(*zip(*scores, strict=True), color="tab:orange", marker="o", label=f"validation {metric}")
        right.set_ylabel(f"validation {metric}")
    if loss or scores:
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
