"""Does the engine compute what the quantized model computes? Checked before an exported file is kept.

The file's weights, scales and rounding are compared site by site (`graph_parity.py`); here the outputs of the whole
model are.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from engine.graph_file import data_path
from eval.batches import select_feeds
from eval.evaluate import Runner
from eval.graph_parity import SiteReport, active_quantizers, check_sites
from eval.latency import Feeds
from eval.onnx_reference import half_type, plain_runner
from eval.pytorch_runner import PyTorchRunner
from eval.random_feeds import SHAPES as SHAPES
from eval.random_feeds import random_feeds
from eval.tensor_error import check_finite
from quant.encoder_decoder import HIDDEN_MASK, HIDDEN_STATES
from quant.example_inputs import SAMPLE_OUTPUTS
from quant.pretrained import LoadedModel
from quant.tensor_quantizer import HALF_TYPES, quantizers_disabled

# Tiny models agree to 1e-7; a hundred times that still is rounding of sums, and far below one INT8 step.
EXACT_TOLERANCE = 1e-5
# A rounding flip in one layer moves later ones: noise of 1e-6 on a real model's embeddings alone moves its logits by
# a tenth to a quarter of the quantization error, and the engine's by up to 0.4 of it. A wrong scale or a lost mask is
# far above half.
MAX_ERROR_SHARE = 0.5
MAX_FLIP_SHARE = 0.01
# Float engines: fused kernels and other summation orders over a dozen layers.
FLOAT_TOLERANCE = 1e-3
# The same in a half type: 16 and 8 times its rounding (2^-11, 2^-8), over a dozen layers.
HALF_TOLERANCE = {None: FLOAT_TOLERANCE, "fp16": 8e-3, "bf16": 6e-2}
# A half file may err as much as the fake-quantized model itself does when PyTorch computes it in that type, and as
# much again for another order of the same roundings.
MAX_HALF_SHARE = 2.0
# Consumers that need a GPU: their files are judged by ONNX Runtime, node by node as written.
JUDGED_AS_WRITTEN = ("tensorrt", "tensorrt8")
# Outputs whose largest entry is a prediction.
PREDICTIONS = ("logits", "start_logits", "end_logits", "logits_per_image")

RunEngine = Callable[[Path, str], Runner]


@dataclass(frozen=True)
class ParityReport:
    """What was compared and how close it was.

    Errors are means and maxima of |difference| over all outputs, padding left out.
    """

    backend: str
    num_weights: int
    num_activations: int
    min_equal_integers: float
    engine_error_max: float
    engine_error_mean: float
    quantization_error_mean: float
    num_flips: int
    num_rows: int
    num_exact_rows: int
    """Rows (samples) whose every output agrees to 1e-5: all but those where a rounding fell to the other side."""

    def __str__(self) -> str:
        return (
            f"{self.backend}: {self.num_weights} weights and {self.num_activations} activation sites equal; |engine "
            "- fakequant| "
            f"max {self.engine_error_max:.2g}, mean {self.engine_error_mean:.2g}; |fakequant - float| mean "
            f"{self.quantization_error_mean:.2g}; {self.num_flips} of {self.num_rows} predictions differ"
        )


def check_parity(
    onnx_path: str | Path,
    quantized: LoadedModel,
    float_model: LoadedModel | None = None,
    backend: str = "onnxruntime",
    *,
    feeds: list[Feeds] | None = None,
    seed: int = 0,
    release: bool = False,
) -> ParityReport:
    """Return how close the exported file, run by its consumer, is to the fake-quantized model.

    Args:
        onnx_path: the file as the target's passes left it.
        quantized: the model it was exported from; one without quantizers is checked as a float model.
        float_model: the float model; None takes `quantized` with its quantizers bypassed.
        backend: name of the backend that runs the file, e.g. "onnxruntime" or "openvino".
        feeds: batches with real padding, best at two batch sizes and lengths; None makes random ones.
        seed: of the random feeds.
        release: give the model's memory back before the engine takes its own. Its weights are lost (device "meta").
    Raises: ValueError: where weights, scales or integers differ (named), or the outputs differ by more than rounding
        explains.
    """
    path = Path(onnx_path)
    sites, dtype = _check_file(path, quantized)
    is_quantized = any(True for _ in active_quantizers(quantized.model))
    batches = feeds if feeds is not None else list(random_feeds(quantized, seed))
    fake = _outputs(PyTorchRunner(quantized), batches)
    with _as_float(quantized, float_model) as model:
        plain = _outputs(PyTorchRunner(model), batches)
    half = _half_outputs(quantized, batches, dtype) if dtype and is_quantized else None
    if release:
        torch.nn.Module.to(quantized.model, "meta")
    with _engine(path, backend) as runner:
        engine = _outputs(runner, batches)
        check_padding(runner, batches, engine, None if release else PyTorchRunner(quantized))
    return _judge(backend, sites, is_quantized, batches, engine, fake, plain, dtype, half)


def _check_file(path: Path, quantized: LoadedModel) -> tuple[SiteReport, str | None]:
    """Return what the file's numbers are like and its half type; a large file's weights are read one by one."""
    proto = onnx.load(path, load_external_data=False)
    return check_sites(proto, quantized.model, path.parent), half_type(proto)


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
        change = float(_differences(runner(select_feeds(other, runner.input_names)), before, feeds).max())
        allowed = FLOAT_TOLERANCE * max(1.0, max(float(np.abs(array).max()) for array in before.values()))
        if change > allowed and not (model is not None and _reads_padding(model, feeds, other, allowed)):
            raise ValueError(
                f"the engine's outputs change by {change:.2g} with what stands in the padding. Look for a lost mask: "
                "the model's attention must get its attention_mask"
            )


def _reads_padding(model: PyTorchRunner, feeds: Feeds, other: Feeds, allowed: float) -> bool:
    before, after = _outputs(model, [feeds, other])
    return float(_differences(after, before, feeds).max()) > allowed


def _judge(
    backend: str,
    sites: Any,
    is_quantized: bool,
    batches: list[Feeds],
    engine: list[Feeds],
    fake: list[Feeds],
    plain: list[Feeds],
    dtype: str | None,
    half: list[Feeds] | None,
) -> ParityReport:
    """Return the report, or raise ValueError with its figures; `half` is PyTorch's own computing in a half type."""
    engine_error = np.concatenate([_differences(e, f, b) for e, f, b in zip(engine, fake, batches, strict=True)])
    quantization_error = np.concatenate([_differences(f, p, b) for f, p, b in zip(fake, plain, batches, strict=True)])
    allowed_mean = MAX_ERROR_SHARE * float(quantization_error.mean())
    if half is not None:
        half_error = np.concatenate([_differences(h, f, b) for h, f, b in zip(half, fake, batches, strict=True)])
        allowed_mean = max(allowed_mean, MAX_HALF_SHARE * float(half_error.mean()))
    # Two logits that each move by the allowed mean error can change places where they lie closer than this.
    margin = 2 * allowed_mean
    report = ParityReport(
        backend,
        sites.num_weights,
        sites.num_activations,
        sites.min_equal_integers,
        float(engine_error.max()),
        float(engine_error.mean()),
        float(quantization_error.mean()),
        _num_flips(engine, fake, margin),
        sum(len(next(iter(batch.values()))) for batch in fake),
        sum(_num_exact_rows(e, f, b) for e, f, b in zip(engine, fake, batches, strict=True)),
    )
    if report.engine_error_max <= EXACT_TOLERANCE:
        return report
    if not is_quantized:
        scale = max(1.0, max(float(np.abs(array).max()) for batch in plain for array in batch.values()))
        if report.engine_error_max > HALF_TOLERANCE[dtype] * scale:
            raise ValueError(
                f"the float engine is not the model: {report}; allowed is a maximum of "
                f"{HALF_TOLERANCE[dtype] * scale:.2g}"
            )
        return report
    # One flip is allowed in any case: one row whose two best logits are equal says nothing. Random ids lie nearer to a
    # decision than sentences do: there, as with the mean error, half of what quantization itself flips is allowed.
    caused = MAX_ERROR_SHARE * _num_flips(fake, plain, margin)
    if half is not None:
        caused = max(caused, MAX_HALF_SHARE * _num_flips(half, fake, margin))
    max_flips = max(1, int(MAX_FLIP_SHARE * report.num_rows), int(caused))
    if report.engine_error_mean > allowed_mean or report.num_flips > max_flips:
        raise ValueError(
            f"the engine does not compute what the quantized model computes: {report}. Allowed: mean error at most "
            f"{allowed_mean:.2g} ({MAX_ERROR_SHARE:g} of that of quantization"
            f"{', or what the type costs in PyTorch' if dtype else ''}), at most {max_flips} flips. "
            "Look for a lost mask or a fusion with other rounding"
        )
    return report


