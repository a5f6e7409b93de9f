"""What the tools' INT8 files are worth: against the float model's logits, and in time against float ONNX Runtime."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.accuracy.sst2 import Feeds, FloatModel, full_feeds, read_split, tokenize
from benchmarks.rows import median_interval
from benchmarks.runtimes import Artifact, open_artifact, predict
from benchmarks.speed import time_blocks
from engine.backends.onnxruntime.backend import INT8_OPS
from engine.backends.openvino.backend import FUSED_LAYERS, INT8_PRECISIONS, PRODUCT_LAYERS
from engine.products import FLOAT_PRODUCTS, HIDING_OPS

LENGTH = 64
FLOAT = "float"


@dataclass(frozen=True)
class Validation:
    """The validation sentences padded to LENGTH, their labels, and the float model's logits."""

    feeds: Feeds
    labels: np.ndarray
    float_logits: np.ndarray

    def score(self, logits: np.ndarray) -> dict[str, Any]:
        """Return accuracy, mean |logit - float logit| and the number of changed predictions."""
        chosen = logits.argmax(1)
        return {
            "accuracy": float((chosen == self.labels).mean()),
            "mean_abs_logit_change": float(np.abs(logits - self.float_logits).mean()),
            "num_flips": int((chosen != self.float_logits.argmax(1)).sum()),
            "num_sentences": len(self.labels),
        }


def read_validation(loaded: FloatModel, data: str, threads: int) -> Validation:
    """Return the validation split with the float model's logits, in fp32 by PyTorch."""
    sentences, labels = read_split(data, "validation")
    feeds = tokenize(loaded.tokenizer, sentences, LENGTH)
    run = open_artifact(Artifact("pytorch", model=loaded.model), threads)
    return Validation(feeds, labels, predict(run, feeds))


def judge(artifact: Artifact, validation: Validation, threads: int) -> dict[str, Any]:
    """Return what a row says of one INT8 file but its speed."""
    logits = predict(open_artifact(artifact, threads), validation.feeds)
    num_int8, num_products = count_products(artifact)
    return {**validation.score(logits), "runtime": artifact.runtime, "size_bytes": artifact.size_bytes,
            "num_int8_products": num_int8, "num_products": num_products}  # fmt: skip


def count_products(artifact: Artifact) -> tuple[int, int]:
    """Return how many operators that multiply matrices the runtime runs in INT8, and how many there are.

    They are counted as the runtime runs them: what it fuses, such as both products of an attention, counts once.
    """
    count = _count_openvino if artifact.runtime == "openvino" else _count_onnxruntime
    assert artifact.path is not None
    return count(artifact.path, artifact.session.get("level", "ORT_ENABLE_ALL"))


def _count_onnxruntime(path: Path, level: str) -> tuple[int, int]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = getattr(ort.GraphOptimizationLevel, level), 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    num_int8 = sum(kind in INT8_OPS for kind in kinds)
    return num_int8, num_int8 + sum(kind in {*FLOAT_PRODUCTS, *HIDING_OPS} - INT8_OPS for kind in kinds)


def _count_openvino(path: Path, level: str) -> tuple[int, int]:
    import openvino as ov

    core = ov.Core()
    if path.suffix == ".xml":
        compiled = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    else:
        compiled = core.import_model(path.read_bytes(), "CPU", {})
    found = []
    for node in compiled.get_runtime_model().get_ops():
        kind = node.get_rt_info()["layerType"].astype(str)
        if kind in PRODUCT_LAYERS or kind in FUSED_LAYERS - {"Subgraph"}:
            read = [each.get_source_output().get_element_type().get_type_name() for each in node.inputs()[:2]]
            found.append(all(each in INT8_PRECISIONS for each in read))
    return sum(found), len(found)


def fastest(sessions: dict[str, Artifact], feeds: Feeds, threads: int, rounds: int) -> str:
    """Return the name of the float session with the least median latency."""
    blocks = time_blocks({name: open_artifact(each, threads) for name, each in sessions.items()}, feeds, rounds)
    return min(blocks, key=lambda name: float(np.median(blocks[name])))


def time_all(
    artifacts: dict[str, Artifact], sessions: dict[str, Artifact], shape: tuple[int, int], vocabulary: int,
    threads: int, rounds: int, seed: int,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Return for each artifact, and for FLOAT, its latency and its ratio to the fastest float ONNX Runtime session.

    All take turns in blocks. OpenVINO models are reshaped to the shape timed.
    """
    feeds = full_feeds(*shape, vocabulary)
    float_session = fastest(sessions, feeds, threads, max(2, rounds // 5))
    chosen = {FLOAT: sessions[float_session], **artifacts}
    runs = {key: open_artifact(each, threads, shape) for key, each in chosen.items()}
    blocks = time_blocks(runs, feeds, rounds, seed)
    found = {}
    for key, own in blocks.items():
        ratio, low, high = median_interval([base / each for base, each in zip(blocks[FLOAT], own, strict=True)])
        found[key] = {
            "latency_ms_p50": float(np.median(own)), "ratio": ratio, "ratio_low": low, "ratio_high": high,
            "float_session": float_session, "blocks_ms": [round(each, 4) for each in own],
        }  # fmt: skip
    return found
