"""What a TensorRT-RTX engine multiplies, read from the engine itself: its plan holds Myelin's program as text.

No GPU is needed. The text is no interface of TensorRT's: this was written for tensorrt-rtx 1.7.1.116, and what is not
found stays unknown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TEXT = re.compile(rb"[\x09\x0a\x1e\x1f\x20-\x7e]{64,}")  # 0x1f stands between the names of fused layers
TENSOR = re.compile(r'^  (?:sub_)?tensor=.*? name="([^"]+)".* type=(\w+) \}', re.M)
START = re.compile(r"^  (?=\w+=\{)", re.M)  # an instruction may go over several lines: it names its layers one on each
INPUTS = re.compile(r" input(?:_args)?=\{([^}]*)\}")
NAME = re.compile(r'name="?([^" ]+)')
LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
# Instructions that multiply the first two tensors that they read; fused attention is a function of its own.
PRODUCTS = ("fully_connected", "corrltn", "matmul", "batch_matmul", "deconvolution")
ATTENTION = re.compile(r"(?:^|_)mha|fmha|attention")


@dataclass(frozen=True)
class Instruction:
    """One instruction: Myelin's word for it, the types of what it reads, and the ONNX nodes that it stands for."""

    kind: str
    types: tuple[str, ...]
    layers: tuple[str, ...]

    @property
    def is_product(self) -> bool:
        """Whether it multiplies matrices."""
        return self.kind in PRODUCTS or bool(ATTENTION.search(self.kind))

    @property
    def factors(self) -> tuple[str, ...]:
        """The types of what is multiplied: Q, K and V of fused attention."""
        return self.types[:2] if self.kind in PRODUCTS else self.types[:3]


def instructions(engine: bytes) -> list[Instruction]:
    """Return every instruction of an engine's Myelin programs, in order; a fused function bears its own name."""
    found = []
    for match in TEXT.finditer(engine):
        text = match.group().decode("ascii")
        if "descriptors {" not in text:
            continue
        types = dict(TENSOR.findall(text))
        for line in START.split(text.partition("main {")[2])[1:]:
            inputs, name = INPUTS.search(line), NAME.search(line)
            if inputs is None or name is None:
                continue
            kind = line.partition("=")[0]
            read = tuple(types.get(each, "?") for each in re.findall(r'"([^"]+)"', inputs.group(1)))
            layers = tuple(LAYER.findall(line))
            found.append(Instruction(name.group(1) if kind == "function" else kind, read, layers))
    return found
