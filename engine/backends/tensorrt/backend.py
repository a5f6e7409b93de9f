"""TensorRT 8.5 to 11 and TensorRT-RTX as backends: what can be built here, built engines with their manifest, loading.

A TensorRT-RTX engine is built without a GPU; it can be deserialized, and so run or inspected, only on one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from engine.backend import Backend, BuildOptions, EngineFile, check_precision, require
from engine.backends.info import BackendInfo
from engine.backends.own_options import given_flags, own_as_json
from engine.backends.runner import Runner
from engine.backends.tensorrt.builder import build_engine, is_weakly_typed, load_module, make_logger
from engine.backends.tensorrt.options import TensorRTOptions, trtexec_command
from engine.bug_report.reproduction import FaultCase, Reproduction
from engine.cli import UsageError
from engine.gpu import Gpu, find_gpu
from engine.graph_file import MAX_FILE_BYTES
from engine.hardware import cpu_name
from engine.inspect.layers import Inspection, InspectRequest
from engine.manifest import Manifest, Products, check_loadable, read_manifest
from engine.shapes import ShapeRange, check_shapes, graph_inputs, set_static_sizes, spread
from engine.source import engine_output, place, read_onnx

HALF_TYPES = {onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
# What TensorRT-RTX runs on: Turing, Ampere, Ada and Blackwell of the RTX line.
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


INFO = BackendInfo(
    name="tensorrt",
    title="TensorRT",
    target="tensorrt",
    packages=("tensorrt", "tensorrt_cu13", "tensorrt_cu12", "tensorrt_cu11", "nvidia-tensorrt"),
    precisions=("file", "fp32", "fp16", "bf16"),
    uses_gpu=True,
    wants_static_shapes=True,  # an engine for ranges runs slower, and each takes minutes to build anyway
    are_products_measured=False,
    options=TensorRTOptions,
)
FIRST_TYPED = 10  # the first version that takes files of target tensorrt; those before take tensorrt8


class TrtBackend(Backend):
    """Builds and loads engines of `tensorrt` or `tensorrt_rtx`."""

    def __init__(self, info: BackendInfo) -> None:
        self.info = info
        self.is_rtx = info.name != INFO.name
        self.needs_gpu_to_build = not self.is_rtx

    def version(self) -> str | None:
        """Return TensorRT's version, None where it cannot be loaded."""
        try:
            return str(load_module(self.name).__version__)
        except RuntimeError:
            return None

    def target(self) -> str:
        """Return the export target for the TensorRT here, that of 10 and later where none is."""
        return self.info.target if self.is_rtx else target_of(self.version())

    def check_build(self) -> str | None:
        """Return None, or why no engine can be built here."""
        try:
            load_module(self.name)
        except RuntimeError as error:
            return str(error)
        if self.needs_gpu_to_build and find_gpu() is None:
            return "tensorrt builds by trying kernels on a GPU, and none is seen here; backend tensorrt_rtx needs none"
        return None

    def check_run(self) -> str | None:
        """Return None, or why no engine can run here."""
        try:
            load_module(self.name)
        except RuntimeError as error:
            return str(error)
        gpu = find_gpu()
        if gpu is None:
            return f"{self.name} engines run, and are even deserialized, only on a GPU, and none is seen here"
        capability = ".".join(map(str, gpu.capability))
        if self.is_rtx and capability not in RTX_CAPABILITIES:
            return f"TensorRT-RTX runs on compute capability {', '.join(RTX_CAPABILITIES)}; here is {gpu}"
        return None

    def build(self, onnx_path: str | Path, out: str | Path, options: BuildOptions) -> EngineFile:
        """Write the serialized engine and its manifest.

        Raises: RuntimeError: if TensorRT is missing or refuses the model; UsageError, ValueError, FileNotFoundError:
            for a bad option, file or shape.
        """
        options = check_precision(self, options)
        own = options.own if isinstance(options.own, TensorRTOptions) else TensorRTOptions()
        own.check(self.name)
        model = read_onnx(onnx_path, limit=MAX_FILE_BYTES)
        check_shapes(model, options.shapes)
        shapes = profile_shapes(model, options.shapes)
        require(self.check_build(), f"build for {self.name}")
        trt = load_module(self.name)
        precision, flags = self._precision(trt, model, options.precision or "file")
        with engine_output(out, options.force) as partial:
            fixed = onnx.ModelProto()
            fixed.CopyFrom(model)
            set_static_sizes(fixed, spread(model, options.shapes))
            logger = make_logger(trt)
            try:
                content = fixed.SerializeToString()  # large weights stay in their file, beside onnx_path
                serialized = build_engine(trt, content, onnx_path, shapes, flags, own, logger)
            except RuntimeError as error:
                asked = given_flags(own)
                hint = f". It was asked for {', '.join(asked)}; try without" if asked else ""
                raise RuntimeError(f"{self.name} {trt.__version__}, {onnx_path}: {error}{hint}") from error
            partial.write_bytes(serialized)
            gpu = find_gpu()
            sources = getattr(getattr(trt, "TacticSource", None), "__members__", {})
            command = trtexec_command(self.name, str(onnx_path), str(out), shapes, flags, own, sources)
            details = {
                "versions": {self.name: trt.__version__},
                "device": str(gpu) if gpu and self.needs_gpu_to_build else f"{cpu_name()}, no GPU",
                "compute_capability": gpu.capability if gpu and self.needs_gpu_to_build else None,
                "cpu_flags": (),
                "warnings": (),
                "are_products_measured": False,
                "trtexec": command,
                "options": own_as_json(own),
            }
            options = dataclasses.replace(options, precision=precision)
            return place(
                self, ("polygraphy",), onnx_path, model, partial, out, options, planned_products(model), details
            )  # fmt: skip

    def load(self, engine: str | Path, threads: int | None = None) -> Runner:
        """Return a runner for an engine of this version and GPU.

        Raises: RuntimeError: if it was built elsewhere, or there is no GPU; ValueError: if the file changed;
        FileNotFoundError: if it is missing.
        """
        manifest = read_manifest(engine)
        require(self.check_run(), f"run {self.name} engines")
        from engine.backends.tensorrt.runner import TrtRunner

        trt = load_module(self.name)
        is_portable = bool(manifest.options.get("version_compatible"))
        version = manifest.versions.get(self.name, "") if is_portable else trt.__version__
        gpu = find_gpu() if self.needs_gpu_to_build else None  # an engine built without one is bound to none
        check_loadable(engine, manifest, self.info, version, _device_here(manifest, gpu) if gpu else None)
        return TrtRunner(trt, Path(engine).read_bytes(), manifest.shapes, may_bring_code=is_portable)

    def recognizes(self, engine: str, request: InspectRequest) -> bool:
        """Whether a file without a manifest is TensorRT's: JSON of its inspector, or an engine with such beside it."""
        from engine.backends.tensorrt.inspect_files import is_foreign_engine

        return not self.is_rtx and is_foreign_engine(engine, request)

    def inspect(self, engine: str, request: InspectRequest) -> Inspection:
        """Return the layers as TensorRT's inspector tells them, from files or from the engine where it loads."""
        from engine.backends.tensorrt.inspect_files import inspect_trt

        manifest = None if self.recognizes(engine, request) else read_manifest(engine)
        return inspect_trt(engine, self.name, manifest, request)

    def reproduction(self, case: FaultCase) -> Reproduction:
        """Return the trtexec command that builds the engine."""
        # A file of target tensorrt says its types itself; any other takes them from flags, which TensorRT 11 has not.
        flags = ["stronglyTyped"] if file_type(read_onnx(case.onnx_path)) else ["fp16", "int8"]
        command = trtexec_command(self.name, case.name, "engine", case.shapes, flags, TensorRTOptions())
        return Reproduction("bash", f"{command} --exportLayerInfo=layers.json")

    def in_interpreter(self, python: str) -> Backend | None:
        """Return the TensorRT of another interpreter; TensorRT-RTX lives in this one."""
        from engine.backends.tensorrt.process import TrtProcess

        return None if self.is_rtx else TrtProcess(python)

    def _precision(self, trt: Any, model: onnx.ModelProto, wanted: str) -> tuple[str, list[str]]:
        """Return (the type of what is not INT8, the builder's flags).

        A file of target tensorrt says its types itself. One in fp32 takes flags up to TensorRT 10 (fp16 unless told
        otherwise, as target tensorrt8 means it), and stays fp32 later, where there are none.
        """
        half = file_type(model)
        if half is not None or not is_weakly_typed(trt):
            typed = half or "fp32"
            if wanted not in ("file", typed):
                raise UsageError(
                    f"--precision {wanted}: the file is strongly typed in {typed}; leave the flag out, or export with "
                    "--target tensorrt --dtype fp16 or bf16"
                )
            return typed, ["stronglyTyped"] if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") else []
        chosen = "fp16" if wanted == "file" else wanted
        flags = [] if chosen == "fp32" else [chosen]
        has_qdq = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
        return chosen, [*flags, *(["int8"] if has_qdq else [])]


