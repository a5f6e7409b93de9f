"""Passes that make `int8kit::linear` of marked products and fuse into each what follows it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from kernels.linear import interleave, linear
from quant.formats import INT8
from quant.int8_program.graph import Editor, aten, calls, have_same_shape, is_call, sole_reader
from quant.int8_program.markers import ACTIVATION, DEQUANTIZE, PRODUCT, QUANTIZE

LINEAR = linear._opoverload
NAMES = "int8kit_names"  # key of a node's meta: the layers whose products it computes
# GELU as fp16 would round it where codes follow: their step is far wider than its error of 2.5e-4 |y|.
FAST = {"gelu": "gelu_fast"}


def make_linears(editor: Editor) -> None:
    """Let each product of two INT8 tensors be `int8kit::linear`; a product of a float stays marked."""
    for node in calls(editor.module, PRODUCT):
        x, weight, scale, bias = node.args
        if not is_call(x, DEQUANTIZE):
            continue
        codes, step, dtype = x.args
        combined = editor.constant(node, editor.tensor(scale) * step)
        made = editor.call(node, LINEAR, codes, weight, combined, bias, dtype)
        made.meta[NAMES] = [layer_of(weight)]
        editor.replace(node, made)
    editor.sweep()


def fuse_gated(editor: Editor) -> None:
    """activation(gate) * up → quantize, of two products of the same codes: one product with interleaved rows."""
    for multiply in calls(editor.module, aten.mul.Tensor):
        quantize = _quantizer_after(multiply)
        sides = list(multiply.args)
        if quantize is None or not all(isinstance(each, Node) for each in sides):
            continue
        for act, up in (sides, sides[::-1]):
            name, gate = _activation(act)
            pair = [gate, up]
            if name is None or not all(_is_plain(each) and sole_reader(each) is not None for each in pair):
                continue
            if gate.args[0] is not up.args[0] or sole_reader(act) is None:
                continue
            if not have_same_shape(gate, up):
                continue
            weight, scale, bias = (
                None if parts is None else editor.constant(quantize, interleave(*parts))
                for parts in _columns(editor, pair)
            )
            made = editor.call(
                quantize, LINEAR, gate.args[0], weight, scale, bias, torch.int8, quantize.args[1], FAST.get(name, name),
                None, 1.0, quantize.args[2], True,
            )  # fmt: skip
            made.meta[NAMES] = [*gate.meta[NAMES], *up.meta[NAMES]]
            editor.replace(quantize, made)
            break
    editor.sweep()


def fuse_results(editor: Editor) -> None:
    """product → activation → quantize, product → quantize, product + residual (→ quantize): one op each."""
    for node in calls(editor.module, LINEAR):
        if not _is_plain(node):
            continue
        reader = sole_reader(node)
        name, _ = _activation(reader)
        if reader is not None and name is not None and (quantize := _quantizer_after(reader)) is not None:
            _to_int8(editor, node, quantize, FAST.get(name, name))
        elif (quantize := _quantizer_after(node)) is not None:
            _to_int8(editor, node, quantize, "none")
        elif is_call(reader, aten.add.Tensor) and not reader.kwargs:
            _add_residual(editor, node, reader)
    editor.sweep()


def merge_linears(editor: Editor) -> None:
    """Let products of the same codes (Q, K and V) be one, whose columns are then split."""
    groups: dict[Any, list[Any]] = {}
    for node in calls(editor.module, LINEAR):
        if _is_plain(node, may_be_int8=True):
            groups.setdefault((node.args[0], node.args[4]), []).append(node)
    for (codes, dtype), group in groups.items():
        if len(group) > 1:
            _merge(editor, codes, dtype, group)
    editor.sweep()


def merge_float_linears(editor: Editor) -> None:
    """The same for products that the recipe leaves float, and for a float model's."""
    groups: dict[Any, list[Any]] = {}
    for node in calls(editor.module, aten.linear.default):
        given = [*node.args, None][:3]
        if all(each is None or (isinstance(each, Node) and each.op == "get_attr") for each in given[1:]):
            groups.setdefault((given[0], given[2] is None), []).append(node)
    for (x, _), group in groups.items():
        if len(group) < 2:
            continue
        first = group[0]
        columns = [editor.tensor(node.args[1]) for node in group]
        biases = [editor.tensor(node.args[2]) for node in group if len(node.args) > 2 and node.args[2] is not None]
        made = editor.call(first, aten.linear.default, x, editor.constant(first, torch.cat(columns)),
                           editor.constant(first, torch.cat(biases)) if biases else None)  # fmt: skip
        made.meta[NAMES] = [layer_of(node.args[1]) for node in group]
        _split(editor, made, group, [len(each) for each in columns])
    editor.sweep()


def layer_of(weight: Any) -> str:
    """Return the name of the layer whose weight, or codes, a get_attr node reads."""
    return str(weight.target).removeprefix("model.").removesuffix(".weight").removesuffix(".codes")


