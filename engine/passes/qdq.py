"""From the exporter's Q/DQ graph to the file a consumer runs in INT8: an ordered list of passes for each target.

Pure numpy and onnx: it runs where there is no torch. Each pass keeps the numbers, as
`tests/engine/passes/test_qdq.py` says for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx
import onnx_ir as ir

from engine.cli import did_you_mean
from engine.graph import sweep
from engine.passes.half import HALF_TYPES, to_half
from engine.passes.lowering import expand_operators, float_weights, own_mask, take_sizes, to_opset_17
from engine.passes.placement import (
    activations_to_uint8,
    conv_inputs_to_uint8,
    dedupe,
    gather_before_dequantize,
    hoist_quantizers,
    split_gemms,
)
from engine.passes.tensorrt_graph import drop_true_masks, quantize_attention_outputs
from engine.passes.weights import fold_transposes, fold_weights

Pass = Callable[[ir.Model], int]

COMMON: tuple[Pass, ...] = (fold_weights, split_gemms, fold_transposes, dedupe)
TARGETS: dict[str, tuple[Pass, ...]] = {
    "onnxruntime": (*COMMON, gather_before_dequantize, activations_to_uint8),
    "openvino": (*COMMON, gather_before_dequantize, hoist_quantizers, conv_inputs_to_uint8),
    # TensorRT-RTX stops at integers of a constant that anything but DequantizeLinear reads: tables stay behind theirs
    "tensorrt": (*COMMON, drop_true_masks, quantize_attention_outputs),  # then typed as fp16 or bf16
    "tensorrt8": (
        fold_weights, split_gemms, fold_transposes, dedupe, drop_true_masks,
        own_mask, take_sizes, expand_operators, float_weights, to_opset_17,
    ),
}  # fmt: skip
HALF_TARGET = "tensorrt"
BF16_OPSET = 22  # the first whose Conv knows the type


def get_target(name: str) -> tuple[Pass, ...]:
    """Return the ordered passes of a target.

    Raises: ValueError: if there is no such target, with its near matches.
    """
    if name not in TARGETS:
        hint = did_you_mean(name, TARGETS, most=3)
        raise ValueError(f"unknown target {name!r}; the targets are {', '.join(sorted(TARGETS))}{hint}")
    return TARGETS[name]


def prepare_for_target(
    model: onnx.ModelProto, target: str, metadata: Mapping[str, str] | None = None, dtype: str | None = None
) -> onnx.ModelProto:
    """Return a checked copy of a Q/DQ model with INT8 weights, placed as the target's consumer fuses it.

    Args:
        model: the exporter's graph (float weights behind QuantizeLinear); it is left as it is.
        target: a key of TARGETS.
        metadata: entries for the file's metadata_props, such as the recipe's digest; `target` is added.
        dtype: type of everything that is not INT8: fp16 (the default there) or bf16 for target tensorrt, and None
            (fp32) for the others.
    Raises: ValueError: for an unknown target or dtype, a weight whose scale or zero point is not symmetric INT8 or
        which the type cannot hold; onnx.checker.ValidationError: if a pass left an invalid graph.
    """
    graph_model = ir.from_proto(model)
    prepare_graph(graph_model, target, metadata, dtype)
    prepared = ir.to_proto(graph_model)
    is_typed = check_dtype(target, dtype) is not None
    onnx.checker.check_model(prepared, full_check=is_typed)  # the types of every node, where a pass set them
    return prepared


def prepare_graph(
    model: ir.Model, target: str, metadata: Mapping[str, str] | None = None, dtype: str | None = None
) -> None:
    """Prepare a graph in place, unchecked; see `prepare_for_target`. Each weight is read once, none is copied whole."""
    passes = get_target(target)
    dtype = check_dtype(target, dtype)
    if dtype is not None:
        passes = (*passes, to_half(dtype))
    for each in passes:
        each(model)
        sweep(model)
    if dtype == "bf16":
        model.graph.opset_imports[""] = BF16_OPSET  # from 20 only types were added to the operators we use
    typed = {"int8kit.dtype": dtype} if dtype else {}
    model.metadata_props.update({**(metadata or {}), "int8kit.target": target, **typed})


def takes_dtype(target: str) -> bool:
    """Whether a target's file is typed as fp16 or bf16, and not fp32."""
    return target == HALF_TARGET


def check_dtype(target: str, dtype: str | None) -> str | None:
    """Return the half type of a target's file, None for fp32.

    Raises: ValueError: a type that the target has not.
    """
    if takes_dtype(target):
        if dtype not in (None, *HALF_TYPES):
            raise ValueError(f"unknown dtype {dtype!r}; target {target} takes {', '.join(HALF_TYPES)}")
        return dtype or next(iter(HALF_TYPES))
    if dtype is not None:
        raise ValueError(f"target {target} is fp32; --dtype {dtype} is for target {HALF_TARGET}")
    return None
