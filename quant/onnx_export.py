"""torch to ONNX: the quantized model as one graph with Q/DQ nodes, dynamic batch and sequence length."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quant.attention import ATTENTION_NAME
from quant.checkpoint import check_calibrated
from quant.fake_quantize import along_axis, steps
from quant.formats import INT8
from quant.models.encoder_decoder import HIDDEN_MASK, HIDDEN_STATES, PARTS, is_encoder_decoder
from quant.models.example_inputs import OUTPUT_NAMES, example_inputs, without_cache
from quant.modules import QUANT_LAYER_TYPES, QuantEmbedding
from quant.own_attention import set_attention
from quant.sites.formats import format_names
from quant.tensor_quantizer import named_quantizers


def export_onnx(
    model: PreTrainedModel, path: str | Path | None = None, *, processor: Any = None, opset: int = 20
) -> onnx.ModelProto:
    """Return the ONNX model (and write it to `path`): `export_graph` with a copy of every weight, so up to 2 GB."""
    proto = ir.to_proto(export_graph(model, processor=processor, opset=opset))
    if path is not None:
        onnx.save(proto, path)
    return proto


def export_graph(model: PreTrainedModel, *, processor: Any = None, opset: int = 20) -> ir.Model:
    """Return the ONNX graph with inputs and outputs by their names and free batch and length.

    A float model is exported too. Activations become QuantizeLinear → DequantizeLinear; weights are still float before
    their Q/DQ, and `engine.passes.qdq` stores them as INT8. Opset 20: ONNX Runtime refuses these nodes at 21.
    The weights are the model's own memory, not copies: write or convert the graph before the model changes.
    Raises: RuntimeError: quantizers without an amax. ValueError: a whole encoder-decoder.
    """
    if is_encoder_decoder(model):
        raise ValueError(
            f"{type(model).__name__} is exported in two parts: export_onnx(model_part(model, part)) for each part of "
            f"{', '.join(PARTS)} (quant.models.encoder_decoder)"
        )
    check_calibrated(model)
    model.eval()
    inputs = example_inputs(model, processor=processor)
    wrapped = _ByName(model, tuple(inputs))
    with export_mode(model), torch.no_grad():
        wrapped.output_names = output_names(model, inputs)
        with _quiet():
            program = torch.onnx.export(
                wrapped, tuple(inputs.values()), dynamo=True, opset_version=opset, input_names=list(inputs),
                output_names=list(wrapped.output_names),
                dynamic_shapes=(tuple(dynamic_axes(name) for name in inputs),),
            )  # fmt: skip
    assert program is not None  # only None for a function called with dynamo=False
    graph: Any = program.model
    _strip_metadata(graph)
    if (formats := format_names(model)) != INT8.name:
        graph.metadata_props["int8kit.formats"] = formats  # engines and rows name it from here
    return graph


def _strip_metadata(model: ir.Model) -> None:
    """Drop what the exporter notes of Python's call stack at every node: a megabyte that no runtime reads."""
    values = [value for node in model.graph for value in node.outputs]
    for part in (model, model.graph, *model.graph, *model.graph.inputs, *model.graph.initializers.values(), *values):
        part.metadata_props.clear()


class _ByName(nn.Module):
    """Takes the inputs by position and returns a plain tuple of tensors, as the exporter wants it."""

    output_names: tuple[str, ...]

    def __init__(self, model: PreTrainedModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        output = self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=True, **without_cache(self.model))
        return tuple(output[name] for name in self.output_names)


def output_names(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[str, ...]:
    """Return the names of the outputs that a file of this model has, in the order of `OUTPUT_NAMES`.

    Raises: ValueError: if the model returns none of them.
    """
    output = model(**inputs, return_dict=True)
    names = tuple(name for name in OUTPUT_NAMES if output.get(name) is not None)
    if not names:
        raise ValueError(f"{type(model).__name__} returns {', '.join(output)}; supported: {', '.join(OUTPUT_NAMES)}")
    return names


def dynamic_axes(name: str) -> dict[int, Any]:
    """Return the free axes of an input, as `torch.export` wants them: the batch, and the length where it has one."""
    if name in ("pixel_values", "input_features"):  # Whisper's encoder takes one length
        return {0: torch.export.Dim("batch")}
    if name in (HIDDEN_STATES, HIDDEN_MASK):
        return {0: torch.export.Dim("batch"), 1: torch.export.Dim("encoder_sequence", min=2)}
    return {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", min=2)}


@contextmanager
def export_mode(model: PreTrainedModel) -> Iterator[None]:
    """Fix every scale as a constant and put SmoothQuant's factor into the weights; all is put back after."""
    quantizers = [quantizer for _, quantizer in named_quantizers(model) if quantizer.enabled]
    layers: list[Any] = [m for m in model.modules() if isinstance(m, (*QUANT_LAYER_TYPES, QuantEmbedding))]
    of_weights = {id(layer.weight_quantizer) for layer in layers}
    saved = [(layer, layer.weight) for layer in layers]
    before = model.config._attn_implementation
    set_attention(model, ATTENTION_NAME)
    for layer in layers:
        weight = _export_weight(layer)
        if weight is not layer.weight:
            layer.weight = nn.Parameter(weight.detach())  # a new one: an embedding may share the old
        layer.is_weight_smoothed = isinstance(layer, QUANT_LAYER_TYPES)
    for quantizer in quantizers:
        quantizer.prepare_export(is_clipped=id(quantizer) in of_weights)
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.finish_export()
        for layer, weight in saved:
            layer.weight = weight
            layer.is_weight_smoothed = False
        set_attention(model, before)


def _export_weight(layer: Any) -> Tensor:
    """Return the weight as the file's passes round it: smoothed, and clipped where a code would lie outside the format.

    The layer's own tensor where neither changes it: a large model has no room for a copy of each.
    """
    weight = layer.weight if isinstance(layer, QuantEmbedding) else layer.smoothed_weight()
    quantizer = layer.weight_quantizer
    limits = quantizer.limits() if quantizer.is_active else None
    if limits is None:
        return weight
    low, high = (along_axis(limit, weight, quantizer.axis) for limit in limits)
    codes = steps(weight.detach(), quantizer.broadcast_scale(weight))
    is_inside = codes.min() >= quantizer.format.qmin and codes.max() <= quantizer.format.qmax
    return weight if is_inside else weight.detach().float().clamp(low, high)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's progress lines and deprecation warnings; its errors still come."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
