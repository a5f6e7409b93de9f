"""The peers, each as one function: (float model, calibration sentences, folder for its files) -> Artifact.

All get the same sentences without padding (padded to 64 where the tool demands one length). Those whose runtime needs
a GPU are simulated in PyTorch and have no speed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.accuracy.sst2 import FloatModel, equal_length_feeds, single_feeds
from benchmarks.float_export import export_legacy
from benchmarks.runtimes import Artifact

Prepare = Callable[[FloatModel, list[str], Path], Artifact]


@dataclass(frozen=True)
class Peer:
    """One row of the tables: what it is, how it is made, and whether a new calibration draw changes it."""

    name: str
    prepare: Prepare
    is_calibrated: bool = True


def float_onnx(loaded: FloatModel, out: Path) -> Path:
    """Return the float ONNX file that the peers start from, exported once per folder."""
    path = out / "float.onnx"
    return path if path.exists() else export_legacy(loaded.folder, path)


# ONNX Runtime's own quantization tool


def ort_dynamic(loaded: FloatModel, sentences: list[str], out: Path) -> Artifact:
    """Quantize weights per channel to INT8, activations at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = out / "ort_dynamic.onnx"
    quantize_dynamic(_preprocessed(loaded, out), path, weight_type=QuantType.QInt8, per_channel=True)
    return Artifact("onnxruntime", path)


def ort_static_minmax(loaded: FloatModel, sentences: list[str], out: Path) -> Artifact:
    """Quantize inputs and outputs of all matrix products: QDQ, MinMax, uint8 activations, INT8 weights per channel.

    The tool's own choice of operators also quantizes the sum with the attention mask: 69 % accuracy is what is left.
    """
    return _ort_static(
        loaded, sentences, out / "ort_static_minmax.onnx", method="MinMax", op_types_to_quantize=["MatMul", "Gemm"]
    )


def ort_static_linear(loaded: FloatModel, sentences: list[str], out: Path) -> Artifact:
    """Quantize the inputs and weights of linear layers alone, ranges by percentile 99.999."""
    import onnx

    prepared = _preprocessed(loaded, out)
    graph = onnx.load(prepared).graph
    constants = {tensor.name for tensor in graph.initializer}
    products = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] not in constants]
    options = {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"], "CalibPercentile": 99.999}
    return _ort_static(
        loaded,
        sentences,
        out / "ort_static_linear.onnx",
        method="Percentile",
        nodes_to_exclude=products,
        op_types_to_quantize=["MatMul", "Gemm"],
        extra_options=options,
    )


def _ort_static(loaded: FloatModel, sentences: list[str], path: Path, method: str, **options: Any) -> Artifact:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            # the tool's histogram stacks all samples, so they need one length: there the peer gets padding
            self.feeds = single_feeds(loaded.tokenizer, sentences, length=64 if method == "Percentile" else None)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    quantize_static(
        _preprocessed(loaded, path.parent),
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
        **options,
    )
    return Artifact("onnxruntime", path)


def _preprocessed(loaded: FloatModel, out: Path) -> Path:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = out / "preprocessed.onnx"
    if not path.exists():
        quant_pre_process(
            float_onnx(loaded, out), path, skip_symbolic_shape=True
        )  # symbolic inference stops at this graph
    return path


# NNCF on OpenVINO


def nncf_openvino(loaded: FloatModel, sentences: list[str], out: Path) -> Artifact:
    """Quantize with NNCF's transformer settings: SmoothQuant and fast bias correction, both on by default."""
    import nncf
    import openvino as ov

    dataset = nncf.Dataset(list(single_feeds(loaded.tokenizer, sentences)))
    model = nncf.quantize(
        ov.convert_model(float_onnx(loaded, out)),
        dataset,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(sentences),
    )
    path = out / "nncf.xml"
    ov.save_model(model, path, compress_to_fp16=False)
    return Artifact("openvino", path)


# pytorch-quantization, simulated


def pytorch_quantization(method: str, **options: Any) -> Prepare:
    """Return a `prepare` for the encoder's linear layers by this calibrator ("max", "percentile", "entropy")."""

    def prepare(loaded: FloatModel, sentences: list[str], out: Path) -> Artifact:
        from pytorch_quantization import calib
        from pytorch_quantization import nn as quant_nn
        from pytorch_quantization.tensor_quant import QuantDescriptor

        inputs = QuantDescriptor(num_bits=8, calib_method="max" if method == "max" else "histogram")
        model = copy.deepcopy(loaded.model)
        for parent, name, linear in list(_encoder_linears(model)):
            quantized = quant_nn.QuantLinear(
                linear.in_features,
                linear.out_features,
                quant_desc_input=inputs,
                quant_desc_weight=quant_nn.QuantLinear.default_quant_desc_weight,
            )
            quantized.weight, quantized.bias = linear.weight, linear.bias
            setattr(parent, name, quantized)
        quantizers = [module for module in model.modules() if isinstance(module, quant_nn.TensorQuantizer)]
        for quantizer in quantizers:
            quantizer.disable_quant()
            quantizer.enable_calib()
        _forward_all(model.eval(), loaded, sentences)
        for quantizer in quantizers:
            is_histogram = isinstance(quantizer._calibrator, calib.HistogramCalibrator)
            quantizer.load_calib_amax(*([method] if is_histogram else []), **(options if is_histogram else {}))
            quantizer.disable_calib()
            quantizer.enable_quant()
        return Artifact("pytorch", model=model)

    return prepare


def _encoder_linears(model: Any) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Linear]]:
    for parent in model.bert.encoder.modules():
        for name, child in parent.named_children():
            if type(child) is torch.nn.Linear:
                yield parent, name, child


