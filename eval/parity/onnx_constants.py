"""The constants of an ONNX file as arrays, one at a time: a large file's weights stay on the disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from engine.passes.weights import quantize as rounded


class Constants(Mapping[str, np.ndarray]):
    """The file's constants, halves as fp32, and what each QuantizeLinear makes of one; each is read when asked for."""

    def __init__(self, proto: onnx.ModelProto, folder: str | Path) -> None:
        self._folder = str(folder)
        self._tensors = {initializer.name: initializer for initializer in proto.graph.initializer}
        self._rounded: dict[str, onnx.NodeProto] = {}
        for node in proto.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._tensors[node.output[0]] = node.attribute[0].t
        for node in proto.graph.node:
            if node.op_type == "QuantizeLinear" and node.input[0] in self and node.input[1] in self:
                self._rounded[node.output[0]] = node

    def __contains__(self, name: object) -> bool:
        return name in self._tensors or name in self._rounded

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._rounded:
            node = self._rounded[name]
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            return rounded(self[node.input[0]], self[node.input[1]], axis)
        array = numpy_helper.to_array(self._tensors[name], self._folder)
        return array.astype(np.float32) if array.dtype.name in ("float16", "bfloat16") else array

    def __iter__(self) -> Iterator[str]:
        return iter((*self._tensors, *self._rounded))

    def __len__(self) -> int:
        return len(self._tensors) + len(self._rounded)
