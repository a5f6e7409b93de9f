"""Parity by layer: float, fake-quantized, ONNX and engine on the same samples, and the first layer that diverges."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from engine.backend import backend_for, get_backend
from engine.cli import cut_left, print_result
from engine.passes.qdq import prepare_for_target
from engine.source import read_onnx
from eval.arguments import batch_options
from eval.batches import iter_batches, select_feeds
from eval.chosen_samples import load_samples_of
from eval.parity.graph import active_quantizers
from eval.parity.limits import EXACT_TOLERANCE, FLOAT_TOLERANCE, MAX_ERROR_SHARE
from eval.parity.taps import engine_of, plain_layers, tapped, torch_layers, with_outputs
from eval.pytorch_runner import PyTorchRunner
from eval.subject import load_model
from eval.tensor_error import TensorError, tensor_error
from eval.timing.latency import Feeds
from quant.models.pretrained import LoadedModel
from quant.onnx_export import export_onnx
from quant.tensor_quantizer import quantizers_disabled

# Quantization is said to diverge where its noise reaches a tenth of the signal.
NOISY_SQNR_DB = 20.0
DEFAULT_BACKEND = "onnxruntime"
MAX_BUILDS = 24  # engines built in search of layers that can be read
PAIRS = (("fakequant", "float"), ("onnx", "fakequant"), ("engine", "fakequant"))
WIDEST = 120
LEAST_NAME = 30  # columns that tell one layer from another


@dataclass(frozen=True)
class LayerError:
    """One layer: its error in each pair of PAIRS, by "x - ref"; a pair is missing where a side has no such tensor."""

    layer: str
    errors: Mapping[str, TensorError]
    magnitude: float  # mean |output| of the float model


@dataclass(frozen=True)
class LayerParity:
    """The layers in the order of the model, and where each pair first diverges (None: nowhere)."""

    backend: str
    conditions: str
    layers: tuple[LayerError, ...]
    first: Mapping[str, str | None]
    unmatched: tuple[str, ...]  # layers of the model that could not be found in the ONNX file
    note: str = ""  # what the engine's column does not show


def compare_layers(quantized: LoadedModel, proto: onnx.ModelProto, feeds: Feeds, backend: str) -> LayerParity:
    """Return the errors of every layer on one batch.

    Args:
        quantized: the checkpoint's model; its quantizers are bypassed for the float side.
        proto: the file exported from it, for `backend`.
        feeds: one batch; padding positions of per-token outputs are left out.
        backend: builds and runs the file. Its extra outputs can keep it from some fusions; the model's own outputs are
            therefore taken from an engine without them.
    """
    fake, fake_outputs = torch_layers(quantized, feeds)
    with quantizers_disabled(quantized.model):
        plain, plain_outputs = torch_layers(quantized, feeds)
    with_taps, taps = tapped(proto, quantized.model)
    stored = plain_layers(with_taps, feeds)
    own = _run_engine(proto, feeds, backend)
    moved = _mean_distance(fake_outputs, plain_outputs)
    engines = _TappedEngines(with_taps, feeds, backend, own, moved)
    run = {**engines.layers([tap.value for tap in taps if tap.value not in own]), **own}
    sides: dict[str, dict[str, np.ndarray]] = {
        "float": {**plain, **plain_outputs},
        "fakequant": {**fake, **fake_outputs},
    }
    names = [(tap.layer, tap.value) for tap in taps]
    sides["onnx"] = {layer: stored[value] for layer, value in names if value in stored}
    sides["engine"] = {layer: run[value] for layer, value in names if value in run}
    for side, outputs in (("onnx", stored), ("engine", own)):
        sides[side] |= {name: outputs[name] for name in fake_outputs if name in outputs}
    layers = tuple(_layer_error(name, sides, feeds.get("attention_mask")) for name in sides["fakequant"])
    is_quantized = any(True for _ in active_quantizers(quantized.model))
    pairs = [_pair(x, ref) for x, ref in PAIRS]
    first = {pair: next((e.layer for e in layers if _diverges(pair, e, is_quantized)), None) for pair in pairs}
    found = {tap.layer for tap in taps}
    unread = [layer for layer, value in names if value in engines.left_out]
    note = f"read from outside, these would change the engine and are left out: {', '.join(unread)}" if unread else ""
    shapes = ", ".join(f"{name} {'x'.join(map(str, x.shape))}" for name, x in feeds.items())
    return LayerParity(backend, shapes, layers, first, tuple(name for name in fake if name not in found), note)


def _run_engine(proto: onnx.ModelProto, feeds: Feeds, backend: str) -> Feeds:
    with tempfile.TemporaryDirectory() as folder, engine_of(proto, backend, Path(folder)) as runner:
        return runner(select_feeds(feeds, runner.input_names))


def _mean_distance(x: Feeds, ref: Feeds) -> float:
    return float(np.mean([np.abs(x[name].astype(np.float64) - ref[name]).mean() for name in ref if name in x]))


class _TappedEngines:
    """Reads layers out of engines whose own outputs stay what they are without the reading.

    An extra output can make another engine of it (OpenVINO 2026.4.1 computes wrong logits once an INT8 convolution with
    a zero bias is read from outside; tests/eval/parity/test_layers.py says when it no longer does). Then the layers are
    halved until those that do no harm are found.
    """

    def __init__(self, tapped: onnx.ModelProto, feeds: Feeds, backend: str, own: Feeds, moved: float) -> None:
        self.left_out: list[str] = []
        self._tapped, self._feeds, self._backend, self._own = tapped, feeds, backend, own
        scale = max(1.0, max(float(np.abs(x).max()) for x in own.values()))
        # Rounding flips explain no more than half of what quantization moved the outputs.
        self._allowed = max(MAX_ERROR_SHARE * moved, (EXACT_TOLERANCE if moved else FLOAT_TOLERANCE) * scale)
        self._num_builds = 0

    def layers(self, values: list[str]) -> Feeds:
        """Return the named tensors as the engine computes them; those that cannot be read are in `left_out`."""
        if not values or self._num_builds >= MAX_BUILDS:
            self.left_out += values
            return {}
        self._num_builds += 1
        run = _run_engine(with_outputs(self._tapped, {*values, *self._own}), self._feeds, self._backend)
        if _mean_distance(run, self._own) <= self._allowed:
            return {name: run[name] for name in values if name in run}
        if len(values) == 1:
            self.left_out += values
            return {}
        half = len(values) // 2
        return {**self.layers(values[:half]), **self.layers(values[half:])}


def _pair(x: str, ref: str) -> str:
    return f"{x} - {ref}"


def _layer_error(name: str, sides: dict[str, dict[str, np.ndarray]], mask: np.ndarray | None) -> LayerError:
    errors = {}
    for x, ref in PAIRS:
        left, right = sides[x].get(name), sides[ref].get(name)
        if left is not None and right is not None and left.shape == right.shape:
            errors[_pair(x, ref)] = tensor_error(_real(left, mask), _real(right, mask), name)
    return LayerError(name, errors, float(np.abs(_real(sides["float"][name], mask)).mean()))


def _real(x: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Return what stands at real positions, where the first two axes are batch and length."""
    x = x.astype(np.float32)
    return x[mask.astype(bool)] if mask is not None and x.ndim > 2 and x.shape[:2] == mask.shape else x


