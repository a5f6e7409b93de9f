"""OpenVINO: the engine is the compiled model's blob, one file that loads without parsing ONNX."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.backend import Backend, BuildOptions, EngineFile, check_precision, require, saturation_of
from engine.backends.info import BackendInfo
from engine.backends.openvino.graph import keep_channel_factors_apart
from engine.backends.runner import Runner
from engine.bug_report.reproduction import FaultCase, Reproduction, script_against_plain
from engine.graph_file import MAX_FILE_BYTES
from engine.inspect.layers import Inspection, InspectRequest
from engine.manifest import Products, check_loadable, read_manifest
from engine.shapes import ShapeRange, check_shapes, spread
from engine.source import engine_output, place, read_onnx

if TYPE_CHECKING:
    from engine.products import Product

# Always said: else a CPU with bf16 or AMX silently computes everything that is not INT8 in bf16.
PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16"}
PRODUCT_LAYERS = frozenset({"FullyConnected", "MatMul", "Convolution", "GroupConvolution"})
FUSED_LAYERS = frozenset({"Subgraph", "ScaledDotProductAttention"})  # a whole attention in one operator
INT8_PRECISIONS = frozenset({"i8", "u8"})


class OpenVinoBackend(Backend):
    """Builds and loads engines of OpenVINO's CPU plugin."""

    info = BackendInfo(
        name="openvino",
        title="OpenVINO",
        target="openvino",
        packages=("openvino",),
        precisions=("fp32", "bf16"),
        saturation_mend="OpenVINO computes the products in fp32 from the INT8 numbers, which is exact and faster there "
        "than its INT8 kernels (--saturation allow runs those); backend onnxruntime has exact INT8 products",
    )

    def build(self, onnx_path: str | Path, out: str | Path, options: BuildOptions) -> EngineFile:
        """Write the compiled blob and its manifest.

        Raises: RuntimeError: if openvino is missing or refuses the model; ValueError, FileNotFoundError: for a bad
        file or shape.
        """
        require(self.check_build(), "build for openvino")
        options = check_precision(self, options)
        import openvino

        from engine.products import find_products  # onnx_ir: a flag's help does not wait for it

        onnx_model = read_onnx(onnx_path, limit=MAX_FILE_BYTES)
        check_shapes(onnx_model, options.shapes)
        products = find_products(onnx_model)
        with engine_output(out, options.force) as partial:
            core = openvino.Core()
            try:
                model = core.read_model(str(onnx_path))
                keep_channel_factors_apart(model)
                shapes = spread(onnx_model, options.shapes)
                if shapes:
                    model.reshape({name: _partial_shape(shapes[name]) for name in shapes})
                config = compile_config(options.precision or "fp32", options.threads, saturation_of(self, options))
                compiled = core.compile_model(model, "CPU", config)
                blob = compiled.export_model()
            except RuntimeError as error:
                raise RuntimeError(
                    f"openvino {self.version()} refused {onnx_path}: {' '.join(str(error).split())[:300]}"
                ) from error
            partial.write_bytes(blob.getvalue() if isinstance(blob, io.BytesIO) else blob)
            return place(
                self,
                ("openvino",),
                onnx_path,
                onnx_model,
                partial,
                out,
                options,
                int8_products(compiled, products),
            )

    def load(self, engine: str | Path, threads: int | None = None) -> Runner:
        """Return a runner for an engine built on this hardware by this version.

        Raises: RuntimeError: if it was built elsewhere; ValueError: if the file changed; FileNotFoundError: if it is
        missing.
        """
        require(self.check_run(), "run openvino engines")
        import openvino

        manifest = read_manifest(engine)
        check_loadable(engine, manifest, self.info, self.version() or "")
        with open(engine, "rb") as file:
            compiled = openvino.Core().import_model(
                io.BytesIO(file.read()),
                "CPU",
                compile_config(manifest.precision, threads or manifest.threads, manifest.saturation),
            )
        return OpenVinoRunner(compiled, manifest.shapes)

    def inspect(self, engine: str, request: InspectRequest) -> Inspection:
        """Return the layers of the runtime graph with the times of counted calls."""
        from engine.backends.openvino.inspect import inspect_openvino

        return inspect_openvino(engine, request)

    def reproduction(self, case: FaultCase) -> Reproduction:
        """Return a script with the configuration that an engine is compiled with here, and what its graph is spared."""
        config = compile_config(self.info.precisions[0], None, saturation_of(self, BuildOptions()))
        lines = []
        if self.check_build() is None:
            import openvino

            if kept := keep_channel_factors_apart(openvino.Core().read_model(case.onnx_path)):
                lines.append(
                    f"# The engine was built with {', '.join(kept)} kept out of the FakeQuantize behind each: this "
                    "script, which does not, may show more errors."
                )
        lines += [f'compiled = ov.Core().compile_model("{case.name}", "CPU", {config})']
        lines.append("results = compiled(feeds)")
        lines.append("actual = [results[index] for index in range(len(expected))]")
        return script_against_plain(case, "\n".join(lines), ", openvino as ov")


