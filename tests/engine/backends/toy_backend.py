"""A whole backend in one file: ONNX's own reference evaluator, in numpy. Registered by one line in `BACKENDS`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from engine.backend import Backend, BuildOptions, EngineFile, check_precision
from engine.backends.info import BackendInfo, OwnOptions, option
from engine.backends.own_options import own_as_json
from engine.backends.runner import Runner
from engine.bug_report.reproduction import FaultCase, Reproduction, script_against_plain
from engine.cli import UsageError
from engine.inspect.layers import Inspection, InspectRequest, Layer
from engine.made_feeds import batch_of, fit_feeds, in_words, make_feeds
from engine.manifest import check_loadable, read_manifest
from engine.products import find_products, sort_products
from engine.shapes import check_shapes, graph_inputs, set_static_sizes, spread
from engine.source import engine_output, place, read_onnx


@dataclass(frozen=True)
class ToyOptions(OwnOptions):
    """What the evaluator can be asked for."""

    chatter: int | None = option(None, "how much the evaluator prints: 0 (nothing) to 3")

    def check(self, backend: str) -> None:
        """Raise UsageError for a value out of range."""
        if self.chatter is not None and not 0 <= self.chatter <= 3:
            raise UsageError(f"--chatter {self.chatter} must be 0 to 3")


class ToyBackend(Backend):
    """The engine is the file itself; every product is computed in fp32, as ONNX defines it."""

    info = BackendInfo(
        name="toy",
        title="Toy Evaluator",
        target="openvino",
        packages=("onnx",),
        is_thread_safe=True,
        wants_static_shapes=True,
        options=ToyOptions,
    )

    def build(self, onnx_path: str | Path, out: str | Path, options: BuildOptions) -> EngineFile:
        """Write the file with its sizes fixed, and its manifest."""
        options = check_precision(self, options)
        model = read_onnx(onnx_path)
        check_shapes(model, options.shapes)
        with engine_output(out, options.force) as partial:
            fixed = onnx.ModelProto()
            fixed.CopyFrom(model)
            set_static_sizes(fixed, spread(model, options.shapes))
            partial.write_bytes(fixed.SerializeToString())
            products = sort_products(find_products(model), set())
            details = {"options": own_as_json(options.own or ToyOptions()), "versions": {"toy": self.version()}}
            return place(self, ("onnx",), onnx_path, model, partial, out, options, products, details)

    def load(self, engine: str | Path, threads: int | None = None) -> Runner:
        """Return a runner."""
        manifest = read_manifest(engine)
        check_loadable(engine, manifest, self.info, self.version() or "")
        return ToyRunner(onnx.load(str(engine)), manifest.shapes, manifest.options.get("chatter") or 0)

    def inspect(self, engine: str, request: InspectRequest) -> Inspection:
        """Return the file's nodes; a call is timed whole."""
        with self.load(engine) as runner:
            size = batch_of(runner.shapes)
            fed = fit_feeds(request.feeds, runner.inputs, size) if request.feeds else make_feeds(runner.inputs, {})
            start = time.perf_counter()
            runner(fed)
            call_ms = (time.perf_counter() - start) * 1e3
        kinds = {"MatMul": "product", "Gemm": "product"}
        nodes = onnx.load(engine).graph.node
        layers = tuple(Layer(each.name, kinds.get(each.op_type, "other"), each.op_type, "fp32") for each in nodes)
        return Inspection(engine, self.name, self.version(), in_words(fed), layers, call_ms)

    def reproduction(self, case: FaultCase) -> Reproduction:
        """Return a script with the evaluator."""
        lines = ["from onnx.reference import ReferenceEvaluator"]
        lines.append(f'actual = ReferenceEvaluator("{case.name}").run(None, feeds)')
        return script_against_plain(case, "\n".join(lines))


class ToyRunner(Runner):
    """An evaluator of one file."""

    def __init__(self, model: onnx.ModelProto, shapes, chatter: int) -> None:
        types = {each.name: each.type.tensor_type for each in graph_inputs(model)}
        inputs = {
            name: (
                np.dtype(onnx.helper.tensor_dtype_to_np_dtype(each.elem_type)),
                tuple(dim.dim_value or None for dim in each.shape.dim),
            )
            for name, each in types.items()
        }
        super().__init__(shapes, inputs, [each.name for each in model.graph.output])
        self._evaluator = ReferenceEvaluator(model, verbose=chatter)

    def _infer(self, arrays):
        return dict(zip(self.output_names, self._evaluator.run(None, arrays), strict=True))


BACKEND = ToyBackend()
