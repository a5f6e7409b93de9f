"""Quantization-aware training on transformers' Trainer: learned ranges, distillation, checkpoints that resume."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from quant.checkpoint import CHECKPOINT_FILE, load_quantizers, read_description, save_checkpoint
from quant.dropout import freeze_statistics, release_statistics, switch_dropout_back, switch_dropout_off
from quant.modules import weight_range
from quant.recipe import QatOptions
from quant.sites.roles import Role
from quant.sites.site import quantization_of, site_quantizers
from quant.tensor_quantizer import named_quantizers
from training.distillation import Teacher, distillation_loss, extra_outputs
from training.resume import last_whole_checkpoint


def start_qat(model: nn.Module, options: QatOptions) -> None:
    """Put the calibrated model's ranges into training as the options say (in place).

    From here to `finish_qat` a forward in training mode computes what is exported: batch norms go by their running
    statistics, and unless `dropout` is on nothing in the model is random.
    """
    if (quantization := getattr(model, "quantization", None)) is not None:  # trained weights cannot be unfolded
        model.quantization = dataclasses.replace(quantization, folds=())
    freeze_statistics(model)
    if not options.dropout:
        switch_dropout_off(model)
    for site, quantizer in site_quantizers(model):
        if not quantizer.enabled or site.role is Role.SOFTMAX:
            continue  # a probability's range is 0 to 1 whatever the training does
        ranges = options.weight_ranges if site.is_weight else options.activation_ranges
        if ranges == "learned":
            quantizer.start_learning()
        quantizer.retakes_range = ranges == "retaken"


def finish_qat(model: nn.Module) -> None:
    """Store the trained ranges as amax (in place): the model is then like any calibrated one, dropout included."""
    switch_dropout_back(model)
    release_statistics(model)
    for site, quantizer in site_quantizers(model):
        if quantizer.retakes_range:
            quantizer.set_amax(weight_range(model.get_submodule(site.module)))
        quantizer.finish_learning()


class LogOnStderr(TrainerCallback):
    """Writes a line of what was measured since the last one to stderr; stdout is the result's alone."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write the line, above the bar where there is one."""
        if state.is_world_process_zero and logs:
            shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in logs.items() if k != "total_flos"}
            tqdm.write(f"step {state.global_step}: " + ", ".join(f"{k} {v}" for k, v in shown.items()), file=sys.stderr)


class ProgressBar(ProgressCallback):
    """transformers' progress bar without its log lines, which go to stdout."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Leave the line to LogOnStderr."""

    def close(self) -> None:
        """End the bars of a training that did not: an error's line after an open bar is drawn over at exit."""
        for bar in (self.prediction_bar, self.training_bar):
            if bar is not None:
                bar.close()
        self.prediction_bar = self.training_bar = None


