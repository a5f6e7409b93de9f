"""Passes over quantize and dequantize alone: one of each for one tensor, next to who makes and who reads the codes."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from quant.int8_program.graph import RESHAPES, VIEWS, Editor, calls, is_call, shape_of, sole_reader
from quant.int8_program.markers import DEQUANTIZE, QUANTIZE


def merge_equal(editor: Editor) -> None:
    """Let readers of one tensor that round it alike share one quantize and one dequantize."""
    for target in (QUANTIZE, DEQUANTIZE):
        seen: dict[Any, Any] = {}
        for node in calls(editor.module, target):
            key = tuple(_identity(editor, each) for each in node.args)
            if key in seen:
                editor.replace(node, seen[key])
            else:
                seen[key] = node
    editor.sweep()


def hoist_quantize(editor: Editor) -> None:
    """Move each quantize before the views that it alone reads, to the product that makes its tensor."""
    for node in calls(editor.module, QUANTIZE):
        source: Any = node.args[0]
        chain: list[Any] = []
        while is_call(source, *VIEWS) and sole_reader(source) is not None:
            chain.append(source)
            source = source.args[0]
        while chain and not _may_pass(node, chain, source):
            source = chain.pop()
        if not chain:
            continue
        moved = editor.call(node, QUANTIZE, source, *node.args[1:])
        for view in reversed(chain):
            moved = editor.call(node, view.target, moved, *view.args[1:], **view.kwargs)
        editor.replace(node, moved)
    editor.sweep()


def sink_dequantize(editor: Editor) -> None:
    """Move each dequantize behind the views of it, to the product that reads the codes."""
    for node in calls(editor.module, *VIEWS):
        source: Any = node.args[0]
        if is_call(source, DEQUANTIZE):
            view = editor.call(node, node.target, source.args[0], *node.args[1:], **node.kwargs)
            editor.replace(node, editor.call(node, DEQUANTIZE, view, *source.args[1:]))
    editor.sweep()


def _may_pass(node: Any, chain: list[Any], source: Any) -> bool:
    """Return whether a quantize may stand before these views: with a factor for each column, columns must stay."""
    if node.args[2] is None:
        return True
    last = shape_of(source)[-1], shape_of(chain[0])[-1]
    return all(each.target in RESHAPES for each in chain) and isinstance(last[0], int) and last[0] == last[1]


def _identity(editor: Editor, value: Any) -> Any:
    """Return what tells an argument apart: constants by their memory, since one may have several names."""
    if isinstance(value, Node) and value.op == "get_attr":
        return ("constant", editor.tensor(value).data_ptr())
    return value