def is_int8_quantize(node: Any) -> bool:
    """Return whether a node is a quantize whose codes are those that the ops write: the whole range of INT8."""
    return is_call(node, QUANTIZE) and tuple(node.args[3:5]) == INT8.ends


def _merge(editor: Editor, codes: Any, dtype: torch.dtype, group: Sequence[Any]) -> None:
    first = group[0]
    parts = _columns(editor, group)
    weight, scale, bias = (None if each is None else editor.constant(first, torch.cat(each)) for each in parts)
    steps = [float(each.args[5]) if len(each.args) > 5 else 1.0 for each in group]
    factor, step = None, steps[0]
    if len(set(steps)) > 1:  # a scale for each column: a factor before the common one
        sizes = [len(each) for each in parts[1] or ()]
        factor = editor.constant(
            first, torch.cat([torch.full((n,), step / s) for n, s in zip(sizes, steps, strict=True)])
        )
    made = editor.call(first, LINEAR, codes, weight, scale, bias, dtype, step, "none", None, 1.0, factor)
    made.meta[NAMES] = [name for each in group for name in each.meta[NAMES]]
    _split(editor, made, group, [len(part) for part in parts[0] or ()])


def _split(editor: Editor, made: Any, group: Sequence[Any], sizes: Sequence[int]) -> None:
    """Let each product's readers read its columns of the one that was made of all."""
    ends = list(itertools.accumulate(sizes))
    pieces = [
        editor.call(group[0], aten.slice.Tensor, made, -1, start, end)
        for start, end in zip((0, *ends), ends, strict=False)
    ]
    for each, piece in zip(group, pieces, strict=True):
        editor.replace(each, piece)


def _columns(editor: Editor, group: Sequence[Any]) -> list[list[Tensor] | None]:
    """Return the weights, scales and biases of several products; a missing bias among others is zeros."""
    weights, scales = ([editor.tensor(each.args[place]) for each in group] for place in (1, 2))
    biases: list[Tensor] | None = None
    if any(each.args[3] is not None for each in group):
        biases = [
            torch.zeros(len(scale)) if each.args[3] is None else editor.tensor(each.args[3])
            for each, scale in zip(group, scales, strict=True)
        ]
    return [weights, scales, biases]


def _to_int8(editor: Editor, product: Any, quantize: Any, activation: str) -> None:
    made = editor.call(
        quantize, LINEAR, *product.args[:4], torch.int8, quantize.args[1], activation, None, 1.0, quantize.args[2]
    )
    made.meta[NAMES] = product.meta[NAMES]
    editor.replace(quantize, made)


def _add_residual(editor: Editor, product: Any, add: Any) -> None:
    """Fuse an addition; the sum, and what is quantized of it alone, leave the product."""
    other: Any = next(each for each in add.args if each is not product)
    if not have_same_shape(other, product):
        return
    scale: Any = 1.0
    if is_call(other, DEQUANTIZE):
        other, scale = other.args[0], other.args[1]
    elif other.meta["val"].dtype != product.meta["val"].dtype:
        return
    quantize = _quantizer_after(add)
    ending = (product.args[4], 1.0, "none", other, scale)
    if quantize is not None:
        ending = (torch.int8, quantize.args[1], "none", other, scale)
    last = add if quantize is None else quantize
    made = editor.call(last, LINEAR, *product.args[:4], *ending, None if quantize is None else quantize.args[2])
    made.meta[NAMES] = product.meta[NAMES]
    editor.replace(last, made)


def _is_plain(node: Any, *, may_be_int8: bool = False) -> bool:
    """Return whether a node is a linear with nothing fused into it yet (but its result's quantizer, where allowed)."""
    if not is_call(node, LINEAR):
        return False
    ending = (*node.args[6:], *("none", None, 1.0, None, False)[len(node.args[6:]) :])
    return ending == ("none", None, 1.0, None, False) and (may_be_int8 or node.args[4] != torch.int8)


def _activation(node: Any) -> tuple[str | None, Any]:
    """Return the name in `kernels.reference.ACTIVATIONS` of a node that is one, and what it reads."""
    if is_call(node, ACTIVATION):
        return node.args[1], node.args[0]
    if is_call(node, aten.gelu.default):
        tanh = (node.args[1] if len(node.args) > 1 else node.kwargs.get("approximate", "none")) == "tanh"
        return ("gelu_tanh" if tanh else "gelu"), node.args[0]
    if is_call(node, aten.silu.default):
        return "silu", node.args[0]
    if is_call(node, aten.relu.default):
        return "relu", node.args[0]
    return None, None


def _quantizer_after(node: Any) -> Any:
    """Return the quantize that alone reads a node, where the ops can write its codes."""
    reader = sole_reader(node)
    return reader if reader is not None and is_int8_quantize(reader) else None
