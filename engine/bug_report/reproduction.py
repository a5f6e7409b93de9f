"""What a backend is told of a fault, and the program that it answers with: it needs nothing but the runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.shapes import ShapeRange

SCRIPT = """import numpy as np, onnxruntime as ort{imports}
{feeds}
plain = ort.SessionOptions()
plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
expected = ort.InferenceSession("{model}", plain).run(None, feeds)
{actual}
for x, ref in zip(actual, expected):
    print(np.abs(x - ref).max(), np.abs(x - ref).mean())"""


@dataclass(frozen=True)
class FaultCase:
    """A file that shows a fault.

    Attributes:
        onnx_path: the file; a program names it without its folder.
        shapes: the ranges that an engine is built for.
        feeds_code: Python that makes `feeds`, a dict of arrays by input.
    """

    onnx_path: str
    shapes: Mapping[str, ShapeRange]
    feeds_code: str

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return Path(self.onnx_path).name


@dataclass(frozen=True)
class ReportedFile:
    """What a backend says of a file that is no ONNX graph, for a report.

    Attributes:
        section: lines of Markdown: what the file is, beside its name, size and digest.
        shapes: the ranges that an engine is built for.
        feeds: made-up inputs at their usual size.
        expected: what its outputs are held against, as a sentence.
    """

    section: list[str]
    shapes: dict[str, ShapeRange]
    feeds: dict[str, np.ndarray]
    expected: str


@dataclass(frozen=True)
class Reproduction:
    """A program and its language as Markdown names it (python, bash)."""

    language: str
    text: str


def script_against_plain(case: FaultCase, actual: str, imports: str = "") -> Reproduction:
    """Return a Python script that compares a runtime with ONNX Runtime without any optimization.

    Args:
        actual: lines that set `actual`, the outputs in the file's order, from `feeds`.
        imports: modules beside numpy and onnxruntime, as ", openvino as ov".
    """
    text = SCRIPT.format(imports=imports, feeds=case.feeds_code, model=case.name, actual=actual)
    return Reproduction("python", text)
