"""Runs any system's artifact straight in its runtime, independent of int8kit's own evaluation."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.accuracy.sst2 import INPUT_NAMES, Feeds

Run = Callable[[Feeds], np.ndarray]  # feeds of shape (batch, tokens) -> logits (batch, classes)
RUNTIMES = ("onnxruntime", "openvino", "pytorch")


@dataclass(frozen=True)
class Artifact:
    """What a system made of the float model.

    Attributes:
        runtime: one of RUNTIMES; "pytorch" means simulated INT8, without a speed.
        path: the ONNX file, OpenVINO IR or blob; None for pytorch.
        model: the simulated model, for pytorch only.
        session: options of the ONNX Runtime session (`level`, `disabled`).
    """

    runtime: str
    path: Path | None = None
    model: torch.nn.Module | None = None
    session: dict[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int | None:
        """Bytes on disk, weights beside the file included; None if nothing is stored."""
        return None if self.path is None else stored_bytes(self.path)


def stored_bytes(path: Path) -> int:
    """Return the bytes of a model file and of the weights beside it (OpenVINO's .bin, ONNX's .data)."""
    weights = path.with_suffix(".bin") if path.suffix == ".xml" else Path(f"{path}.data")
    return path.stat().st_size + (weights.stat().st_size if weights.exists() else 0)


def engine_artifact(path: str | Path, runtime: str | None = None) -> Artifact:
    """Return an artifact for an engine or model file; its manifest `PATH.json`, else its suffix, says the runtime.

    Raises: FileNotFoundError: if there is no such file. ValueError: if the runtime is none that is timed here.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no engine {path}; make one with build_engine.py")
    is_engine = Path(f"{path}.json").exists()
    if runtime is None and is_engine:
        runtime = json.loads(Path(f"{path}.json").read_text())["backend"]
    runtime = runtime or ("openvino" if path.suffix == ".xml" else "onnxruntime")
    if runtime not in ("onnxruntime", "openvino"):
        raise ValueError(f"{path} is for {runtime}; only onnxruntime and openvino engines run here")
    # an engine for ONNX Runtime is the optimized graph: optimizing it again would undo choices made in the build
    return Artifact(runtime, path, session={"level": "ORT_DISABLE_ALL"} if is_engine else {})


def open_artifact(artifact: Artifact, threads: int, shape: tuple[int, int] | None = None) -> Run:
    """Return a function that runs `artifact`; `shape` (batch, tokens) makes an OpenVINO model static."""
    if artifact.runtime == "pytorch":
        assert artifact.model is not None
        return _open_pytorch(artifact.model, threads)
    assert artifact.path is not None
    if artifact.runtime == "openvino":
        return _open_openvino(artifact.path, threads, shape)
    return _open_onnxruntime(artifact.path, threads, **artifact.session)


def predict(run: Run, feeds: Feeds, batch_size: int = 32) -> np.ndarray:
    """Return the logits of all rows of `feeds`, shape (rows, classes), computed in batches."""
    num_rows = len(feeds["input_ids"])
    starts = range(0, num_rows, batch_size)
    return np.concatenate(
        [run({name: array[start : start + batch_size] for name, array in feeds.items()}) for start in starts]
    )


def _open_onnxruntime(path: Path, threads: int, level: str = "ORT_ENABLE_ALL", disabled: tuple[str, ...] = ()) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.log_severity_level = 3
    session = ort.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled)
    )
    types = {item.name: np.int32 if item.type == "tensor(int32)" else np.int64 for item in session.get_inputs()}
    return lambda feeds: session.run(
        ["logits"], {name: feeds[name].astype(kind, copy=False) for name, kind in types.items()}
    )[0]


def _open_openvino(path: Path, threads: int, shape: tuple[int, int] | None) -> Run:
    import openvino as ov

    core = ov.Core()
    # f32 where nothing is quantized: on a CPU with AVX512-BF16 another default would compare INT8 against bfloat16
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if path.suffix in (".xml", ".onnx"):
        model = core.read_model(str(path))
        if shape is not None:
            model.reshape({item.get_any_name(): list(shape) for item in model.inputs})
        compiled = core.compile_model(model, "CPU", options)
    else:
        compiled = core.import_model(
            io.BytesIO(path.read_bytes()), "CPU", options
        )  # the blob that build_engine.py writes
    request = compiled.create_infer_request()
    names = [item.get_any_name() for item in compiled.inputs]
    return lambda feeds: request.infer({name: feeds[name] for name in names}, share_inputs=True)[
        compiled.output(0)
    ].copy()


def _open_pytorch(model: torch.nn.Module, threads: int) -> Run:
    def run(feeds: Feeds) -> np.ndarray:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return model(**{name: torch.from_numpy(feeds[name]) for name in INPUT_NAMES}).logits.numpy()

    return run
