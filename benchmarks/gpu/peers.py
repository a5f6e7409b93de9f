"""Peers on the same model: torchao's INT8 configurations, compiled as its documentation says, and TensorRT.

Both of torchao's end in `torch._int_mm`: the compiler puts the quantizers of activations and the scales around it.
TensorRT lives in an interpreter of its own; the types of what is not INT8 are its builder's.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.backend import Backend, BuildOptions, get_backend
from engine.backends.own_options import own_from_words
from engine.graph_file import save_graph
from engine.passes.qdq import prepare_graph
from engine.passes.targets import check_dtype
from engine.shapes import ShapeRange
from quant.onnx_export import export_graph

# torchao's recommended_inductor_config_setter, which sets them for the whole process.
COMPILER = {"coordinate_descent_tuning": True, "coordinate_descent_check_all_directions": True,
            "force_fuse_int_mm_with_mul": True}  # fmt: skip
SMALLEST = 64  # torch._int_mm takes no head of a few classes
NAMES = ("torchao dynamic", "torchao static")


def quantized_copy(model: nn.Module, name: str, feeds: Mapping[str, Tensor], options: Mapping[str, Any]) -> nn.Module:
    """Return a copy of a half-precision model on the GPU, its linear layers quantized by one of `NAMES`.

    Args:
        feeds, options: of one forward pass; "static" takes the activations' largest values in it.
    """
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, PerRow, PerTensor, quantize_
    from torchao.quantization.quant_api import Int8StaticActivationInt8WeightConfig

    model = copy.deepcopy(model)
    chosen = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features >= SMALLEST}
    if name == "torchao dynamic":
        config = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
        quantize_(model, config, filter_fn=lambda _, n: n in chosen)
        return model
    largest: dict[str, Tensor] = {}

    def keep(name: str, x: Tensor) -> None:
        largest[name] = x.abs().amax().reshape([1] * x.ndim)  # torchao wants as many axes as the activation has

    hooks = [m.register_forward_pre_hook(lambda _, x, n=n: keep(n, x[0])) for n, m in chosen.items()]
    with torch.no_grad():
        model(**feeds, **options)
    for hook in hooks:
        hook.remove()
    for each in largest:
        scale = largest[each].float() / 127
        config = Int8StaticActivationInt8WeightConfig(
            act_quant_scale=scale, granularity=[PerTensor(), PerRow()], set_inductor_config=False
        )
        quantize_(model, config, filter_fn=lambda _, n, each=each: n == each)
    return model


@contextmanager
def torchao_compiler() -> Iterator[None]:
    """Set the compiler as torchao recommends, and back."""
    with torch._inductor.config.patch(COMPILER):
        yield


class TensorRTPeers:
    """Engines of TensorRT in another interpreter, timed in the rounds of others.

    Args:
        python: that interpreter, as in a sweep's --tensorrt-python.
        arguments: for its builder, as in a sweep's --build-arguments.
    """

    def __init__(self, python: str, arguments: str) -> None:
        found = get_backend("tensorrt").in_interpreter(python)
        assert found is not None, "the backend tensorrt lives in other interpreters"
        self.backend: Backend = found
        self.own = own_from_words("--tensorrt-arguments", arguments, "tensorrt")
        self.runners: dict[str, Any] = {}
        self._feeds: dict[str, dict[str, np.ndarray]] = {}

    def export(self, model: PreTrainedModel, path: Path) -> None:
        """Write the ONNX file of a model, float or quantized, that this TensorRT reads."""
        target = self.backend.target()
        graph = export_graph(model)
        prepare_graph(graph, target, {}, check_dtype(target, None))
        save_graph(graph, path)

    def add(self, label: str, onnx: Path, feeds: Mapping[str, np.ndarray]) -> str:
        """Build an engine for the feeds' shapes from an ONNX file, load it, and return its name in a row."""
        shapes = {name: ShapeRange(*(tuple(x.shape),) * 3) for name, x in feeds.items()}
        engine = onnx.with_suffix(".trt")
        self.backend.build(onnx, engine, BuildOptions(shapes, force=True, precision="fp16", own=self.own))
        name = f"TensorRT {self.backend.version()} {label}"
        self.runners[name] = self.backend.load(engine)
        self._feeds[name] = {key: feeds[key] for key in self.runners[name].input_names}
        return name

    def round(self) -> dict[str, float]:
        """Return each engine's milliseconds of a call: the median of ten, by the device's events."""
        return {name: statistics.median(runner.time(self._feeds[name], iterations=10, warmup=3))
                for name, runner in self.runners.items()}  # fmt: skip

    def close(self) -> None:
        for runner in self.runners.values():
            runner.close()
        self.runners.clear()
