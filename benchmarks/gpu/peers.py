"""Peers on the same model: torchao's INT8 configurations, compiled as its documentation says, and TensorRT.

Both of torchao's end in `torch._int_mm`: the compiler puts the quantizers of activations and the scales around it.
TensorRT lives in an interpreter of its own; the types of what is not INT8 are its builder's.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.backend import BuildOptions
from engine.backends.own_options import own_from_words
from engine.backends.runner import Runner
from engine.backends.tensorrt.process import TrtProcess
from engine.graph_file import save_graph
from engine.passes.qdq import prepare_graph
from engine.passes.targets import check_dtype
from engine.shapes import ShapeRange
from kernels.tune import time_in_turn
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
    """TensorRT in another interpreter: a context, whose end ends it.

    Args:
        python: that interpreter, as in a sweep's --tensorrt-python.
        arguments: for its builder, as in a sweep's --build-arguments. Unknown ones end the program.
    """

    def __init__(self, python: str, arguments: str) -> None:
        self.own = own_from_words("--tensorrt-arguments", arguments, "tensorrt")
        self.backend = TrtProcess(python)

    def __enter__(self) -> TensorRTPeers:
        return self

    def __exit__(self, *_: object) -> None:
        self.backend.close()

    @cached_property
    def target(self) -> str:
        """Which graph this TensorRT reads."""
        return self.backend.target()

    def file_of(self, program: Path) -> Path:
        """Return where the ONNX file beside a program stands."""
        return program.with_suffix(f".{self.target}.onnx")

    def export(self, model: PreTrainedModel, program: Path) -> None:
        """Write the ONNX file of a model, float or quantized, beside its program."""
        graph = export_graph(model)
        prepare_graph(graph, self.target, {}, check_dtype(self.target, None))
        save_graph(graph, self.file_of(program))

    @contextmanager
    def engines(self, programs: Mapping[str, Path], feeds: Mapping[str, np.ndarray]) -> Iterator[TensorRTEngines]:
        """Give engines for the feeds' shapes, built from the files beside these programs, by their names in a row."""
        shapes = {name: ShapeRange(*(tuple(x.shape),) * 3) for name, x in feeds.items()}
        with ExitStack() as stack:
            found = {}
            for label, program in programs.items():
                engine = program.with_suffix(".trt")
                self.backend.build(self.file_of(program), engine,
                                   BuildOptions(shapes, force=True, precision="fp16", own=self.own))  # fmt: skip
                name = f"TensorRT {self.backend.version()} {label}"
                found[name] = stack.enter_context(self.backend.load(engine))
            yield TensorRTEngines(found, feeds)


@dataclass(frozen=True)
class TensorRTEngines:
    """Loaded engines by their names in a row, and what they are fed."""

    runners: Mapping[str, Runner]
    feeds: Mapping[str, np.ndarray]

    def round(self) -> dict[str, float]:
        """Return each engine's milliseconds of a call: the median of three, by the device's events."""
        return {name: statistics.median(runner.time({key: self.feeds[key] for key in runner.input_names}, 3, 1))
                for name, runner in self.runners.items()}  # fmt: skip


def times_of(
    graphs: Mapping[str, Any], rounds: int, others: TensorRTPeers | None, sources: Mapping[str, Path],
    arrays: Mapping[str, np.ndarray],
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:  # fmt: skip
    """Return milliseconds of each round by label: of the graphs, and of TensorRT's engines of `sources`."""
    if others is None:
        return dict(zip(graphs, time_in_turn(list(graphs.values()), rounds), strict=True)), {}
    times: dict[str, list[float]] = {label: [] for label in graphs}
    of_others: dict[str, list[float]] = {}
    try:
        with others.engines(sources, arrays) as engines:
            for number in range(rounds):
                before = engines.round() if number % 2 else None
                for label, ms in zip(graphs, time_in_turn(list(graphs.values()), 1), strict=True):
                    times[label] += ms
                for label, taken in (before or engines.round()).items():
                    of_others.setdefault(label, []).append(taken)
    except Exception as error:  # of TensorRT on a file or in a round; the row then lacks this peer
        print("PEER FAILED TensorRT", type(error).__name__, str(error)[:300], flush=True)
        return times_of(graphs, rounds, None, sources, arrays)
    return times, of_others
