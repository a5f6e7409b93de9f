"""From a model to an INT8 program on disk: trace, fuse, trace again, save with what its products became."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from transformers import PreTrainedModel

from kernels.attention import MAX_KEYS
from quant.checkpoint import check_calibrated
from quant.dropout import evaluation_mode
from quant.int8_program import lower, norms, products, views
from quant.int8_program.graph import Editor, aten, calls, is_call, tidy
from quant.int8_program.modules import program_model
from quant.models.encoder_decoder import PARTS, is_encoder_decoder
from quant.models.example_inputs import example_inputs, without_cache
from quant.onnx_export import dynamic_axes, output_names  # both formats have the same free axes and outputs
from quant.tensor_quantizer import HALF_TYPES

DESCRIPTION = "int8kit.json"  # the file in the archive that says what the program is
SCHEMA = 1
UNBOUNDED = 2**31
BATCH, SEQUENCE = "batch", "sequence"
MOST_EXTRA_ROWS = 2  # of a table of positions, before the first that is used: OPT's and BART's
GROWN_BY = 3
FLOAT_LINEARS = (aten.linear.default, aten.conv2d.default, aten.conv1d.default, aten.addmm.default)
FLOAT_PRODUCTS = (aten.matmul.default, aten.bmm.default, aten.scaled_dot_product_attention.default)
PASSES: tuple[Callable[[Editor], None], ...] = (
    tidy, views.merge_equal, views.hoist_quantize, views.sink_dequantize, views.merge_equal, norms.read_plain_masks,
    products.make_linears, products.fuse_gated, products.fuse_results, products.merge_linears,
    products.merge_float_linears,
    norms.fuse_attention_results, norms.fuse_norms,
)  # fmt: skip


@dataclass(frozen=True)
class ProgramProduct:
    """One product of a program: the layer's name, whether it multiplies INT8, and the op that computes it."""

    name: str
    kind: str  # linear or attention
    is_int8: bool
    op: str  # such as "linear, gelu, quantize"; float ones: the torch op
    group: int  # products of one group are computed by one call: Q, K and V; both products of attention


@dataclass(frozen=True)
class Description:
    """What a program's archive says of it beside the graph.

    Attributes:
        inputs: each input's type as numpy knows it and its axes: a size, or the name of a free one.
        outputs: each output's axes, None where the size follows from others.
        limits: the largest size of a free axis where the model has one (its table of positions, INT8 attention).
        reads_padding: whether zeros after a sample's end change its outputs, though its mask hides them: then a call
            cannot be padded up to a larger shape.
        dtype: of what is not INT8, fp16 or bf16.
        products: in order of running. unfused: how many quantize, dequantize and products of codes are left over.
        metadata: of its origin (recipe, source).
    """

    inputs: dict[str, tuple[str, tuple[int | str, ...]]]
    outputs: dict[str, tuple[int | str | None, ...]]
    limits: dict[str, int]
    reads_padding: bool
    dtype: str
    products: tuple[ProgramProduct, ...]
    unfused: int
    metadata: Mapping[str, str]
    schema: int = SCHEMA


class _Named(nn.Module):
    """Takes the inputs by position, in the types that feeds have, and returns the outputs as float32."""

    def __init__(self, model: PreTrainedModel, names: tuple[str, ...], outputs: tuple[str, ...], dtype: torch.dtype):
        super().__init__()
        self.model, self.names, self.outputs, self.dtype = model, names, outputs, dtype

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = {
            name: x.to(self.dtype) if x.is_floating_point() else x for name, x in zip(self.names, inputs, strict=True)
        }
        output = self.model(**given, return_dict=True, **without_cache(self.model))
        return tuple(output[name].float() for name in self.outputs)


