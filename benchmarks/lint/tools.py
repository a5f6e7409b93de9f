"""Small ONNX files for the linter as tools write them: this project, ONNX Runtime's tool, ModelOpt and NNCF.

The last two are not among the pinned requirements of the tests; `tool_files` says which are missing.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.lint import forms, grids, integers, layers, moves  # noqa: F401  (they enter their files)
from benchmarks.lint.files import FILES, WIDTH, Maker
from engine.passes.qdq import TARGETS, prepare_for_target
from tests.engine.graphs import LENGTH, Graph, linear_model, table_model

NUM_SAMPLES = 4
# Optional tool → what of it has to be importable.
OPTIONAL_TOOLS = {"ModelOpt": "modelopt.onnx.quantization", "NNCF": "nncf"}


def all_files() -> dict[str, Maker]:
    """Return name → maker of every small file that can be made here, the hand-made ones first."""
    return {**FILES, **our_files(), **tool_files()}


def float_matmul() -> onnx.ModelProto:
    """Return two linear layers with a Relu between them."""
    g = Graph()
    return g.model(g.linear(g.op("Relu", g.linear("x", g.float_weight())), g.float_weight()), 17)


def float_gemm() -> onnx.ModelProto:
    """Return two Gemm layers with a Relu between them."""
    g = Graph()
    rows = g.op("Reshape", "x", g.constant(np.array([2 * LENGTH, WIDTH], np.int64)))
    for _ in range(2):
        rows = g.op("Relu", g.op("Gemm", rows, g.float_weight(), g.constant(np.ones(WIDTH, np.float32)), name="gemm"))
    return g.model(g.op("Reshape", rows, g.constant(np.array([2, LENGTH, WIDTH], np.int64))), 17)


def float_conv() -> onnx.ModelProto:
    """Return two convolutions with a Relu between them."""
    g = Graph()
    y, channels = g.op("Reshape", "x", g.constant(np.array([2, 1, LENGTH, WIDTH], np.int64))), 1
    for size in (4, 2):
        kernel = g.constant(g.random.normal(0, 0.2, (8, channels, size, size)).astype(np.float32), "conv.weight")
        bias = g.constant(np.ones(8, np.float32), "conv.bias")
        y, channels = g.op("Relu", g.op("Conv", y, kernel, bias, name="conv", strides=[size, size])), 8
    return g.model(g.op("Reshape", y, g.constant(np.array([2, 8, -1], np.int64))), 17)


def float_attention() -> onnx.ModelProto:
    """Return an attention of two heads with its four linear layers."""
    g = Graph()
    q, k, v = (g.linear("x", g.float_weight()) for _ in range(3))
    scores = g.op(
        "MatMul", g.op("Mul", g.heads(q), g.constant(np.float32(0.25))), g.heads(k, (0, 2, 3, 1)), name="scores"
    )
    context = g.op("MatMul", g.op("Softmax", scores, axis=-1), g.heads(v), name="context")
    flat = g.op("Transpose", context, perm=[0, 2, 1, 3])
    flat = g.op("Reshape", flat, g.constant(np.array([2, LENGTH, WIDTH], np.int64)))
    return g.model(g.linear(flat, g.float_weight()), 17)


FLOAT_MODELS: dict[str, Maker] = {
    "MatMul": float_matmul, "Gemm": float_gemm, "Conv": float_conv, "attention": float_attention,
}  # fmt: skip


def our_files() -> dict[str, Maker]:
    """Return this project's files of every target, of graphs as the exporter leaves them."""
    graphs: dict[str, Maker] = {
        "linear": lambda: _at_batch(linear_model(num_siblings=3, smooth=True), 4),
        "Gemm": lambda: _at_batch(linear_model(as_gemm=True), 4),
        "attention": lambda: _attention(np.int8(0)),
        "table": lambda: table_model(per_column=True),
    }
    return {
        f"ours, {target}: {name}": partial(_prepared, make, target)
        for target in TARGETS
        for name, make in graphs.items()
        if (name, target) != ("table", "tensorrt8")
    }


def _prepared(make: Maker, target: str) -> onnx.ModelProto:
    return prepare_for_target(make(), target)


def _attention(zero: Any) -> onnx.ModelProto:
    g = Graph()
    return g.model(g.attention(zero=zero))


def _at_batch(model: onnx.ModelProto, size: int) -> onnx.ModelProto:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size
    return model


def tool_files() -> dict[str, Maker]:
    """Return the files of the quantization tools that are installed here."""
    files = ort_files()
    for tool, module in OPTIONAL_TOOLS.items():
        try:
            importlib.import_module(module)
        except ImportError:
            continue
        files.update(modelopt_files() if tool == "ModelOpt" else nncf_files())
    return files


