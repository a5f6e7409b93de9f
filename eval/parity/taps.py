"""The output of every layer, on both sides of an export: by hooks in PyTorch, as extra outputs in the ONNX file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

from engine.backends.onnxruntime.backend import plain_session
from engine.graph import constant_tensor, users
from engine.lint.graph import LintGraph
from eval.pytorch_runner import PyTorchRunner
from eval.timing.latency import Feeds
from quant.models.pretrained import LoadedModel
from quant.modules import QUANT_LAYERS, is_norm

# What the exporter puts before the model's own parameter names (see quant.onnx_export).
EXPORT_PREFIX = "model."


@dataclass(frozen=True)
class Tap:
    """One layer whose output can be read on both sides."""

    layer: str  # the module's name
    value: str  # the tensor in the ONNX file


def layer_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that are compared, in the order of the model: linear layers, convolutions and norms."""
    kinds = tuple(QUANT_LAYERS)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds) or is_norm(module)}


def torch_layers(loaded: LoadedModel, feeds: Feeds) -> tuple[dict[str, np.ndarray], Feeds]:
    """Return (output by layer in the order of their first call, the model's outputs) of one batch, in float32."""
    taken: dict[str, np.ndarray] = {}

    def hook(name: str) -> Any:
        def take(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and name not in taken:
                taken[name] = output.detach().float().cpu().numpy()

        return take

    runner = PyTorchRunner(loaded)
    handles = [module.register_forward_hook(hook(name)) for name, module in layer_modules(loaded.model).items()]
    try:
        outputs = runner({name: feeds[name] for name in runner.input_names})
    finally:
        for handle in handles:
            handle.remove()
    return taken, outputs


def tapped(proto: onnx.ModelProto, model: nn.Module) -> tuple[onnx.ModelProto, list[Tap]]:
    """Return a copy of the file with the layers' outputs among its own, and which they are.

    A layer is found by the name of its parameters; one whose parameters the exporter merged with equal ones is not.
    """
    graph = LintGraph(proto)
    modules = layer_modules(model)
    values = {**_linear_values(graph), **_norm_values(graph, modules)}
    taps = []
    outputs = {value.name for value in graph.model.graph.outputs}
    for layer, module in modules.items():
        value = values.get(f"{EXPORT_PREFIX}{layer}")
        quantizer = getattr(module, "output_quantizer", None)
        if value is not None and quantizer is not None and quantizer.is_active:
            value = _behind_quantizer(value)  # the module's own output is the rounded one
        if value is None or value.name is None or value.shape is None:
            continue
        if value.name not in outputs:
            value.dtype = value.dtype or ir.DataType.FLOAT
            graph.model.graph.outputs.append(value)
            outputs.add(value.name)
        taps.append(Tap(layer, value.name))
    return ir.to_proto(graph.model), taps


def _linear_values(graph: LintGraph) -> dict[str, ir.Value]:
    """Return the output of every linear layer by its name in the file, behind its bias."""
    found: dict[str, ir.Value] = {}
    for site in graph.products:
        if not site.is_linear:
            continue
        output = site.node.outputs[0]
        readers = users(output)
        if len(readers) == 1 and readers[0].op_type == "Add":
            bias = next((x for x in readers[0].inputs if x is not None and x is not output), None)
            shape = None if bias is None else constant_tensor(bias)
            if shape is not None and len(shape.shape.numpy()) == 1:
                output = readers[0].outputs[0]
        found[site.name] = output
    return found


def _norm_values(graph: LintGraph, modules: dict[str, nn.Module]) -> dict[str, ir.Value]:
    """Return what the last node that reads a norm's parameters makes, by the norm's name in the file."""
    found: dict[str, ir.Value] = {}
    for name, module in modules.items():
        if not is_norm(module):
            continue
        last = "bias" if getattr(module, "bias", None) is not None else "weight"
        parameter = graph.model.graph.initializers.get(f"{EXPORT_PREFIX}{name}.{last}")
        readers = [] if parameter is None else users(parameter)
        if len(readers) == 1:
            found[f"{EXPORT_PREFIX}{name}"] = readers[0].outputs[0]
    return found


def _behind_quantizer(value: ir.Value) -> ir.Value | None:
    """Return the dequantized form of `value`."""
    for quantize in users(value):
        if quantize.op_type == "QuantizeLinear":
            for dequantize in users(quantize.outputs[0]):
                if dequantize.op_type == "DequantizeLinear":
                    return dequantize.outputs[0]
    return None


def with_outputs(proto: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """Return a copy that keeps only the named ones of its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    kept = [each for each in proto.graph.output if each.name in names]
    del copy.graph.output[:]
    copy.graph.output.extend(kept)
    return copy


@contextmanager
def engine_of(proto: onnx.ModelProto, backend: str, folder: Any) -> Iterator[Any]:
    """Yield the runner of an engine that is built from the file into `folder`."""
    from engine.backend import BuildOptions, get_backend

    chosen = get_backend(backend)
    for reason in (chosen.check_build(), chosen.check_run()):
        if reason:
            raise RuntimeError(f"backend {backend} cannot run the layers here: {reason}")
    onnx.save(proto, folder / "tapped.onnx")
    chosen.build(folder / "tapped.onnx", folder / "engine", BuildOptions(force=True))
    with chosen.load(folder / "engine") as runner:
        yield runner


def plain_layers(proto: onnx.ModelProto, feeds: Feeds) -> Feeds:
    """Return all outputs of the file as ONNX defines them: ONNX Runtime without any optimization."""
    session = plain_session(proto.SerializeToString())
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()}), strict=True))