def target_of(version: str | None) -> str:
    """Return the export target of a version of TensorRT, that of the newest where none is known."""
    is_old = version is not None and int(version.split(".")[0]) < FIRST_TYPED
    return "tensorrt8" if is_old else INFO.target


def _device_here(manifest: Manifest, gpu: Gpu) -> str | None:
    """Return what must be equal to the manifest's device, None where the engine was built for this GPU too."""
    level = manifest.options.get("hardware_compatibility") or "none"
    is_same = manifest.compute_capability == gpu.capability
    if manifest.compute_capability is None:  # a manifest of before this field: its device is a GPU's name and this
        is_same = manifest.device.endswith(str(Gpu("", gpu.capability)))
    is_for_here = {"none": False, "same_compute_capability": is_same, "ampere_plus": gpu.capability >= (8, 0)}
    return None if is_for_here.get(level) else str(gpu)


def file_type(model: onnx.ModelProto) -> str | None:
    """Return "fp16" or "bf16" where the file's constants are of that type, else None."""
    return next((HALF_TYPES[t.data_type] for t in model.graph.initializer if t.data_type in HALF_TYPES), None)


def profile_shapes(model: onnx.ModelProto, given: Mapping[str, ShapeRange]) -> dict[str, ShapeRange]:
    """Return a range for every input with free axes.

    Raises: UsageError: an input whose range is neither given nor that of another input with the same axes.
    """
    shapes = spread(model, given)
    free = [each.name for each in graph_inputs(model)
            if any(not dim.HasField("dim_value") for dim in each.type.tensor_type.shape.dim)]  # fmt: skip
    missing = [name for name in free if name not in shapes]
    if missing:
        dims = next(e for e in graph_inputs(model) if e.name == missing[0]).type.tensor_type.shape.dim
        rest = [str(dim.dim_value) if dim.HasField("dim_value") else "64" for dim in dims[1:]]
        example = ":".join("x".join([str(batch), *rest]) for batch in (1, 8, 32))
        raise UsageError(
            f"input {', '.join(missing)} has free axes, and TensorRT needs their range; give "
            f"--shapes {missing[0]}:{example} (min:opt:max; one shape for a static engine)"
        )
    return {name: shapes[name] for name in free}


def planned_products(model: onnx.ModelProto) -> Products:
    """Return as INT8 the products that the linter says TensorRT runs so: the plan, which only a GPU can confirm."""
    from engine.lint.report import judge_model  # onnx_ir: a flag's help does not wait for it

    judgement = judge_model(model, "tensorrt")
    lists: dict[tuple[bool, bool], list[str]] = {(a, b): [] for a in (True, False) for b in (True, False)}
    for product in judgement.products:
        lists[product.is_linear, judgement.runs_in_int8(product)].append(product.name)
    return Products(*(tuple(lists[key]) for key in ((True, True), (True, False), (False, True), (False, False))))


BACKEND = TrtBackend(INFO)
