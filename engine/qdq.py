"""From the exporter's Q/DQ graph to the file a consumer runs in INT8: an ordered list of passes for each target.

Pure numpy and onnx: it runs where there is no torch. Each pass keeps the numbers; `tests/engine/test_qdq.py` says so
for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx
import onnx_ir as ir

from engine.cli import near_matches
from engine.graph import sweep
from engine.placement import (
    activations_to_uint8,
    dedupe,
    gather_before_dequantize,
    hoist_quantizers,
    split_gemms,
)
from engine.weights import fold_transposes, fold_weights

Pass = Callable[[ir.Model], int]

COMMON: tuple[Pass, ...] = (fold_weights, split_gemms, fold_transposes, dedupe, gather_before_dequantize)
TARGETS: dict[str, tuple[Pass, ...]] = {
    "onnxruntime": (*COMMON, activations_to_uint8),
    "openvino": (*COMMON, hoist_quantizers),
}


def get_target(name: str) -> tuple[Pass, ...]:
    """Return the ordered passes of a target.

    Raises: ValueError: if there is no such target, with its near matches.
    """
    if name not in TARGETS:
        near = near_matches(name, list(TARGETS))
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"unknown target {name!r}; the targets are {', '.join(sorted(TARGETS))}{hint}")
    return TARGETS[name]


def prepare_for_target(
    model: onnx.ModelProto, target: str, metadata: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """Return a checked copy of a Q/DQ model with INT8 weights, placed as the target's consumer fuses it.

    Args:
        model: the exporter's graph (float weights behind QuantizeLinear); it is left as it is.
        target: a key of TARGETS.
        metadata: entries for the file's metadata_props, such as the recipe's digest; `target` is added.
    Raises: ValueError: for an unknown target, or a weight whose scale or zero point is not symmetric INT8;
        onnx.checker.ValidationError: if a pass left an invalid graph.
    """
    passes = get_target(target)
    graph_model = ir.from_proto(model)
    for each in passes:
        each(graph_model)
        sweep(graph_model)
    graph_model.metadata_props.update({**(metadata or {}), "int8kit.target": target})
    prepared = ir.to_proto(graph_model)
    onnx.checker.check_model(prepared)
    return prepared