def _diverges(pair: str, layer: LayerError, is_quantized: bool) -> bool:
    """Return whether a layer's error is more than what is expected of a pair.

    Quantization: noise above a tenth of the signal. ONNX and engine: more than half of what quantization itself moved
    the layer (rounding flips explain less), or, where nothing is quantized, more than other summation orders.
    """
    error = layer.errors.get(pair)
    if error is None:
        return False
    rounding = FLOAT_TOLERANCE * max(1.0, layer.magnitude)
    if pair == _pair(*PAIRS[0]):
        return error.sqnr_db is not None and error.sqnr_db < NOISY_SQNR_DB
    moved = layer.errors.get(_pair(*PAIRS[0]))
    allowed = MAX_ERROR_SHARE * moved.abs_mean if is_quantized and moved is not None and moved.abs_mean > 0 else 0.0
    return error.abs_mean > max(allowed, rounding)


def as_text(report: LayerParity, columns: int) -> str:
    """Return the tables for a terminal of so many columns."""
    lines = textwrap.wrap(f"{report.backend}, {report.conditions}; padding left out", columns)
    for pair, first in report.first.items():
        rows = [(each, each.errors[pair]) for each in report.layers if pair in each.errors]
        lines += ["", f"|{pair}|", f"{'absolute':>24} {'relative':>24}"]
        lines.append(f"{'max':>8}{'mean':>8}{'median':>8} {'max':>8}{'mean':>8}{'median':>8}  layer")
        for each, error in rows:
            absolute = f"{error.abs_max:8.1e}{error.abs_mean:8.1e}{error.abs_median:8.1e}"
            relative = f"{error.rel_max:8.1e}{error.rel_mean:8.1e}{error.rel_median:8.1e}"
            mark = "  <- first to diverge" if each.layer == first else ""
            room = columns - 51 - len(mark)
            if room < min(len(each.layer), LEAST_NAME):  # a line of its own: a stub would not tell the layers apart
                lines.append(cut_left(each.layer, columns - len(mark)) + mark)
                name, mark = "", ""
            else:
                name = cut_left(each.layer, room)
            lines.append(f"{absolute} {relative}  {name}{mark}".rstrip())
        if first is None:
            lines.append("no layer diverges")
    if report.note:
        lines += ["", *textwrap.wrap(f"note: {report.note}", columns)]
    if report.unmatched:
        lines += ["", f"not found in the ONNX file: {len(report.unmatched)} layers, e.g. {report.unmatched[0]}"]
    return "\n".join(lines)


