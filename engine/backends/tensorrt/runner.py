"""A TensorRT engine on its GPU: its lanes, times by CUDA events, several streams, the time of each layer."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from engine.backends.runner import Runner
from engine.backends.tensorrt.builder import make_logger
from engine.backends.tensorrt.lane import Cuda, Lane, numpy_type
from engine.shapes import ShapeRange

NUM_WARM = 3


class TrtRunner(Runner):
    """A deserialized engine with one or more lanes.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        content: the serialized engine.
        shapes: the ranges it was built for.
        may_bring_code: whether code in the file may run here. A version-compatible engine brings its own runtime;
            any other needs none, and gets none.
    """

    has_device_clock = True

    def __init__(
        self, trt: Any, content: bytes, shapes: Mapping[str, ShapeRange], *, may_bring_code: bool = False
    ) -> None:
        self._trt, self._cuda, self._logger = trt, Cuda(), make_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        if may_bring_code and hasattr(self._runtime, "engine_host_code_allowed"):
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            reason = "; ".join(self._logger.errors[-2:]) or "no reason given"
            raise RuntimeError(f"TensorRT {trt.__version__} refused the engine: {reason}")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        hosted = [name for name in names if self._engine.get_tensor_location(name) != trt.TensorLocation.DEVICE]
        if hosted:
            raise RuntimeError(f"{', '.join(hosted)} lies in the CPU's memory; no engine with sizes as inputs is run")
        super().__init__(
            shapes,
            {name: (self._dtype(name), self._sizes(name)) for name in inputs},
            [name for name in names if name not in inputs],
        )
        for name in self.output_names:
            self._dtype(name)  # told now, and not at the first call
        self._lanes = [self._lane()]

    def _dtype(self, name: str) -> np.dtype:
        return numpy_type(self._trt, self._engine, name)

    def _sizes(self, name: str) -> tuple[int | None, ...]:
        return tuple(size if size >= 0 else None for size in self._engine.get_tensor_shape(name))

    def _lane(self) -> Lane:
        if self._engine is None:
            raise RuntimeError("this engine is closed; load it again")
        return Lane(self._trt, self._cuda, self._engine, self.input_names, self.output_names)

    def _first_lane(self) -> Lane:
        if not self._lanes:
            raise RuntimeError("this engine is closed; load it again")
        return self._lanes[0]

    def _infer(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        lane = self._first_lane()
        lane.feed(arrays)
        lane.launch()
        return lane.fetch()

    def time(self, feeds: Mapping[str, np.ndarray], iterations: int = 50, warmup: int = 10) -> list[float]:
        """Return each call's milliseconds on the GPU by CUDA events, inputs and outputs lying there."""
        arrays, _ = self._check(feeds)
        lane = self._first_lane()
        lane.feed(arrays)
        for _ in range(max(warmup, 1)):
            lane.launch()
        with self._events(2) as (start, end):
            latency_ms = []
            for _ in range(iterations):
                self._cuda("cudaEventRecord", start, lane.stream)
                lane.launch()
                self._cuda("cudaEventRecord", end, lane.stream)
                self._cuda("cudaEventSynchronize", end)
                elapsed = ctypes.c_float()
                self._cuda("cudaEventElapsedTime", ctypes.byref(elapsed), start, end)
                latency_ms.append(float(elapsed.value))
        return latency_ms

    def throughput(self, feeds: Mapping[str, np.ndarray], num_streams: int = 2, iterations: int = 100) -> float:
        """Return calls per second with `num_streams` of them in flight, inputs and outputs lying on the GPU.

        Raises: ValueError: fewer than one stream or call.
        """
        if min(num_streams, iterations) < 1:
            raise ValueError(f"num_streams {num_streams} and iterations {iterations} must be at least 1")
        arrays, _ = self._check(feeds)
        while len(self._lanes) < num_streams:
            self._lanes.append(self._lane())
        lanes = self._lanes[:num_streams]
        for lane in lanes:
            lane.feed(arrays)
            lane.launch()
            lane.synchronize()
        with self._events(2) as (start, end):
            # Both events lie on the first stream; the others are waited for before the last one is recorded.
            self._cuda("cudaEventRecord", start, lanes[0].stream)
            for i in range(iterations):
                lanes[i % num_streams].launch()
            for lane in lanes:
                lane.synchronize()
            self._cuda("cudaEventRecord", end, lanes[0].stream)
            self._cuda("cudaEventSynchronize", end)
            elapsed = ctypes.c_float()
            self._cuda("cudaEventElapsedTime", ctypes.byref(elapsed), start, end)
        return iterations / (float(elapsed.value) / 1e3)

    def layer_information(self) -> str:
        """Return the engine inspector's JSON."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def profile(self, feeds: Mapping[str, np.ndarray], iterations: int = 20) -> list[dict[str, Any]]:
        """Return each layer's name and median milliseconds in order of running, as `trtexec --exportProfile` does.

        The layers are timed one by one, without a CUDA graph: their sum is longer than a call.
        """
        arrays, _ = self._check(feeds)
        times: dict[str, list[float]] = {}

        class Profiler(self._trt.IProfiler):  # type: ignore[name-defined]
            def __init__(self, trt: Any) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times.setdefault(layer_name, []).append(ms)

        lane = self._lane()
        try:
            lane.context.profiler = Profiler(self._trt)
            lane.feed(arrays)
            for _ in range(NUM_WARM + iterations):
                lane.enqueue()
                lane.synchronize()
        finally:
            lane.close()
        return [{"name": name, "medianMs": float(np.median(each[NUM_WARM:]))} for name, each in times.items()]

    @contextlib.contextmanager
    def _events(self, count: int) -> Iterator[list[ctypes.c_void_p]]:
        events = [self._cuda.pointer("cudaEventCreate") for _ in range(count)]
        try:
            yield events
        finally:
            for event in events:
                self._cuda("cudaEventDestroy", event)

    def close(self) -> None:
        """Free the lanes and the engine."""
        for lane in self._lanes:
            lane.close()
        self._lanes, self._engine, self._runtime = [], None, None
