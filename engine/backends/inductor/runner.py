"""An engine of backend inductor in memory: a CUDA graph for each bucket of shapes, made when it is first asked for."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule

from engine.backends.inductor.binaries import Binaries, served
from engine.backends.inductor.compiled import Captured, Plans, with_plans
from engine.backends.inductor.program import BATCH, Bucket, Program, bucket_for, bucket_name
from engine.backends.runner import Runner
from engine.gpu import enough_memory
from engine.shapes import ShapeRange

NUMPY_TYPES = {"int64": np.int64, "int32": np.int32, "float32": np.float32, "bool": np.bool_}


class InductorRunner(Runner):
    """A loaded program on its GPU.

    Args:
        plans: of each bucket, the usual one first: that is compiled at once, the others when they are first fed.
        binaries: the code of our kernels for all buckets.
    """

    has_device_clock = True

    def __init__(
        self, module: GraphModule, program: Program, shapes: Mapping[str, ShapeRange],
        plans: list[tuple[Bucket, Plans]], binaries: Binaries,
    ) -> None:  # fmt: skip
        inputs = {
            name: (np.dtype(NUMPY_TYPES[dtype]), shapes[name].sizes())
            for name, (dtype, _) in program.inputs.items()
        }  # fmt: skip
        super().__init__(shapes, inputs, list(program.outputs))
        self.program = program
        self.module: Any = module
        self._plans, self._binaries = plans, binaries
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[str, Captured] = {}
        self.captured(plans[0][0])

    def captured(self, bucket: Bucket) -> Captured:
        """Return the graph of a bucket, compiled and captured at its first use."""
        name = bucket_name(bucket)
        if name not in self._captured:
            plans = next(plans for each, plans in self._plans if each == bucket)
            feeds = example_feeds(self.program, bucket)
            hint = "close other engines, or build with fewer --shapes"
            with enough_memory(f"capturing {name}", hint), served(self._binaries):
                self._captured[name] = Captured(with_plans(self.module, plans), feeds, self._pool)
        return self._captured[name]

    def _infer(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        captured, wanted, _ = self._feed(arrays)
        captured.replay()
        found = {}
        for (name, sizes), tensor in zip(self.program.outputs.items(), captured.outputs, strict=True):
            cut = tuple(slice(wanted[size]) if isinstance(size, str) else slice(None) for size in sizes)
            found[name] = tensor[cut].cpu().numpy()
        return found

    def _feed(self, arrays: dict[str, np.ndarray]) -> tuple[Captured, Bucket, Bucket]:
        """Copy inputs, padded to the next bucket, to the GPU; return its graph, the sizes fed and the bucket's."""
        wanted: Bucket = {}
        for name, (_, sizes) in self.program.inputs.items():
            for axis, size in zip(sizes, arrays[name].shape, strict=True):
                if isinstance(axis, str) and wanted.setdefault(axis, size) != size:
                    raise ValueError(f"the inputs disagree on the {axis}: {wanted[axis]} and {size}")
        if self.module is None:
            raise RuntimeError("this engine is closed; load it again")
        bucket = bucket_for([each for each, _ in self._plans], wanted)
        if bucket is None:
            raise ValueError(f"no bucket of this engine holds {bucket_name(wanted)}; build one with other --shapes")
        grown = [axis for axis in wanted if axis != BATCH and wanted[axis] != bucket[axis]]
        if grown and self.program.reads_padding:
            raise ValueError(f"a {grown[0]} of {wanted[grown[0]]} would be padded to {bucket[grown[0]]}, and this "
                             "model reads its padding; build an engine for exactly this shape")  # fmt: skip
        captured = self.captured(bucket)
        captured.feed([self._padded(name, arrays[name], bucket) for name in self.program.inputs])
        return captured, wanted, bucket

    def _padded(self, name: str, x: np.ndarray, bucket: Bucket) -> np.ndarray:
        """Return an input grown to its bucket: zeros along lengths (which its mask hides), the last sample again."""
        shape = self.program.shape(name, bucket)
        batch = self.program.inputs[name][1].index(BATCH) if BATCH in self.program.inputs[name][1] else None
        lengths = [
            (0, 0 if axis == batch else want - have)
            for axis, (want, have) in enumerate(zip(shape, x.shape, strict=True))
        ]
        x = np.pad(x, lengths) if any(after for _, after in lengths) else x
        if batch is not None and x.shape[batch] != shape[batch]:
            x = np.pad(
                x, [(0, shape[batch] - x.shape[batch] if axis == batch else 0) for axis in range(x.ndim)], "edge"
            )
        return np.ascontiguousarray(x)

    @property
    def usual(self) -> Bucket:
        """The bucket of the usual shape."""
        return self._plans[0][0]

    def fed(self, feeds: Mapping[str, np.ndarray]) -> tuple[Captured, Bucket]:
        """Return the graph that runs these inputs, with them in its memory, and its bucket."""
        captured, _, bucket = self._feed(self._check(feeds)[0])
        return captured, bucket

    def time(self, feeds: Mapping[str, np.ndarray], iterations: int = 50, warmup: int = 10) -> list[float]:
        """Return each call's milliseconds on the GPU by CUDA events, inputs and outputs lying there."""
        captured, _ = self.fed(feeds)
        for _ in range(max(warmup, 1)):
            captured.replay()
        events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(iterations + 1)]
        latency_ms = []
        for before, after in pairwise(events):
            before.record()
            captured.replay()
            after.record()
            after.synchronize()
            latency_ms.append(before.elapsed_time(after))
        return latency_ms

    def close(self) -> None:
        """Free the graphs and the weights."""
        self._captured, self._binaries, self.module = {}, {}, None
        gc.collect()  # modules and their graphs hold each other
        torch.cuda.empty_cache()


def example_feeds(program: Program, bucket: Bucket, device: str = "cuda") -> list[torch.Tensor]:
    """Return inputs of a bucket's shapes: masks of ones, ids of zeros, seeded normal floats."""
    generator = torch.Generator().manual_seed(0)
    feeds = []
    for name, (dtype, _) in program.inputs.items():
        shape = program.shape(name, bucket)
        kind = getattr(torch, dtype)
        x = torch.randn(shape, generator=generator).to(kind) if kind.is_floating_point else torch.full(
            shape, int(name.endswith("mask")), dtype=kind)  # fmt: skip
        feeds.append(x.to(device))
    return feeds
