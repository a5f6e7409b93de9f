"""A calibrated model's graph from another export of the same model: same nodes, other numbers. An export takes a
minute, this takes a second.

A skeleton is an export whose constants all have a place of their own. Where a model has fewer quantizers, the others
are cut out; then every constant is written anew. What has no place must be what it was, or the model is exported.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from itertools import chain
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from eval.graphs.cut import PREFIX, cut
from eval.sweep.store import INPUTS_FILE, ArtifactStore
from quant.formats import INT8
from quant.models.pretrained import LoadedModel
from quant.onnx_export import export_mode, export_onnx
from quant.own_attention import OwnAttention
from quant.sites.formats import format_names
from quant.tensor_quantizer import TensorQuantizer, named_quantizers

logger = logging.getLogger(__name__)
KIND, GRAPH_FILE, DIGESTS_FILE = "skeleton", "model.onnx", "constants.json"
FORMATS, ZERO_POINT = "int8kit.formats", ".export_zero_point"
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
IN_GRAPH = ("export_scale", "export_zero_point", "pre_quant_scale")  # of a quantizer; its amax stands in the scale
STEP = 2.0**-20  # between two quantizers, of a range: the exporter keeps equal constants once, and these are not equal
Quantizers = dict[str, dict[str, Any]]


def graph_of(loaded: LoadedModel, model_digest: str, store: ArtifactStore) -> onnx.ModelProto | None:
    """Return the graph of a calibrated model as `export_onnx` gives it (but for constants that are transposed there),
    or None where a skeleton cannot say it.

    Args: model_digest: of the float model, which all skeletons that it may be made from share.
    """
    model = loaded.model
    if any(each.limits() is not None for each in _of_activations(model)):
        return None  # such limits are numbers of nodes, not constants
    wanted = quantizers_of(model)
    own = sorted(path for path, module in model.named_modules() if isinstance(module, OwnAttention))
    same = {"model": model_digest, "torch": torch.__version__, "own_attention": own}
    if not (fitting := _fitting(store, same, wanted)):
        inputs = {**same, "quantizers": wanted}
        fitting = [store.make(KIND, inputs, lambda out: _export(loaded, out), "torch to ONNX")]
    constants, shared = constants_of(model)
    for folder in fitting:
        graph = onnx.load(folder / GRAPH_FILE)
        try:
            _cut_to(graph, json.loads((folder / INPUTS_FILE).read_text())["quantizers"], wanted)
            refill(graph, constants, shared, json.loads((folder / DIGESTS_FILE).read_text()))
        except LookupError as error:
            logger.info("%s", error)
            continue
        _say_formats(graph, format_names(model))
        return graph
    logger.info("no graph of another calibration can be filled in; the model is exported")
    return None


def _of_activations(model: Any) -> list[TensorQuantizer]:
    weights = {id(module.weight_quantizer) for module in model.modules() if hasattr(module, "weight_quantizer")}
    return [each for _, each in named_quantizers(model) if each.is_active and id(each) not in weights]


def _say_formats(graph: onnx.ModelProto, names: str) -> None:
    """Note the model's formats where an export notes them, in the place of the skeleton's."""
    for entry in [each for each in graph.metadata_props if each.key == FORMATS]:
        graph.metadata_props.remove(entry)
    if names != INT8.name:
        graph.metadata_props.add(key=FORMATS, value=names)


def quantizers_of(model: Any) -> Quantizers:
    """Return what decides which nodes a model's active quantizers become: name → format, axis, factor, paths."""
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, TensorQuantizer):
            paths.setdefault(id(module), []).append(path)
    return {name: {"format": quantizer.format.name, "axis": quantizer.axis,
                   "has_factor": quantizer.pre_quant_scale is not None, "paths": sorted({name, *paths[id(quantizer)]})}
            for name, quantizer in named_quantizers(model) if quantizer.is_active}  # fmt: skip


def _fitting(store: ArtifactStore, same: dict[str, Any], wanted: Quantizers) -> list[Path]:
    """Return the skeletons that have all quantizers that are wanted, those with the fewest others first."""
    found = []
    for file in sorted(store.folder.glob(f"{KIND}-*/{INPUTS_FILE}")):
        inputs = json.loads(file.read_text())
        given = inputs.pop("quantizers")
        if inputs == same and _fits(given, wanted):
            found.append((len(given), file.parent))
    return [folder for _, folder in sorted(found)]


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
    """Return a model's tensors by the names that they have in its graph, and which names are of one tensor."""
    names: dict[Any, set[str]] = {}
    found = {}
    with export_mode(model), torch.no_grad():
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

    The exporter keeps equal constants once, and folds small ones: what it merged must still be equal, and what may have
    been folded must be what it was.

    Args: shared: sets of names of one tensor each. digests: of the constants that the graph was exported with.
    Raises: LookupError: a graph that cannot hold these constants.
    """
    own = {name: _digest(x) for name, x in constants.items()}
    placed, folded = set(), set()
    for place in graph.graph.initializer:
        if place.name in constants:
            array = constants[place.name].contiguous().numpy()
            if list(place.dims) != list(array.shape):
                raise LookupError(f"{place.name} has the shape {list(place.dims)} there, {list(array.shape)} here")
            place.CopyFrom(numpy_helper.from_array(array, place.name))
            placed.add(place.name)
        elif place.name.startswith(PREFIX):
            if not place.name.endswith(ZERO_POINT):  # all are zeros, and one stands for many
                raise LookupError(f"{place.name} is of the graph, not of the model")
        elif place.data_type in FLOATS:
            folded.add(math.prod(place.dims))
    kept: dict[str | None, set[str]] = {}  # digest there → digests here, of the constants that have a place
    for name in placed:
        kept.setdefault(digests.get(name), set()).add(own[name])
    for names in shared:
        name = min(names)
        before, now = digests.get(name), own[name]
        if before != now and constants[name].numel() > 1 and constants[name].numel() in folded:
            raise LookupError(f"{name} may stand in a constant that was computed from it")
        if not names & placed and kept.get(before, {before}) != {now}:
            raise LookupError(f"{name} has no place of its own in the graph")


def _digest(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + content.tobytes()).hexdigest()[:16]
