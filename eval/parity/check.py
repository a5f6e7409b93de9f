"""Does the file compute what the quantized model computes, and the engine what the file says? Checked before an
exported file is kept.

The file's weights, scales and rounding are compared site by site (`graph_parity.py`); here the outputs of the whole
model are. The file is judged as written, without any fusion, so that the CPU on which it is checked does not matter;
the engine that its runtime builds here is judged against it.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from engine.backend import Backend, BuildOptions, backend_for
from engine.graph_file import data_path
from engine.hardware import cpu_flags, saturates
from eval.batches import select_feeds
from eval.evaluate import Runner
from eval.parity.graph import active_quantizers, check_sites
from eval.parity.limits import (
    FLOAT_TOLERANCE,
    HALF_TOLERANCE,
    Comparison,
    Limits,
    all_differences,
    compare,
    differences,
    float_limits,
    num_exact_rows,
    quantized_limits,
)
from eval.parity.onnx_reference import float32_runner, half_type, plain_runner
from eval.parity.random_feeds import random_feeds
from eval.parity.rounding_noise import rounding_noise
from eval.pytorch_runner import PyTorchRunner
from eval.timing.latency import Feeds
from quant.models.encoder_decoder import HIDDEN_MASK, HIDDEN_STATES
from quant.models.pretrained import LoadedModel
from quant.tensor_quantizer import HALF_TYPES, quantizers_disabled

# In fp16 MiniLM's logits move as much as by quantization itself. A type that moves them by more than twice that loses
# what the file is for; without a bound a file would be allowed any error that PyTorch makes in that type.
MAX_HALF_OVER_QUANTIZATION = 2.0


@dataclass(frozen=True)
class ParityReport:
    """What was compared and how close it was.

    Errors are means and maxima of |difference| over all outputs, padding left out. Where no engine was run, the
    engine's figures are those of the file as written.
    """

    backend: str
    num_weights: int
    num_activations: int
    min_equal_integers: float
    file_error_max: float
    file_error_mean: float
    engine_error_max: float
    engine_error_mean: float
    quantization_error_mean: float
    num_flips: int
    """Predictions of the engine that differ from the quantized model's by more than other roundings explain."""
    num_rows: int
    is_engine_judged: bool
    """Whether an engine was run: not for targets of GPUs, nor of a file whose weights stand beside it."""
    num_exact_rows: int
    """Rows (samples) whose every output agrees to 1e-5: all but those where a rounding fell to the other side."""

    def __str__(self) -> str:
        engine = f"; |engine - fakequant| mean {self.engine_error_mean:.2g}" if self.is_engine_judged else ""
        return (
            f"{self.backend}: {self.num_weights} weights and {self.num_activations} activation sites equal; |file as "
            f"written - fakequant| mean {self.file_error_mean:.2g}{engine}; |fakequant - float| mean "
            f"{self.quantization_error_mean:.2g}; {self.num_flips} of {self.num_rows} predictions differ"
        )


@dataclass(frozen=True)
class Expected:
    """What the model gives on the feeds, and what may differ from it."""

    batches: list[Feeds]
    outputs: list[Feeds]
    limits: Limits
    quantization_error_mean: float
    dtype: str | None


