"""One family with one recipe through every step of int8kit: what each step gave, or why it failed.

Each cell is a plain JSON value; a step that raises becomes {"error": ...} and the others go on.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from transformers import PreTrainedModel

from calib.apply import apply_statistics
from calib.collect import collect
from engine.backend import BuildOptions, get_backend
from engine.lint.report import lint
from engine.passes.qdq import prepare_for_target
from engine.shapes import ShapeRange
from eval.parity.check import check_parity
from eval.parity.limits import EXACT_TOLERANCE
from eval.parity.random_feeds import SHAPES
from eval.timing.latency import Feeds
from quant.checkpoint import load_checkpoint, save_checkpoint
from quant.insert import insert_quantizers
from quant.models.example_inputs import OUTPUT_NAMES
from quant.models.pretrained import LoadedModel
from quant.onnx_export import export_onnx
from quant.recipe import Recipe
from quant.sites.site import Site, Why
from quant.tensor_quantizer import named_quantizers, rounded_scales
from tests.families import Family
from training.distillation import Teacher, distillation_loss, extra_outputs
from training.qat import finish_qat, start_qat

Cell = dict[str, Any]

NUM_ROUNDS = 3  # of the two shapes of the parity check
EXACT_TARGETS = ("onnxruntime", "openvino", "tensorrt8")
HALF = torch.float16
# Of the samples. The others hold a tensor element so near the middle of two integers that another order of a sum
# rounds it the other way; a wrong scale, a lost mask or bias moves every sample. Swin, with the most elements, keeps 8
# of 21 where OpenVINO sums in fp32 (no VNNI): every quantized tensor of a batch without a near tie is equal there.
MIN_EXACT_SHARE = 0.25


def measure(family: Family, recipe: Recipe) -> dict[str, Cell]:
    """Return the cells of one family with one recipe, by name."""
    float_model = family.model()
    model = copy.deepcopy(float_model)
    cells: dict[str, Cell] = {}
    cells["sites"] = _cell(lambda: quantize(model, family, recipe))
    if "error" in cells["sites"]:
        return cells
    loaded = LoadedModel(model, None, family.model_class)
    feeds = list(parity_feeds(model, family))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        cells["checkpoint"] = _cell(lambda: round_trip(model, family, path / "checkpoint"))
        cells.update(export_cells(loaded, feeds, path))
        cells.update(tensorrt_cells(loaded, feeds, path))
    cells["qat"] = _cell(lambda: train_step(model, float_model, family))
    return cells


def quantize(model: PreTrainedModel, family: Family, recipe: Recipe) -> Cell:
    """Insert and calibrate (in place, two random batches); return the numbers of sites."""
    batches = [family.batch(model, 4, 12, seed) for seed in range(2)]
    sites = insert_quantizers(model, recipe, batches[0])
    apply_statistics(model, collect(model, batches, progress=False))
    return count_sites(sites)


def count_sites(sites: list[Site]) -> Cell:
    """Return the numbers of sites on and off by kind, of quantized products, and the reasons of those off."""
    by_kind = {kind: [0, 0] for kind in dict.fromkeys(site.kind for site in sites)}
    for site in sites:
        by_kind[site.kind][0 if site.enabled else 1] += 1
    weights = [site for site in sites if site.is_weight and site.kind in ("linear", "conv")]
    attentions = [site for site in sites if site.kind == "softmax"]
    norms = [site for site in sites if site.kind == "norm_output"]
    why = Counter(f"{s.kind}: {'reads a norm' if s.why is Why.COVERED else s.reason}" for s in sites if not s.enabled)
    return {
        "by_kind": by_kind,
        "linears": [sum(site.enabled for site in weights), len(weights)],
        "attentions": [sum(site.enabled for site in attentions), len(attentions)],
        "norms": [sum(site.enabled for site in norms), len(norms)],
        "off": dict(sorted(why.items())),
    }


def round_trip(model: PreTrainedModel, family: Family, folder: Path) -> Cell:
    """Save and load the checkpoint; return whether the outputs are equal to the bit."""
    save_checkpoint(model, folder)
    again = load_checkpoint(folder).model
    batch = family.batch(model, 3, 9, 5)
    with torch.no_grad():
        before, after = outputs_of(model, batch), outputs_of(again, batch)
    same = all(torch.equal(before[name], after[name]) for name in before)
    if not same or again.quantization != model.quantization:
        raise ValueError("the loaded checkpoint does not compute what was saved")
    return {"equal_bits": True}


def export_cells(loaded: LoadedModel, feeds: list[Feeds], folder: Path) -> dict[str, Cell]:
    """Return the parity of the files for ONNX Runtime, OpenVINO and TensorRT 8 with the fake-quantized model."""
    exported = _cell(lambda: {"proto": export_onnx(loaded.model)})
    if "error" in exported:
        return dict.fromkeys(EXACT_TARGETS, exported)

    def parity(target: str) -> Cell:
        path = folder / f"{target}.onnx"
        onnx.save(prepare_for_target(exported["proto"], target), path)
        return parity_of(path, loaded, target, feeds)

    return {target: _cell(lambda target=target: parity(target)) for target in EXACT_TARGETS}  # type: ignore[misc]


def parity_of(path: Path, loaded: LoadedModel, target: str, feeds: list[Feeds]) -> Cell:
    """Return the figures of the parity check. Raises: ValueError: it fails, or is not exact in an fp32 file."""
    report = check_parity(path, loaded, backend=target, feeds=feeds)
    cell = {key: value for key, value in dataclasses.asdict(report).items() if key != "backend"}
    if target in EXACT_TARGETS and report.num_exact_rows < MIN_EXACT_SHARE * report.num_rows:
        raise ValueError(f"only {report.num_exact_rows} samples agree to {EXACT_TOLERANCE:g}: {report}")
    return cell


def tensorrt_cells(loaded: LoadedModel, feeds: list[Feeds], folder: Path) -> dict[str, Cell]:
    """Return what the strongly typed fp16 file computes, what the linter says of it, and its TensorRT-RTX engine."""
    path = folder / "tensorrt.onnx"
    with rounded_scales(loaded.model, HALF):

        def export() -> Cell:
            onnx.save(prepare_for_target(export_onnx(loaded.model), "tensorrt", dtype="fp16"), path)
            return parity_of(path, loaded, "tensorrt", feeds)

        cells = {"tensorrt": _cell(export)}
    if not path.exists():
        return {**cells, "lint": cells["tensorrt"], "tensorrt_rtx": cells["tensorrt"]}
    cells["lint"] = _cell(lambda: lint_of(path))
    cells["tensorrt_rtx"] = _cell(lambda: build_engine(path, feeds[0]))
    return cells


def lint_of(path: Path) -> Cell:
    """Return how many products have both sides in INT8, and the findings by level and rule."""
    report = lint(onnx.load(path))
    found = Counter(f"{finding.level}: {finding.rule}" for finding in report.findings)
    return {
        "linears": [report.linears_int8, report.linears],
        "attention_products": [report.attention_products_int8, report.attention_products],
        "findings": dict(sorted(found.items())),
    }


def build_engine(path: Path, feeds: Feeds) -> Cell:
    """Return the size of the TensorRT-RTX engine at one static shape, and its products in INT8 by the file's rules."""
    backend = get_backend("tensorrt_rtx")
    if reason := backend.check_build():
        return {"skipped": reason}
    names = [each.name for each in onnx.load(path).graph.input]
    shapes = {name: ShapeRange(*[feeds[name].shape] * 3) for name in names}
    manifest = backend.build(path, path.with_suffix(".engine"), BuildOptions(shapes)).manifest
    products = manifest.products
    return {
        "size_bytes": manifest.size_bytes,
        "linears_int8": len(products.int8),
        "attention_products_int8": len(products.attention_int8),
    }


