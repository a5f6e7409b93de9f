"""The last pass: what no other took becomes plain torch, which the compiler fuses with its neighbours."""

from __future__ import annotations

from typing import Any

import torch

from quant.int8_program import markers
from quant.int8_program.graph import Editor, aten, calls
from quant.int8_program.norms import additive

CPU = torch.device("cpu")  # a program is traced there; who runs it elsewhere moves what names a device


def lower(editor: Editor) -> None:
    """Write every marker that is left as plain torch."""
    for node in calls(editor.module, *WRITERS):
        editor.replace(node, WRITERS[node.target](editor, node))
    editor.sweep()


def _quantize(editor: Editor, node: Any) -> Any:
    x, scale, factor, qmin, qmax = node.args
    y = editor.call(node, aten.to.dtype, x, torch.float32)
    if factor is not None:
        y = editor.call(node, aten.mul.Tensor, y, factor)
    step = editor.constant(node, torch.tensor(scale))  # by a tensor: a GPU divides by a number as times its reciprocal
    y = editor.call(node, aten.round.default, editor.call(node, aten.div.Tensor, y, step))
    return editor.call(node, aten.to.dtype, editor.call(node, aten.clamp.default, y, qmin, qmax), torch.int8)


def _dequantize(editor: Editor, node: Any) -> Any:
    codes, scale, dtype = node.args
    y = editor.call(node, aten.mul.Tensor, editor.call(node, aten.to.dtype, codes, torch.float32), scale)
    return editor.call(node, aten.to.dtype, y, dtype)


def _product(editor: Editor, node: Any) -> Any:
    x, weight, scale, bias = node.args
    dtype = x.meta["val"].dtype
    column = editor.call(node, aten.unsqueeze.default, scale, 1)
    wide = editor.call(node, aten.mul.Tensor, editor.call(node, aten.to.dtype, weight, torch.float32), column)
    half = editor.call(node, aten.to.dtype, wide, dtype)
    return editor.call(
        node, aten.linear.default, x, half, None if bias is None else editor.call(node, aten.to.dtype, bias, dtype)
    )


def _activation(editor: Editor, node: Any) -> Any:
    x, name = node.args
    if name == "quick_gelu":
        scaled = editor.call(node, aten.mul.Tensor, x, 1.702)
        return editor.call(node, aten.mul.Tensor, x, editor.call(node, aten.sigmoid.default, scaled))
    target: Any = {"relu": aten.relu.default, "silu": aten.silu.default}.get(str(name), aten.gelu.default)
    return editor.call(node, target, x, **({"approximate": "tanh"} if name == "gelu_tanh" else {}))


def _mask(editor: Editor, node: Any) -> Any:
    is_seen, q_length, causal, dtype = node.args
    seen: Any = editor.call(node, aten.ne.Scalar, is_seen, 0)
    for axis in (1, 1):
        seen = editor.call(node, aten.unsqueeze.default, seen, axis)
    if causal:
        length = editor.call(node, aten.sym_size.int, is_seen, 1)
        columns = editor.call(node, aten.arange.default, length, device=CPU)
        rows = editor.call(
            node, aten.unsqueeze.default, editor.call(node, aten.arange.default, q_length, device=CPU), 1
        )
        seen = editor.call(node, aten.logical_and.default, seen, editor.call(node, aten.le.Tensor, columns, rows))
    return additive(editor, node, seen, dtype)


WRITERS: dict[Any, Any] = {
    markers.QUANTIZE: _quantize,
    markers.DEQUANTIZE: _dequantize,
    markers.PRODUCT: _product,
    markers.ACTIVATION: _activation,
    markers.MASK: _mask,
}
