"""Products of an engine by the names of their weights, as a person knows them."""

from __future__ import annotations

from dataclasses import replace

from engine.inspect.layers import Inspection
from engine.products import find_products
from engine.source import read_onnx


def with_product_names(found: Inspection, onnx_path: str | None) -> Inspection:
    """Return the inspection with each product named by its weight in the ONNX file (None: as it is), where the engine
    names the node."""
    if onnx_path is None:
        return found
    names = {alias: each.name for each in find_products(read_onnx(onnx_path)) for alias in each.aliases}
    layers = []
    for layer in found.layers:
        known = [names[source.split("/")[0]] for source in layer.sources if source.split("/")[0] in names]
        if known and layer.is_product:
            layer = replace(layer, name=known[0], products=tuple(known) if len(known) > 1 else layer.products)
        layers.append(layer)
    return replace(found, layers=tuple(layers))