def check_parity(
    onnx_path: str | Path,
    quantized: LoadedModel,
    float_model: LoadedModel | None = None,
    backend: str = "onnxruntime",
    *,
    feeds: list[Feeds] | None = None,
    seed: int = 0,
    release: bool = False,
    saturation: str | None = None,
) -> ParityReport:
    """Return how close the exported file, as written and run by its runtime, is to the fake-quantized model.

    Args:
        onnx_path: the file as the target's passes left it.
        quantized: the model it was exported from; one without quantizers is checked as a float model.
        float_model: the float model; None takes `quantized` with its quantizers bypassed.
        backend: the export target; the first backend of this target runs the file, unless it needs a GPU.
        feeds: batches with real padding, best at two batch sizes and lengths; None makes random ones.
        seed: of the random feeds.
        release: give the model's memory back before the engine takes its own. Its weights are lost (device "meta").
        saturation: of the engine that is built, as in BuildOptions.
    Raises: ValueError: where weights, scales or integers differ (named), or the outputs differ by more than rounding
        explains: in the file, in the half type, or only in the engine.
    """
    path = Path(onnx_path)
    proto = onnx.load(path, load_external_data=False)
    sites, dtype = check_sites(proto, quantized.model, path.parent), half_type(proto)
    batches = feeds if feeds is not None else list(random_feeds(quantized, seed))
    expected = expect(quantized, float_model, batches, dtype)
    if release:
        torch.nn.Module.to(quantized.model, "meta")
    model = None if release else PyTorchRunner(quantized)
    with plain_runner(path) as runner:
        written = outputs_of(runner, expected.batches)
        check_padding(runner, expected.batches, written, model)
    in_file = _check_file(path, expected, written)
    found, outputs = in_file, written
    # Of a GPU's target the file alone is judged; a large file's engine would be held several times over while built.
    chosen = backend_for(backend)
    judge = None if chosen is None or chosen.info.uses_gpu or data_path(path).exists() else chosen
    if judge is not None:
        with _engine(path, judge, saturation) as runner:
            outputs = outputs_of(runner, expected.batches)
            found = _check_engine(judge, expected, written, outputs, in_file, saturation)
            check_padding(runner, expected.batches, outputs, model)
    return ParityReport(
        backend, sites.num_weights, sites.num_activations, sites.min_equal_integers,
        in_file.error_max, in_file.error_mean, found.error_max, found.error_mean, expected.quantization_error_mean,
        found.num_flips, found.num_rows, judge is not None,
        sum(num_exact_rows(*each) for each in zip(outputs, expected.outputs, expected.batches, strict=True)),
    )  # fmt: skip


def expect(
    quantized: LoadedModel, float_model: LoadedModel | None, batches: list[Feeds], dtype: str | None
) -> Expected:
    """Return the model's outputs with the limits that its own roundings set."""
    fake = outputs_of(PyTorchRunner(quantized), batches)
    if not any(True for _ in active_quantizers(quantized.model)):
        return Expected(batches, fake, float_limits(fake, dtype), 0.0, dtype)
    with _as_float(quantized, float_model) as model:
        plain = outputs_of(PyTorchRunner(model), batches)
    with rounding_noise(quantized.model):
        rounded = [outputs_of(PyTorchRunner(quantized), batches)]
    error = float(all_differences(fake, plain, batches).mean())
    if dtype:
        half = _half_outputs(quantized, batches, dtype)
        _check_half(half, fake, batches, dtype, error)
        rounded.append(half)
    return Expected(batches, fake, quantized_limits(batches, fake, plain, rounded), error, dtype)


def _check_half(half: list[Feeds], fake: list[Feeds], batches: list[Feeds], dtype: str, error: float) -> None:
    """Raise ValueError where PyTorch itself, in the half type, is no more the quantized model."""
    is_finite = all(np.isfinite(array).all() for batch in half for array in batch.values())
    change = float(all_differences(half, fake, batches).mean()) if is_finite else np.inf
    if change > MAX_HALF_OVER_QUANTIZATION * error and change > HALF_TOLERANCE[dtype]:
        raise ValueError(
            f"{dtype} rounds otherwise: PyTorch itself, computing the quantized model in {dtype}, moves its outputs by "
            f"a mean of {change:.2g} (quantization alone by {error:.2g}), so no file of that type can be right. Take "
            "the other --dtype, or leave in float what overflows there"
        )


def _check_file(path: Path, expected: Expected, written: list[Feeds]) -> Comparison:
    """Return how far the file as written is from the model.

    Raises: ValueError: further than rounding explains; says whether the half type or the file is at fault.
    """
    limits = expected.limits
    found = compare(written, expected.outputs, expected.batches, limits.margin)
    if limits.admits(found):
        return found
    what = "the float file is not the model" if limits.max_error is not None else (
        "the file does not compute what the quantized model computes"
    )  # fmt: skip
    if expected.dtype:
        with float32_runner(path) as runner:
            wide = compare(outputs_of(runner, expected.batches), expected.outputs, expected.batches, limits.margin)
        if limits.admits(wide):
            raise ValueError(
                f"{expected.dtype} rounds otherwise: the file's graph is right in fp32 ({wide}), in {expected.dtype} "
                f"it is too far off ({found}); {limits}. Take the other --dtype, or leave in float what overflows there"
            )
    raise ValueError(f"{what}: {found}; {limits}. Look for a lost mask, a swapped input or a missing quantizer")


