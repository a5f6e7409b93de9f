"""ONNX Runtime: the engine is the optimized ONNX file, with the session options that measured fastest on x86."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from engine.backend import Backend, BuildOptions, EngineFile, check_precision, require, saturation_of
from engine.backends.info import BackendInfo
from engine.backends.runner import Runner
from engine.bug_report.reproduction import FaultCase, Reproduction, script_against_plain
from engine.graph_file import MAX_FILE_BYTES, SMALL_BYTES, data_path, weight_bytes
from engine.inspect.layers import Inspection, InspectRequest
from engine.manifest import Products, check_loadable, read_manifest
from engine.shapes import ShapeRange, check_shapes, set_static_sizes, spread
from engine.source import engine_output, place, read_onnx

# SkipLayerNormalization's CPU kernel is slower than Add and LayerNormalization apart (onnxruntime 1.31: 11 ms
# against 2 at 32 x 64 x 384).
DISABLED_OPTIMIZERS = ["SkipLayerNormFusion"]
# Where a model given as bytes has its weights, and an optimized one's go (onnxruntime_session_options_config_keys.h).
FOLDER_OF_WEIGHTS = "session.model_external_initializers_file_folder_path"
WRITTEN_WEIGHTS = "session.optimized_model_external_initializers"
EXACT_SUMS = ("session.x64quantprecision", "1")
INT8_OPS = frozenset(
    {
        "MatMulIntegerToFloat",
        "MatMulInteger",
        "QLinearMatMul",
        "DynamicQuantizeMatMul",
        "QGemm",
        "QLinearConv",
        "ConvInteger",
        "QAttention",
    }
)
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(double)": np.float64,
}


class OrtBackend(Backend):
    """Builds and loads engines of ONNX Runtime's CPU provider."""

    info = BackendInfo(
        name="onnxruntime",
        title="ONNX Runtime",
        target="onnxruntime",
        packages=("onnxruntime", "onnxruntime-gpu"),
        saturation_mend="weights are stored as uint8 (session.x64quantprecision), whose products are summed exactly",
        is_thread_safe=True,
    )

    def build(self, onnx_path: str | Path, out: str | Path, options: BuildOptions) -> EngineFile:
        """Write the optimized ONNX file and its manifest.

        Raises: RuntimeError: if onnxruntime is missing or refuses the model; ValueError, FileNotFoundError: for a
        bad file or shape.
        """
        require(self.check_build(), "build for onnxruntime")
        options = check_precision(self, options)
        import onnxruntime

        from engine.backends.onnxruntime.fusion import prepared_model  # onnx_ir: a flag's help does not wait for it
        from engine.products import find_products

        model = read_onnx(onnx_path, limit=MAX_FILE_BYTES)
        check_shapes(model, options.shapes)
        products = find_products(model)
        is_avoiding = saturation_of(self, options) == "avoided"
        with engine_output(out, options.force) as partial:
            prepared, *_ = prepared_model(model, is_avoiding)
            set_static_sizes(prepared, spread(model, options.shapes))
            session_options = make_session_options(options.threads)
            session_options.optimized_model_filepath = str(partial)
            _stream_weights(session_options, model, onnx_path, partial)
            if is_avoiding:  # the optimized file holds what it changes: loading an engine needs it no more
                session_options.add_session_config_entry(*EXACT_SUMS)
            try:
                onnxruntime.InferenceSession(
                    prepared.SerializeToString(),
                    session_options,
                    providers=["CPUExecutionProvider"],
                    disabled_optimizers=DISABLED_OPTIMIZERS,
                )
            except Exception as error:  # its errors derive from Exception alone
                raise RuntimeError(
                    f"onnxruntime {onnxruntime.__version__} refused {onnx_path}: {' '.join(str(error).split())[:300]}"
                ) from error
            return place(
                self,
                ("onnxruntime", "onnx-ir"),
                onnx_path,
                model,
                partial,
                out,
                options,
                int8_products(partial, products),
            )

    def load(self, engine: str | Path, threads: int | None = None) -> Runner:
        """Return a runner for an engine built on this hardware by this version.

        Raises: RuntimeError: if it was built elsewhere; ValueError: if the file changed; FileNotFoundError: if it is
        missing.
        """
        require(self.check_run(), "run onnxruntime engines")
        import onnxruntime

        manifest = read_manifest(engine)
        check_loadable(engine, manifest, self.info, self.version() or "")
        session_options = make_session_options(threads or manifest.threads)
        session_options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimized
        return OrtRunner(
            onnxruntime.InferenceSession(str(engine), session_options, providers=["CPUExecutionProvider"]),
            manifest.shapes,
        )

    def inspect(self, engine: str, request: InspectRequest) -> Inspection:
        """Return the layers of the optimized graph with the times of profiled calls."""
        from engine.backends.onnxruntime.inspect import inspect_ort

        return inspect_ort(engine, request)

    def reproduction(self, case: FaultCase) -> Reproduction:
        """Return a script with the session options that an engine is built with here, and what is done to its graph."""
        from engine.backends.onnxruntime.fusion import prepared_model

        is_avoiding = saturation_of(self, BuildOptions()) == "avoided"
        _, fused, copied = prepared_model(read_onnx(case.onnx_path, limit=MAX_FILE_BYTES), is_avoiding)
        lines = []
        if fused:
            lines.append(
                f"# The engine was built with {fused} products already fused to com.microsoft's MatMulIntegerToFloat: "
                "an error that this script does not show is of that operator."
            )
        if copied:
            lines.append(f"# The engine was built with {copied} shared constants copied, which the option below needs.")
        lines += ["options = ort.SessionOptions()", "options.inter_op_num_threads = 1"]
        if is_avoiding:
            key, value = EXACT_SUMS
            lines.append(f'options.add_session_config_entry("{key}", "{value}")')
        session = f'ort.InferenceSession("{case.name}", options, disabled_optimizers={DISABLED_OPTIMIZERS})'
        return script_against_plain(case, "\n".join([*lines, f"actual = {session}.run(None, feeds)"]))