def export_program(
    model: PreTrainedModel, dtype: str = "fp16", *, processor: Any = None, metadata: Mapping[str, str] | None = None,
    passes: Sequence[Callable[[Editor], None]] = PASSES,
) -> tuple[ExportedProgram, Description]:
    """Return the program of a model, quantized or float, with free batch and length, and its description.

    Args:
        dtype: of all that is not INT8, "fp16" or "bf16".
        passes: over the graph, in order; what is left out is not fused, and the program computes the same.
    Raises: RuntimeError: quantizers without an amax. ValueError: a whole encoder-decoder, outputs nobody knows.
    """
    if is_encoder_decoder(model):
        raise ValueError(
            f"{type(model).__name__} is exported in two parts: export_program(model_part(model, part)) for each part "
            f"of {', '.join(PARTS)} (quant.models.encoder_decoder)"
        )
    check_calibrated(model)
    inputs = example_inputs(model, processor=processor)
    with torch.no_grad(), evaluation_mode(model):
        outputs = output_names(model, inputs)
        reads_padding = _reads_padding(model, inputs, outputs)
        made = _Named(program_model(model, HALF_TYPES[dtype]), tuple(inputs), outputs, HALF_TYPES[dtype])
        axes = {name: {axis: free.__name__ for axis, free in dynamic_axes(name).items()} for name in inputs}
        free = tuple(dict.fromkeys(axes[name], Dim.DYNAMIC) for name in inputs)
        feeds = tuple(x.cpu() for x in inputs.values())
        traced = torch.export.export(made.cpu(), feeds, dynamic_shapes=(free,), strict=False)
        graph: Any = traced.module(check_guards=False)
        found, unfused = fuse(graph, passes)
        program = torch.export.export(graph, feeds, dynamic_shapes=free, strict=False)
    symbols, limits = _symbols(program, axes)
    if SEQUENCE in symbols.values() and (longest := table_of_positions(model)) is not None:
        limits[SEQUENCE] = min(limits.get(SEQUENCE, longest), longest)
    described = {
        name: (str(x.dtype).removeprefix("torch."), tuple(axes[name].get(i, n) for i, n in enumerate(x.shape)))
        for name, x in inputs.items()
    }
    results = {
        name: tuple(n if isinstance(n, int) else symbols.get(str(n)) for n in node.meta["val"].shape)
        for name, node in zip(outputs, program.graph.output_node().args[0], strict=True)
    }
    return program, Description(described, results, limits, reads_padding, dtype, found, unfused, dict(metadata or {}))


def table_of_positions(model: PreTrainedModel) -> int | None:
    """Return how many tokens a model's table of positions has rows for; None where it has no such table.

    A table that is read by position does not bound the length of a traced graph: beyond it a GPU would read what lies
    behind. RoBERTa's positions begin after the padding's row, OPT's at row 2.
    """
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    if not longest:
        return None
    rows: list[int] = []
    modules: Any = model.modules()  # which mypy takes for modules whose every attribute may be one
    of_tokens = _token_embeddings(model)
    for module in modules:
        is_table = isinstance(module, nn.Embedding) and 0 <= module.num_embeddings - longest <= MOST_EXTRA_ROWS
        if is_table and module not in of_tokens:
            unused = getattr(module, "offset", 0 if module.padding_idx is None else module.padding_idx + 1)
            rows.append(module.num_embeddings - int(unused))
    return min(rows, default=None)


def _token_embeddings(model: PreTrainedModel) -> set[nn.Module]:
    """Return what a model and each model in it call their input embeddings.

    A model of two towers (CLIP's) has none of its own.
    """
    found: set[nn.Module] = set()
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            with contextlib.suppress(NotImplementedError, AttributeError):
                found.add(part.get_input_embeddings())
    return found


def _reads_padding(model: PreTrainedModel, inputs: dict[str, Tensor], outputs: tuple[str, ...]) -> bool:
    """Return whether zeros after the end of every free length (also in the masks) change what stood before them.

    A classifier that takes the last token which is not the padding's id does, or a convolution over tokens.
    """
    lengths = {name: [axis for axis, free in dynamic_axes(name).items() if free.__name__ != BATCH] for name in inputs}
    if not any(lengths.values()):
        return False
    grown = {}
    for name, x in inputs.items():
        after = [0, 0] * x.dim()
        for axis in lengths[name]:
            after[2 * (x.dim() - 1 - axis) + 1] = GROWN_BY
        grown[name] = torch.nn.functional.pad(x, after)
    options = without_cache(model)
    before, after_it = model(**inputs, return_dict=True, **options), model(**grown, return_dict=True, **options)
    for name in outputs:
        kept = after_it[name][tuple(slice(size) for size in before[name].shape)]
        if not torch.allclose(kept, before[name], rtol=1e-3, atol=1e-3 * float(before[name].abs().max())):
            return True
    return False