class QatTrainer(Trainer):
    """Trainer for a quantized model (or, without quantizers, a float one).

    Args:
        options: of the recipe. teacher: the float model, or None for the labels alone.
    Checkpoints are int8kit checkpoint folders with the Trainer's state beside them; a resume calibrates nothing.
    Raises: RuntimeError: the loss is NaN or infinite (the step and the range that moved most are named).
    """

    def __init__(self, *args: Any, options: QatOptions, teacher: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for printing in (PrinterCallback, ProgressCallback):  # they print to stdout, which is the result's
            self.pop_callback(printing)
        self.add_callback(LogOnStderr)
        if not self.args.disable_tqdm:
            self.add_callback(ProgressBar)
        if self.is_fsdp_enabled:
            _fit_fsdp(self.accelerator.state.fsdp_plugin, self.model)
        self.options = options
        self.teacher = Teacher(teacher, options) if teacher is not None else None
        self.model_accepts_loss_kwargs = False  # the loss is a mean; Trainer divides it by the accumulation steps
        self.is_quantized = hasattr(self.model, "quantization")
        self._bad_step: Tensor | None = None
        self._start = {name: q.current_amax().detach().clone() for name, q in self._ranges()}

    def _ranges(self) -> list[tuple[str, Any]]:
        if not self.is_quantized:
            return []
        return [(name, q) for name, q in named_quantizers(self.model) if q.enabled and q.is_calibrated]  # type: ignore[arg-type]

    def create_optimizer(self, model: Any = None) -> Any:
        """Return the optimizer; the ranges are a group of their own, without weight decay."""
        if self.optimizer is not None:
            return self.optimizer
        trained_model: Any = model or self.model
        trained = {n: p for n, p in trained_model.named_parameters() if p.requires_grad}
        decayed = set(self.get_decay_parameter_names(trained_model))
        learned = {id(q.log2_amax) for _, q in named_quantizers(trained_model) if q.log2_amax is not None}
        ranges = [p for p in trained.values() if id(p) in learned]
        plain = [(n, p) for n, p in trained.items() if id(p) not in learned]
        optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, trained_model)
        groups: list[dict[str, Any]] = [
            {"params": [p for n, p in plain if n in decayed], "weight_decay": self.args.weight_decay},
            {"params": [p for n, p in plain if n not in decayed], "weight_decay": 0.0},
        ]
        if ranges:
            groups.append({"params": ranges, "weight_decay": 0.0, "lr": self.options.scale_learning_rate})
        self.optimizer = optimizer_class(groups, **kwargs)
        return self.optimizer

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a batch (and the outputs): the labels' alone, or with distillation from the teacher."""
        if self.teacher is None or not model.training:
            outputs = model(**inputs)
            loss = outputs["loss"]
        else:
            features = {name: x for name, x in inputs.items() if name not in self.label_names}
            outputs = model(**inputs, **extra_outputs(self.options))
            loss = distillation_loss(outputs, self.teacher(features), inputs.get("attention_mask"), self.options)
            if self.options.label_loss:
                loss = loss + self.options.label_loss * outputs["loss"]
        return (loss, outputs) if return_outputs else loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as Trainer does; the progress bars are closed also where it fails."""
        try:
            return super().train(*args, **kwargs)
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, ProgressBar):
                    callback.close()

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take one step; remembers on the device, without waiting for it, the first step whose loss was not finite."""
        loss = super().training_step(*args, **kwargs)
        step = torch.full((), self.state.global_step + 1, dtype=torch.int64, device=loss.device)
        none = torch.full_like(step, -1)
        before = none if self._bad_step is None else self._bad_step
        self._bad_step = torch.where((before < 0) & ~torch.isfinite(loss.detach()), step, before)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, but stop at a loss that was not finite."""
        self._refuse_bad_loss()
        super().log(logs, *args, **kwargs)

    def _refuse_bad_loss(self) -> None:
        if self._bad_step is None:
            return
        steps = self.accelerator.gather(self._bad_step.reshape(1))  # a loss is its rank's own; all must stop at once
        step = min((step for step in steps.tolist() if step >= 0), default=-1)
        if step < 0:
            return
        now = {name: _whole(quantizer.current_amax().detach()) for name, quantizer in self._ranges()}
        moved = {name: float((amax / self._start[name].to(amax)).log2().abs().max()) for name, amax in now.items()}
        unknown = {name: float("inf") if change != change else change for name, change in moved.items()}
        site = max(unknown, key=unknown.__getitem__, default=None)
        worst = f"; the range that moved most is {site}'s, by a factor of {2 ** unknown[site]:.3g}" if site else ""
        kept = last_whole_checkpoint(str(self.args.output_dir))
        raise RuntimeError(
            f"the loss was NaN or infinite at step {step}{worst}. Last good checkpoint: {kept or 'none yet'}. Lower "
            "--learning_rate or the recipe's qat scale_learning_rate, or set --max_grad_norm"
        )

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._refuse_bad_loss()
        try:
            super()._save_checkpoint(*args, **kwargs)
        except (OSError, RuntimeError) as error:  # torch says of a full disk only that a position is unexpected
            out = str(self.args.output_dir)
            kept = last_whole_checkpoint(out)
            where = f"goes on from {kept}" if kept else "starts again"
            raise OSError(
                f"the checkpoint of step {self.state.global_step} cannot be written into {out} "
                f"({shutil.disk_usage(out).free >> 20} MiB free): {error}. Make room; the same command {where}"
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.is_quantized:
            super()._save(output_dir, state_dict)
            return
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        save_checkpoint(
            model, output_dir or str(self.args.output_dir), processor=self.processing_class, state_dict=state_dict
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        trained = self.accelerator.unwrap_model(model or self.model, keep_torch_compile=False)
        if (Path(resume_from_checkpoint) / CHECKPOINT_FILE).is_file():
            load_training_state(trained, resume_from_checkpoint)
        elif self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_weights(trained, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint and not self.is_fsdp_enabled:
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()


def _whole(tensor: Tensor) -> Tensor:
    """Return the tensor, gathered where it is a shard; all ranks must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _fit_fsdp(plugin: Any, model: Any) -> None:
    """Set what a quantized model needs of Accelerate's FSDP plugin (in place)."""
    # FSDP would gather weights and ranges in bf16 and put them on another grid; autocast casts after rounding.
    plugin.mixed_precision_policy = None
    if not plugin.transformer_cls_names_to_wrap:
        # accelerate 1.15 shards the input embedding alone, and fails where the class around it is sharded too (BERT).
        embedding = model.get_input_embeddings()
        around = {type(m).__name__ for m in model.modules() if any(child is embedding for child in m.children())}
        plugin.transformer_cls_names_to_wrap = sorted(set(model._no_split_modules or ()) - around) or None


def load_training_state(model: Any, folder: str | Path) -> None:
    """Load weights and ranges of a checkpoint into a model that is being trained, to the bit.

    Raises: ValueError: another recipe or model.
    """
    recipe = quantization_of(model).recipe
    saved = read_description(folder)
    if saved["recipe_digest"] != recipe.digest:
        raise ValueError(
            f"{folder} is of recipe '{saved['recipe']['name']}', this run of '{recipe.name}' or other options"
        )
    load_weights(model, folder)
    load_quantizers(model, folder)


def load_weights(model: Any, folder: str | Path) -> None:
    """Load a checkpoint's weights into a model that is being trained, to the bit.

    Through from_pretrained: the file bears the names of the hub, which may differ from the module's own (ViT's encoder
    in transformers 5). Trainer's own loading passes over what it does not find, and leaves half a model as it was.

    Raises: ValueError: another model.
    """
    weights = type(model).from_pretrained(folder, dtype=torch.float32).state_dict()
    missing = [key for key in model.load_state_dict(weights, strict=False).missing_keys if "_quantizer." not in key]
    if missing:
        raise ValueError(f"{folder} is of another model: it lacks {len(missing)} tensors, e.g. {missing[0]}")