def make_session_options(threads: int | None) -> Any:
    """Return the options that engines are built and run with."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = (
        3  # the warning that an optimized file is bound to its hardware: the manifest checks that
    )
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return options


def _stream_weights(options: Any, model: onnx.ModelProto, onnx_path: str | Path, out: Path) -> None:
    """Let a session read the weights from the files beside `onnx_path`, and write many into a file beside `out`."""
    options.add_session_config_entry(FOLDER_OF_WEIGHTS, str(Path(onnx_path).absolute().parent))
    if weight_bytes(model) > MAX_FILE_BYTES:
        options.add_session_config_entry(f"{WRITTEN_WEIGHTS}_file_name", data_path(out).name)
        options.add_session_config_entry(f"{WRITTEN_WEIGHTS}_min_size_in_bytes", str(SMALL_BYTES))


def plain_session(model: str | bytes) -> Any:
    """Return a session that computes a file (its path or bytes) as ONNX defines it: on the CPU, nothing optimized."""
    import onnxruntime

    options = make_session_options(None)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # large weights stay where the file is mapped
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def int8_products(optimized: str | Path, products: list) -> Products:
    """Return which of a model's products the optimized file runs in INT8, in the bodies of If, Loop and Scan too."""
    from engine.products import sort_products

    names = set()
    for node in _all_nodes(onnx.load(str(optimized), load_external_data=False).graph):
        if node.op_type in INT8_OPS:
            names |= {node.name, node.name.split("/")[0], *node.output}
    return sort_products(products, names)


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all_nodes(attribute.g)


class OrtRunner(Runner):
    """A session of ONNX Runtime."""

    def __init__(self, session: Any, shapes: Mapping[str, ShapeRange]) -> None:
        inputs = {
            each.name: (
                np.dtype(DTYPES[each.type]),
                tuple(size if isinstance(size, int) else None for size in each.shape),
            )
            for each in session.get_inputs()
        }
        super().__init__(shapes, inputs, [each.name for each in session.get_outputs()])
        self._session = session

    def _infer(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.output_names, self._session.run(None, arrays), strict=True))

    def close(self) -> None:
        """Free the session and its threads."""
        self._session = None


BACKEND = OrtBackend()
