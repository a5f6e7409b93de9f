"""Graphs of plans cut out of the graph of the whole recipe: an export takes a minute where a cut takes none.

For timing alone: where a site goes, its SmoothQuant factor goes too, and the weights behind it keep theirs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch

from eval.sweep.grid import System
from eval.sweep.workshop import ONNX_FILE, OwnGraph, Workshop
from quant.onnx_export import export_onnx
from quant.sites.site import Site
from quant.tensor_quantizer import named_quantizers

logger = logging.getLogger(__name__)
SCALE, FACTOR = ".export_scale", ".pre_quant_scale"
STEP = 2.0**-20  # between two quantizers, of a range: the exporter keeps equal constants once, and these are not equal


def cut_graphs(workshop: Workshop, whole: System, systems: Iterable[tuple[System, list[Site]]]) -> None:
    """Let a workshop cut the graphs of systems, each with the sites that it lacks, out of that of a whole one."""
    source = workshop.source_digest(whole)
    inputs = {"source": source, "torch": torch.__version__, "told_apart": True}

    def export(folder: Path) -> None:
        loaded = workshop.model_of(whole)
        tell_apart(loaded.model)
        export_onnx(loaded.model, folder / ONNX_FILE, processor=loaded.processor)

    def build(sites: list[Site], path: Path) -> bool:
        graph = onnx.load(
            workshop.store.make("exported", inputs, export, "the whole recipe: torch to ONNX") / ONNX_FILE
        )
        try:
            cut(graph, map(names_in_file, sites))
        except LookupError as error:
            logger.info("%s; the plan is exported", error)
            return False
        onnx.save(graph, path)
        return True

    for system, sites in systems:
        workshop.graphs[system] = OwnGraph({"cut_from": source}, partial(build, sites))


def tell_apart(model: Any) -> None:
    """Change each range of a quantized model by another next to nothing, so that each has a constant of its own."""
    for number, (_, quantizer) in enumerate(named_quantizers(model)):
        if quantizer.is_active and quantizer.amax is not None:
            quantizer.amax = quantizer.amax * (1 + number * STEP)


def names_in_file(site: Site) -> frozenset[str]:
    """Return the names that a site's quantizer may have in a graph: one that is shared has one of its readers'."""
    return frozenset({site.name, *(f"{reader}.{site.role}" for reader in site.consumers)})


def cut(model: onnx.ModelProto, quantizers: Iterable[frozenset[str]]) -> None:
    """Take the Q/DQ pairs of some quantizers out of an exported graph, in place.

    Args: quantizers: each by the names that it may have there.
    Raises: LookupError: one of them has no pair of its own there.
    """
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    pairs: dict[str, list[onnx.NodeProto]] = {}
    replaced: dict[str, str] = {}
    gone: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1].endswith(SCALE):
            pairs.setdefault(node.input[1].removesuffix(SCALE).removeprefix("model."), []).append(node)
    for names in quantizers:
        found = [quantize for name in names for quantize in pairs.get(name, [])]
        if not found:
            raise LookupError(f"the graph has no quantizer {min(names)} of its own")
        for quantize in found:
            source = quantize.input[0]
            factor = made_by.get(source)
            if factor is not None and any(each.endswith(FACTOR) for each in factor.input):
                source = next(each for each in factor.input if not each.endswith(FACTOR))
            gone.append(quantize)
            for reader in graph.node:
                if reader.op_type == "DequantizeLinear" and reader.input[0] == quantize.output[0]:
                    replaced[reader.output[0]] = source
                    gone.append(reader)
    for node in graph.node:
        for index, name in enumerate(node.input):
            while name in replaced:
                name = replaced[name]
            node.input[index] = name
    for node in gone:
        graph.node.remove(node)
