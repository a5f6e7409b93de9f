"""Passes that fuse a quantize into the attention or the norm before it, and the mask into attention."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from kernels.attention import attention
from kernels.rows import norm_quantize
from quant.int8_program.graph import Editor, aten, calls, is_call, shape_of, sole_reader
from quant.int8_program.markers import MASK
from quant.int8_program.products import is_int8_quantize

ATTENTION, NORM_QUANTIZE = attention._opoverload, norm_quantize._opoverload
MAX_WIDTH = 16_384  # of a norm's row, which one program holds


def read_plain_masks(editor: Editor) -> None:
    """Give attention a mask of padding as (B, T), and "causal" as a flag, in place of one for every score."""
    made: dict[Any, Any] = {}
    for node in calls(editor.module, ATTENTION):
        mask: Any = node.args[3]
        if not is_call(mask, MASK):
            continue
        is_seen, _, causal, dtype = mask.args
        if mask not in made:
            made[mask] = additive(editor, mask, is_seen, dtype)
        node.update_arg(3, made[mask])
        _set_arguments(node, causal=causal)
    editor.sweep()


def additive(editor: Editor, before: Any, is_seen: Any, dtype: torch.dtype) -> Any:
    """Return 0 where seen and the type's lowest number elsewhere, in the shape of is_seen."""
    seen = is_seen if is_seen.meta["val"].dtype == torch.bool else editor.call(before, aten.ne.Scalar, is_seen, 0)
    hidden = editor.call(before, aten.logical_not.default, seen)
    zeros = editor.call(before, aten.zeros_like.default, seen, dtype=dtype)
    return editor.call(before, aten.masked_fill.Scalar, zeros, hidden, torch.finfo(dtype).min)


def fuse_attention_results(editor: Editor) -> None:
    """attention → quantize: one op."""
    for node in calls(editor.module, ATTENTION):
        quantize = sole_reader(node)
        if is_int8_quantize(quantize):
            _set_arguments(node, out_dtype=torch.int8, out_scale=quantize.args[1], factor=quantize.args[2])
            node.meta["val"] = node.meta["val"].to(torch.int8)
            editor.replace(quantize, node)
    editor.sweep()


def fuse_norms(editor: Editor) -> None:
    """norm → quantize: one op, which gives the norm itself too where others read it."""
    for node in calls(editor.module, aten.layer_norm.default, aten.rms_norm.default):
        found = _norm(node)
        quantizers = [user for user in node.users if is_int8_quantize(user)]
        if found is None or not quantizers:
            continue
        first = quantizers[0]
        weight, bias, eps = found
        others = len(node.users) > 1
        factor = first.args[2]  # a constant of the model: these stand before all calls
        both = editor.call(node, NORM_QUANTIZE, node.args[0], weight, bias, eps, first.args[1], None, factor,
                           node.target is aten.rms_norm.default, "normed" if others else "none")  # fmt: skip
        editor.replace(first, _item(editor, node, both, 0))
        if others:
            editor.replace(node, _item(editor, node, both, 1))
    editor.sweep()


def _item(editor: Editor, before: Any, both: Any, index: int) -> Any:
    return editor.call(before, operator.getitem, both, index)


def _norm(node: Any) -> tuple[Any, Any, float] | None:
    """Return weight, bias and eps of a norm over the last axis that the op can compute."""
    x: Any = node.args[0]
    width = shape_of(x)[-1]
    if list(node.args[1]) != [width] or not isinstance(width, int) or width > MAX_WIDTH or len(node.args) < 3:
        return None
    if node.target is aten.rms_norm.default:
        weight, bias, eps = node.args[2], None, node.args[3] if len(node.args) > 3 else None
    else:
        weight, bias = node.args[2], node.args[3] if len(node.args) > 3 else None
        eps = node.args[4] if len(node.args) > 4 else 1e-5
    if not isinstance(weight, Node) or not isinstance(eps, float) or x.meta["val"].dtype == torch.float32:
        return None
    return weight, bias, eps


def _set_arguments(node: Any, **values: Any) -> None:
    """Set arguments of an attention call by name."""
    names = [each.name for each in ATTENTION._schema.arguments]
    for name, value in values.items():
        place = names.index(name)
        if place < len(node.args):
            node.update_arg(place, value)
        else:
            node.update_kwarg(name, value)