def run_layers(arguments: argparse.Namespace) -> None:
    """Compare the layers of --checkpoint (or --model) and print them."""
    name = arguments.checkpoint or arguments.model
    loaded = load_model(name, trust_remote_code=arguments.trust_remote_code)
    if arguments.onnx is not None:
        proto = read_onnx(arguments.onnx)
        target = next((p.value for p in proto.metadata_props if p.key == "int8kit.target"), None)
        made_for = backend_for(target) if target else None
        backend = arguments.backend or (made_for.name if made_for else DEFAULT_BACKEND)
    else:
        backend = arguments.backend or DEFAULT_BACKEND
        print(f"export to {backend} ...", file=sys.stderr)
        proto = prepare_for_target(export_onnx(loaded.model, processor=loaded.processor), get_backend(backend).target())
    feeds = _first_batch(arguments, loaded, [each.name for each in proto.graph.input])
    report = compare_layers(loaded, proto, feeds, backend)
    columns = min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST)
    print_result(_row(name, report), as_text(report, columns), arguments.json)


def _first_batch(arguments: argparse.Namespace, loaded: LoadedModel, names: list[str]) -> Feeds:
    outputs = PyTorchRunner(loaded).output_names
    task, dataset, length = load_samples_of(arguments, outputs, loaded.model.config, loaded.processor)
    batch = next(iter_batches(task, dataset, loaded.processor, batch_options(arguments, length)))
    return select_feeds(batch, names)


def _row(name: str, report: LayerParity) -> dict[str, Any]:
    return {
        "model": name,
        "backend": report.backend,
        "conditions": report.conditions,
        "first_diverging": dict(report.first),
        "unmatched": report.unmatched,
        "note": report.note,
        "layers": [
            {"layer": each.layer, "magnitude": each.magnitude, **{k: asdict(v) for k, v in each.errors.items()}}
            for each in report.layers
        ],
    }