def _differences(x: Feeds, ref: Feeds, feeds: Feeds) -> np.ndarray:
    """Return |x - ref| of all outputs as one vector, padding positions of per-token outputs left out."""
    missing = [name for name in ref if name not in x]
    if missing:
        raise ValueError(
            f"the engine gives {', '.join(x)}, the model also {', '.join(missing)}; export the model again"
        )
    differences = []
    for name, expected in ref.items():
        check_finite(f"output {name} of the engine", x[name])
        if x[name].shape != expected.shape:
            raise ValueError(f"output {name} of the engine has shape {x[name].shape}, of the model {expected.shape}")
        difference = np.abs(x[name].astype(np.float64) - expected)
        mask = feeds.get("attention_mask")
        is_per_token = name not in SAMPLE_OUTPUTS and (name != "logits" or difference.ndim == 3)
        differences.append((difference[mask.astype(bool)] if is_per_token and mask is not None else difference).ravel())
    return np.concatenate(differences)


def _num_exact_rows(x: Feeds, ref: Feeds, feeds: Feeds) -> int:
    """Return how many samples of a batch agree to EXACT_TOLERANCE in every output, padding left out."""
    num_rows = len(next(iter(ref.values())))
    if "text_embeds" in ref:  # each logit is of a pair: those of other samples say nothing of this one
        x, ref = ({name: a for name, a in each.items() if name != "logits_per_image"} for each in (x, ref))
    rows = ([{name: a[i : i + 1] for name, a in each.items()} for each in (x, ref, feeds)] for i in range(num_rows))
    return sum(float(_differences(*row).max()) <= EXACT_TOLERANCE for row in rows)