# ModelOpt, simulated


def modelopt(preset: str, with_norm_inputs: bool = True) -> Prepare:
    """Return a `prepare` that applies a ModelOpt preset, with or without its quantizers on LayerNorm inputs."""

    def prepare(loaded: FloatModel, sentences: list[str], out: Path) -> Artifact:
        import modelopt.torch.quantization as mtq

        config = copy.deepcopy(getattr(mtq, preset))
        if not with_norm_inputs:
            config["quant_cfg"].append({"quantizer_name": "*LayerNorm*", "enable": False})
        model = mtq.quantize(copy.deepcopy(loaded.model), config, lambda model: _forward_all(model, loaded, sentences))
        return Artifact("pytorch", model=model.eval())

    return prepare


def _forward_all(model: torch.nn.Module, loaded: FloatModel, sentences: list[str]) -> None:
    with torch.no_grad():
        for feeds in equal_length_feeds(loaded.tokenizer, sentences):
            model(**{name: torch.from_numpy(array) for name, array in feeds.items()})


PEERS: dict[str, Peer] = {
    "ort-dynamic": Peer("ONNX Runtime tool, dynamic", ort_dynamic, is_calibrated=False),
    "ort-minmax": Peer("ONNX Runtime tool, static QDQ, MinMax, uint8", ort_static_minmax),
    "ort-linear": Peer("ONNX Runtime tool, static, linear only, percentile 99.999, uint8", ort_static_linear),
    "nncf": Peer("NNCF (SmoothQuant + bias correction), OpenVINO", nncf_openvino),
    "pq-max": Peer("pytorch-quantization, max (simulated)", pytorch_quantization("max")),
    "pq-percentile": Peer(
        "pytorch-quantization, percentile 99.99 (simulated)", pytorch_quantization("percentile", percentile=99.99)
    ),
    "pq-entropy": Peer("pytorch-quantization, entropy (simulated)", pytorch_quantization("entropy")),
    "modelopt": Peer("ModelOpt INT8 default (simulated)", modelopt("INT8_DEFAULT_CFG")),
    "modelopt-smoothquant": Peer("ModelOpt SmoothQuant (simulated)", modelopt("INT8_SMOOTHQUANT_CFG")),
    "modelopt-no-norm": Peer(
        "ModelOpt INT8 default, LayerNorm inputs off (simulated)", modelopt("INT8_DEFAULT_CFG", with_norm_inputs=False)
    ),
}


def get_peer(key: str) -> Peer:
    """Return the peer registered under `key`. Raises: ValueError: naming those there are."""
    if key not in PEERS:
        raise ValueError(f"no peer {key!r}; choose from {', '.join(PEERS)}")
    return PEERS[key]