def train_step(model: PreTrainedModel, float_model: PreTrainedModel, family: Family) -> Cell:
    """Take one step of QAT with learned ranges against the float teacher (in place).

    Raises: ValueError: a loss, gradient or range that is not finite, or a range that did not move.
    """
    options = model.quantization.recipe.qat  # type: ignore[union-attr]
    batch = family.batch(model, 4, 12, 7)
    start_qat(model.train(), options)
    ranges = {name: q.log2_amax for name, q in named_quantizers(model) if q.log2_amax is not None}
    before = {name: p.detach().clone() for name, p in ranges.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    teacher = Teacher(float_model, options)
    loss = distillation_loss(
        model(**batch, **extra_outputs(options)), teacher(batch), batch.get("attention_mask"), options
    )
    loss.backward()
    optimizer.step()
    stuck = [n for n, p in ranges.items() if not torch.isfinite(p).all() or torch.equal(p.detach(), before[n])]
    if not torch.isfinite(loss) or stuck or not ranges:
        raise ValueError(f"loss {float(loss):g}; {len(stuck)} of {len(ranges)} ranges did not learn: {stuck[:5]}")
    finish_qat(model)
    return {"loss": float(loss), "learned_ranges": len(ranges)}


def parity_feeds(model: PreTrainedModel, family: Family) -> Iterator[Feeds]:
    """Yield batches of two shapes as numpy arrays, with padding where the family has a mask."""
    for seed, (batch_size, length) in enumerate(SHAPES * NUM_ROUNDS):
        batch = family.batch(model, batch_size, length, 100 + seed)
        yield {name: np.ascontiguousarray(tensor.cpu().numpy()) for name, tensor in batch.items()}


def outputs_of(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs that are exported and scored."""
    output = model(**batch)
    return {name: output[name] for name in OUTPUT_NAMES if output.get(name) is not None}


def _cell(step: Callable[[], Cell]) -> Cell:
    """Return what a step gives, or what it raised: the rest of the matrix does not wait for one mend."""
    try:
        return step()
    except Exception as error:  # of any library in the chain; the row names its type
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