def missing_tools() -> list[str]:
    """Return the tools whose files cannot be made here."""
    made = tool_files()
    return [tool for tool in OPTIONAL_TOOLS if not any(name.startswith(tool) for name in made)]


def ort_files() -> dict[str, Maker]:
    """Return the files of ONNX Runtime's own tool: static Q/DQ and QOperator, dynamic, INT4 and 16 bits."""
    from onnxruntime.quantization import QuantFormat, QuantType

    u8, s8, u16, s16 = QuantType.QUInt8, QuantType.QInt8, QuantType.QUInt16, QuantType.QInt16
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True}
    kinds: dict[str, dict[str, Any]] = {
        "U8S8": {"activation_type": u8, "weight_type": s8},
        "U8S8 per channel": {"activation_type": u8, "weight_type": s8, "per_channel": True},
        "U8U8": {"activation_type": u8, "weight_type": u8},
        "S8S8": {"activation_type": s8, "weight_type": s8},
        "S8S8 symmetric": {"activation_type": s8, "weight_type": s8, "extra_options": symmetric},
        "S8S8 symmetric, float bias": {
            "activation_type": s8, "weight_type": s8, "per_channel": True,
            "extra_options": {**symmetric, "QuantizeBias": False},
        },
        "S16S8": {"activation_type": s16, "weight_type": s8},
        "U16U8": {"activation_type": u16, "weight_type": u8},
    }  # fmt: skip
    files: dict[str, Maker] = {}
    for model, make in FLOAT_MODELS.items():
        for kind, options in kinds.items():
            files[f"ONNX Runtime, {kind}: {model}"] = partial(
                _ort_static, make, quant_format=QuantFormat.QDQ, **options
            )
        files[f"ONNX Runtime, QOperator U8S8: {model}"] = partial(
            _ort_static, make, quant_format=QuantFormat.QOperator, **kinds["U8S8"]
        )
        files[f"ONNX Runtime, dynamic: {model}"] = partial(_ort_dynamic, make)
        for format_name in ("QOperator", "QDQ"):
            files[f"ONNX Runtime, INT4 {format_name}: {model}"] = partial(_ort_int4, make, QuantFormat[format_name])
    return files


def _ort_static(make: Maker, **options: Any) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Samples(CalibrationDataReader):
        def __init__(self) -> None:
            self.samples = iter(_samples())

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.samples, None)

    return _through_files(make(), lambda source, out: quantize_static(source, out, Samples(), **options))


def _ort_dynamic(make: Maker) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    return _through_files(make(), lambda source, out: quantize_dynamic(source, out, weight_type=QuantType.QInt8))


def _ort_int4(make: Maker, quant_format: Any) -> onnx.ModelProto:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(make(), block_size=16, is_symmetric=True, quant_format=quant_format)
    quantizer.process()
    return quantizer.model.model


def modelopt_files() -> dict[str, Maker]:
    """Return the files of NVIDIA's ModelOpt."""
    modes = ("int8", "fp8", "int4")
    return {f"ModelOpt, {mode}: {model}": partial(_modelopt, make, mode) for model, make in FLOAT_MODELS.items()
            for mode in modes}  # fmt: skip


def _modelopt(make: Maker, mode: str) -> onnx.ModelProto:
    from modelopt.onnx.quantization import quantize

    data = {"x": np.concatenate([sample["x"] for sample in _samples()[:1]])}

    def run(source: str, out: str) -> None:
        quantize(source, quantize_mode=mode, calibration_data=data, output_path=out, calibration_eps=["cpu"],
                 high_precision_dtype="fp32", log_level="ERROR")  # fmt: skip

    return _through_files(make(), run)


def nncf_files() -> dict[str, Maker]:
    """Return the files of NNCF's ONNX backend."""
    return {f"NNCF, {preset}: {model}": partial(_nncf, make, preset) for model, make in FLOAT_MODELS.items()
            for preset in ("performance", "mixed")}  # fmt: skip


def _nncf(make: Maker, preset: str) -> onnx.ModelProto:
    import nncf

    nncf.set_log_level(40)
    dataset = nncf.Dataset(_samples())
    return nncf.quantize(make(), dataset, preset=nncf.QuantizationPreset(preset), subset_size=NUM_SAMPLES)


def _samples() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"x": random.normal(0, 0.35, (2, LENGTH, WIDTH)).astype(np.float32)} for _ in range(NUM_SAMPLES)]


def _through_files(model: onnx.ModelProto, quantize: Callable[[str, str], None]) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        source, out = (str(Path(folder) / name) for name in ("float.onnx", "quantized.onnx"))
        onnx.save(model, source)
        quantize(source, out)
        return onnx.load(out)