def compile_config(precision: str, threads: int | None, saturation: str | None) -> dict[str, Any]:
    """Return the options that engines are built and run with.

    Args: saturation: the manifest's field; where sums must not saturate, OpenVINO's low-precision transformations stay
        off: weights remain INT8 in memory, Q/DQ is computed as written and products in fp32.
    """
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": PRECISION_HINTS[precision]}
    # Else a CPU with VNNI rounds float activations before INT8 weights, which no file asks for.
    config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    if saturation == "avoided":
        config["LP_TRANSFORMS_MODE"] = False  # an internal option of the CPU plugin: test_saturation.py sees it work
    return config


def _partial_shape(shapes: ShapeRange) -> Any:
    import openvino

    return openvino.PartialShape(
        [openvino.Dimension(low, high) for low, high in zip(shapes.min, shapes.max, strict=True)]
    )


def int8_products(compiled: Any, products: list[Product]) -> Products:
    """Return which of a model's products the compiled model runs in INT8, by its runtime graph.

    A layer's own precision is that of its weight, also where it multiplies that with floats: what it reads decides.
    """
    from engine.products import sort_products

    names: dict[bool, set[str]] = {True: set(), False: set()}
    fused: set[str] = set()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        layer, precision = (info[key].astype(str) if key in info else "" for key in ("layerType", "runtimePrecision"))
        if layer not in PRODUCT_LAYERS | FUSED_LAYERS:
            continue
        originals = info["originalLayersNames"].astype(str).split(",")
        own = {*originals, *(name.split("/")[0] for name in originals)}
        is_int8 = precision in INT8_PRECISIONS and not reads_floats(node)
        if layer in PRODUCT_LAYERS:
            names[is_int8] |= own
        elif is_int8:
            fused |= own
    return sort_products(products, names[True], fused, names[False])


def reads_floats(node: Any) -> bool:
    """Return whether a layer of the runtime graph computes in floats: with INT8 weights alone it is called i8 too."""
    return bool(node.inputs()) and not str(node.input(0).get_element_type().get_type_name()).startswith(("i8", "u8"))


class OpenVinoRunner(Runner):
    """An infer request of OpenVINO."""

    def __init__(self, compiled: Any, shapes: Mapping[str, ShapeRange]) -> None:
        inputs = {
            each.any_name: (
                np.dtype(each.element_type.to_dtype()),
                tuple(dim.get_length() if dim.is_static else None for dim in each.partial_shape),
            )
            for each in compiled.inputs
        }
        super().__init__(shapes, inputs, [each.any_name for each in compiled.outputs])
        self._request = compiled.create_infer_request()

    def _infer(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._request.infer(arrays, share_inputs=True)
        return {
            name: self._request.get_output_tensor(index).data.copy() for index, name in enumerate(self.output_names)
        }

    def close(self) -> None:
        """Free the request and the compiled model."""
        self._request = None


BACKEND = OpenVinoBackend()