def _symbols(program: ExportedProgram, axes: dict[str, dict[int, str]]) -> tuple[dict[str, str], dict[str, int]]:
    """Return the name of each free axis by its symbol, and the largest sizes that the graph admits."""
    names, limits = {}, {}
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for given, free in zip(program.graph_signature.user_inputs, axes.values(), strict=True):
        for axis, name in free.items():
            size = nodes[str(given)].meta["val"].shape[axis]
            names[str(size)] = name
            bounds = program.range_constraints.get(size.node.expr) if isinstance(size, torch.SymInt) else None
            if bounds is not None and bounds.upper < UNBOUNDED:
                limits[name] = int(bounds.upper)
    for node in program.graph.nodes:
        if node.target is norms.ATTENTION and node.args[0].meta["val"].dtype == torch.int8:
            keys = names.get(str(node.args[1].meta["val"].shape[1]))
            if keys is not None:
                limits[keys] = min(limits.get(keys, MAX_KEYS), MAX_KEYS)
    return names, limits


def fuse(
    graph: GraphModule, passes: Sequence[Callable[[Editor], None]] = PASSES
) -> tuple[tuple[ProgramProduct, ...], int]:
    """Run the passes over a traced graph (in place); return its products and how many Q/DQ the compiler is left."""
    editor = Editor(graph)
    for each in passes:
        each(editor)
    found = _products(graph)
    unfused = len(calls(graph, *lower.WRITERS)) - len(calls(graph, lower.markers.ACTIVATION, lower.markers.MASK))
    lower.lower(editor)
    editor.drop_unused()
    graph.graph.lint()
    graph.recompile()
    return found, unfused


def save_program(program: ExportedProgram, description: Description, path: str | Path) -> None:
    """Write a program as one .pt2 archive, whose DESCRIPTION says what it is."""
    text = json.dumps(asdict(description), indent=1)
    torch.export.save(program, str(path), extra_files={DESCRIPTION: text})


def _products(graph: GraphModule) -> tuple[ProgramProduct, ...]:
    """Return every product of a fused graph that is not lowered yet, in order."""
    found: list[ProgramProduct] = []
    attentions = 0
    for group, node in enumerate(calls(graph)):
        names, kind, is_int8 = [node.name], "linear", False
        op = str(node.target).removeprefix("aten.").partition(".")[0]
        if node.target is products.LINEAR:
            names, is_int8, op = node.meta[products.NAMES], True, ", ".join(["linear", *_extras(node)])
        elif is_call(node, lower.markers.PRODUCT):
            names, op = [products.layer_of(node.args[1])], "product of dequantized codes"
        elif is_call(node, *FLOAT_LINEARS):
            names = node.meta.get(products.NAMES) or _weight_names(node) or names
            op = f"torch {op}"
        elif node.target is norms.ATTENTION:
            names, kind = [f"attention_{attentions}.{side}" for side in ("scores", "values")], "attention"
            is_int8 = node.args[0].meta["val"].dtype == torch.int8
            op = "attention" + (", quantize" if node.meta["val"].dtype == torch.int8 else "")
            attentions += 1
        elif is_call(node, *FLOAT_PRODUCTS):
            kind, op = "attention", f"torch {op}"
        else:
            continue
        found += [ProgramProduct(name, kind, is_int8, op, group) for name in names]
    return tuple(found)


def _weight_names(node: Any) -> list[str]:
    """Return the name of the layer whose weight, perhaps dequantized on the way, a torch product reads."""
    weight: Any = node.args[2 if node.target is aten.addmm.default else 1]
    while weight.op != "get_attr" and weight.all_input_nodes:
        weight = weight.all_input_nodes[0]
    return [products.layer_of(weight)] if weight.op == "get_attr" else []


def _extras(linear: Any) -> list[str]:
    """Return the words for what is fused into a linear."""
    given = dict(zip((a.name for a in linear.target._schema.arguments), linear.args, strict=False))
    words = []
    if given.get("activation", "none") != "none":
        words.append(given["activation"])
    if given.get("gated"):
        words.append("gated")
    if given.get("residual") is not None:
        words.append("residual")
    return [*words, "quantize"] if given["out_dtype"] == torch.int8 else words