def _check_engine(
    backend: Backend, expected: Expected, written: list[Feeds], outputs: list[Feeds], in_file: Comparison,
    saturation: str | None,
) -> Comparison:  # fmt: skip
    """Return how far the engine is from the model.

    Raises: ValueError: the engine is further from the file as written than rounding explains.
    """
    limits = expected.limits
    from_file = compare(outputs, written, expected.batches, limits.margin)
    if not limits.admits(from_file):
        why = "its kernels or fusions round otherwise: 'python -m eval --layers' names the first layer that differs"
        if saturation == "allow" and saturates(cpu_flags()):
            why = "this CPU has no VNNI, and INT8 sums saturate there: build with --saturation avoid"
        raise ValueError(
            f"the file is right as written ({in_file}), but the engine that {backend.name} {backend.version()} "
            f"builds of it on this CPU is not: against the file {from_file}; {limits}. {why}"
        )
    return compare(outputs, expected.outputs, expected.batches, limits.margin)


def check_padding(
    runner: Runner, batches: list[Feeds], outputs: list[Feeds], model: PyTorchRunner | None = None
) -> None:
    """Run the padded batches again with other values in the padding; real positions must not see the difference.

    Args: model: where it reads the padding itself (ConvBERT convolves over tokens), the engine may.
    Raises: ValueError: the padding mask is lost, wholly or in part.
    """
    for feeds, before in zip(batches, outputs, strict=True):
        masked, by = (HIDDEN_STATES, HIDDEN_MASK) if HIDDEN_STATES in feeds else ("input_ids", "attention_mask")
        mask = feeds.get(by)
        if mask is None or masked not in feeds or mask.all():
            continue
        x = feeds[masked]
        is_real = mask.astype(bool).reshape(*mask.shape, *[1] * (x.ndim - 2))
        other = {**feeds, masked: np.where(is_real, x, np.roll(x, 1, axis=1))}
        change = float(differences(runner(select_feeds(other, runner.input_names)), before, feeds).max())
        allowed = FLOAT_TOLERANCE * max(1.0, max(float(np.abs(array).max()) for array in before.values()))
        if change > allowed and not (model is not None and _reads_padding(model, feeds, other, allowed)):
            raise ValueError(
                f"the engine's outputs change by {change:.2g} with what stands in the padding. Look for a lost mask: "
                "the model's attention must get its attention_mask"
            )


def _reads_padding(model: PyTorchRunner, feeds: Feeds, other: Feeds, allowed: float) -> bool:
    before, after = outputs_of(model, [feeds, other])
    return float(differences(after, before, feeds).max()) > allowed


def outputs_of(runner: Runner, batches: list[Feeds]) -> list[Feeds]:
    """Return what a runner gives for each batch, fed the inputs that it has."""
    return [runner({name: batch[name] for name in runner.input_names}) for batch in batches]


def _half_outputs(quantized: LoadedModel, batches: list[Feeds], dtype: str) -> list[Feeds]:
    """Return what the fake-quantized model gives where PyTorch computes it in a half type."""
    model: Any = copy.deepcopy(quantized.model)
    model.to(HALF_TYPES[dtype])
    return outputs_of(PyTorchRunner(dataclasses.replace(quantized, model=model)), batches)


@contextmanager
def _as_float(quantized: LoadedModel, float_model: LoadedModel | None) -> Iterator[LoadedModel]:
    if float_model is not None:
        yield float_model
    else:
        with quantizers_disabled(quantized.model), torch.no_grad():
            yield quantized


@contextmanager
def _engine(onnx_path: Path, backend: Backend, saturation: str | None) -> Iterator[Runner]:
    """Yield the runner of a temporary engine built from the file."""
    for reason in (backend.check_build(), backend.check_run()):
        if reason:
            raise RuntimeError(f"backend {backend.name} cannot check the file here: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        engine = Path(folder) / "engine"
        backend.build(onnx_path, engine, BuildOptions(saturation=saturation))
        with backend.load(engine) as runner:
            yield runner