def _num_flips(x: list[Feeds], ref: list[Feeds], margin: float) -> int:
    return sum(int(_flips(each, other, margin).sum()) for each, other in zip(x, ref, strict=True))


def _flips(x: Feeds, ref: Feeds, margin: float) -> np.ndarray:
    """Return for each row whether a prediction differs though the reference's two best logits lie `margin` apart.

    Language models are judged by their last token, encoders and maps of pixels not at all.
    """
    flips = [
        _flips_of(_scores(name, x[name]), _scores(name, ref[name]), margin)
        for name in ref
        if name in PREDICTIONS and ref[name].ndim <= 3 and ref[name].shape[-1] > 1
    ]
    num_rows = len(next(iter(ref.values())))
    return np.any(flips, axis=0) if flips else np.zeros(num_rows, bool)


def _flips_of(x: np.ndarray, ref: np.ndarray, margin: float) -> np.ndarray:
    best = np.sort(ref, axis=-1)[..., -2:]
    return (x.argmax(-1) != ref.argmax(-1)) & (best[..., 1] - best[..., 0] > margin)


def _scores(name: str, output: np.ndarray) -> np.ndarray:
    return output[:, -1] if name == "logits" and output.ndim == 3 else output


def _outputs(runner: Runner, batches: list[Feeds]) -> list[Feeds]:
    return [runner({name: batch[name] for name in runner.input_names}) for batch in batches]


def _half_outputs(quantized: LoadedModel, batches: list[Feeds], dtype: str) -> list[Feeds]:
    """Return what the fake-quantized model gives where PyTorch computes it in a half type."""
    model: Any = copy.deepcopy(quantized.model)
    model.to(HALF_TYPES[dtype])
    return _outputs(PyTorchRunner(dataclasses.replace(quantized, model=model)), batches)


@contextmanager
def _as_float(quantized: LoadedModel, float_model: LoadedModel | None) -> Iterator[LoadedModel]:
    if float_model is not None:
        yield float_model
    else:
        with quantizers_disabled(quantized.model), torch.no_grad():
            yield quantized


@contextmanager
def _engine(onnx_path: Path, backend: str) -> Iterator[Runner]:
    """Yield the runner of a temporary engine built from the file, or of the file itself."""
    # A large file too, by ONNX Runtime's target: building an engine holds it several times over.
    is_large = data_path(onnx_path).exists() and backend == "onnxruntime"
    if backend in JUDGED_AS_WRITTEN or is_large:
        with plain_runner(onnx_path) as runner:
            yield runner
        return
    from engine.backend import BuildOptions, get_backend

    chosen = get_backend(backend)
    for reason in (chosen.check_build(), chosen.check_run()):
        if reason:
            raise RuntimeError(f"backend {backend} cannot check the file here: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        engine = Path(folder) / "engine"
        chosen.build(onnx_path, engine, BuildOptions())
        with chosen.load(engine) as runner:
            yield runner
