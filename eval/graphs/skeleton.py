"""A calibrated model's graph from another export of the same model: same nodes, other numbers. An export takes a
minute, this takes a second.

A skeleton is an export whose constants all have a place of their own. Where a model has fewer quantizers, the others
are cut out; then every constant is written anew. What has no place must be what it was, or the model is exported.
"""

from __future__ import annotations

import hashlib
import json
import logging
from itertools import chain
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from eval.graphs.cut import PREFIX, cut
from eval.sweep.store import INPUTS_FILE, ArtifactStore
from quant.models.pretrained import LoadedModel
from quant.onnx_export import _export_mode, export_onnx
from quant.tensor_quantizer import TensorQuantizer, named_quantizers

logger = logging.getLogger(__name__)
KIND, GRAPH_FILE, DIGESTS_FILE = "skeleton", "model.onnx", "constants.json"
IN_GRAPH = ("export_scale", "export_zero_point", "pre_quant_scale")  # of a quantizer; its amax stands in the scale
STEP = 2.0**-20  # between two quantizers, of a range: the exporter keeps equal constants once, and these are not equal
Quantizers = dict[str, dict[str, Any]]


def graph_of(loaded: LoadedModel, model_digest: str, store: ArtifactStore) -> onnx.ModelProto | None:
    """Return the graph of a calibrated model as `export_onnx` gives it (but for constants that are transposed there),
    or None where a skeleton cannot say it.

    Args: model_digest: of the float model, which all skeletons that it may be made from share.
    """
    try:
        constants, shared = constants_of(loaded.model)
        wanted = quantizers_of(loaded.model)
        same = {"model": model_digest, "torch": torch.__version__}
        folder = _nearest(store, same, wanted)
        if folder is None:
            folder = store.make(KIND, {**same, "quantizers": wanted}, lambda out: _export(loaded, out), "torch to ONNX")
        graph = onnx.load(folder / GRAPH_FILE)
        _cut_to(graph, json.loads((folder / INPUTS_FILE).read_text())["quantizers"], wanted)
        refill(graph, constants, shared, json.loads((folder / DIGESTS_FILE).read_text()))
    except LookupError as error:
        logger.info("%s; the model is exported", error)
        return None
    return graph


def quantizers_of(model: Any) -> Quantizers:
    """Return what decides which nodes a model's active quantizers become: name → format, axis, factor, paths."""
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, TensorQuantizer):
            paths.setdefault(id(module), []).append(path)
    return {name: {"format": quantizer.format.name, "axis": quantizer.axis,
                   "has_factor": quantizer.pre_quant_scale is not None, "paths": sorted({name, *paths[id(quantizer)]})}
            for name, quantizer in named_quantizers(model) if quantizer.is_active}  # fmt: skip


def _nearest(store: ArtifactStore, same: dict[str, Any], wanted: Quantizers) -> Path | None:
    """Return the skeleton with the fewest quantizers that has all that are wanted, None if there is none."""
    fitting = []
    for file in sorted(store.folder.glob(f"{KIND}-*/{INPUTS_FILE}")):
        inputs = json.loads(file.read_text())
        given = inputs.pop("quantizers")
        if inputs == same and _fits(given, wanted):
            fitting.append((len(given), file.parent))
    return min(fitting)[1] if fitting else None


def _fits(given: Quantizers, wanted: Quantizers) -> bool:
    def fit(name: str) -> bool:
        one, other = given.get(name), wanted[name]
        return one is not None and one["has_factor"] >= other["has_factor"] and all(
            one[key] == other[key] for key in ("format", "axis", "paths"))  # fmt: skip

    return all(map(fit, wanted))


def _cut_to(graph: onnx.ModelProto, given: Quantizers, wanted: Quantizers) -> None:
    gone = [frozenset(each["paths"]) for name, each in given.items() if name not in wanted]
    plain = [frozenset(each["paths"]) for name, each in given.items()
             if name in wanted and each["has_factor"] and not wanted[name]["has_factor"]]  # fmt: skip
    if gone or plain:
        cut(graph, gone, plain)


def _export(loaded: LoadedModel, folder: Path) -> None:
    """Write a model's skeleton: its graph, every range changed by next to nothing, and what its constants are."""
    before = [(quantizer, quantizer.amax) for _, quantizer in named_quantizers(loaded.model)]
    tell_apart(loaded.model)
    try:
        export_onnx(loaded.model, folder / GRAPH_FILE, processor=loaded.processor)
        constants, _ = constants_of(loaded.model)
        (folder / DIGESTS_FILE).write_text(json.dumps({name: _digest(x) for name, x in constants.items()}))
    finally:
        for quantizer, amax in before:
            quantizer.amax = amax


def tell_apart(model: Any) -> None:
    """Change each range of a quantized model by another next to nothing, so that each has a constant of its own."""
    for number, (_, quantizer) in enumerate(named_quantizers(model)):
        if quantizer.is_active and quantizer.amax is not None:
            quantizer.amax = quantizer.amax * (1 + number * STEP)


def constants_of(model: Any) -> tuple[dict[str, Tensor], list[frozenset[str]]]:
    """Return a model's tensors by the names that they have in its graph, and which names are of one tensor.

    Raises: LookupError: a quantizer whose numbers stand in its nodes and not in a constant: a narrow format's limits.
    """
    names: dict[Any, set[str]] = {}
    found = {}
    with _export_mode(model), torch.no_grad():
        if any(quantizer.export_limits is not None for _, quantizer in named_quantizers(model) if quantizer.enabled):
            raise LookupError("formats with limits have numbers in their nodes")
        for path, module in model.named_modules(remove_duplicate=False):
            is_quantizer = isinstance(module, TensorQuantizer)
            for name, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
                if is_quantizer and not (module.is_active and name in IN_GRAPH):
                    continue
                place = PREFIX + (f"{path}.{name}" if path else name)
                found[place] = tensor.detach().cpu()
                names.setdefault(id(tensor), set()).add(place)
    return found, [frozenset(each) for each in names.values()]


def refill(graph: onnx.ModelProto, constants: dict[str, Tensor], shared: list[frozenset[str]],
           digests: dict[str, str]) -> None:  # fmt: skip
    """Write a model's constants into the graph of another calibration, in place.

    Args: shared: sets of names of one tensor each. digests: of the constants that the graph was exported with.
    Raises: LookupError: a constant without a place that is another than there, or a place without a constant.
    """
    placed = set()
    for place in graph.graph.initializer:
        if place.name in constants:
            array = constants[place.name].contiguous().numpy()
            if list(place.dims) != list(array.shape):
                raise LookupError(f"{place.name} has the shape {list(place.dims)} there, {list(array.shape)} here")
            place.CopyFrom(numpy_helper.from_array(array, place.name))
            placed.add(place.name)
        elif place.name.startswith(PREFIX):
            raise LookupError(f"{place.name} is of the graph, not of the model")
    for names in shared:
        if not names & placed and any(_digest(constants[name]) != digests.get(name) for name in names):
            raise LookupError(f"{min(names)} has no place in the graph")


def _digest(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + content.tobytes()).hexdigest()[:16]
