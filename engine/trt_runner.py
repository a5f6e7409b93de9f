"""A TensorRT engine on its GPU: device buffers kept between calls, CUDA graphs, times by CUDA events, several streams.

CUDA is Polygraphy's wrapper of libcudart (ctypes alone); there is no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from engine.backend import Runner
from engine.shapes import ShapeRange
from engine.trt_builder import make_logger

# cudaStreamCaptureModeThreadLocal: other threads' calls do not break a capture.
CAPTURE_THREAD_LOCAL = 1
NUM_WARM = 3
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


class Cuda:
    """The calls of libcudart that Polygraphy's wrapper lacks: events and graphs. Raises RuntimeError on a status."""

    def __init__(self) -> None:
        from polygraphy import cuda

        try:
            self.wrapper = cuda.wrapper()
        except OSError as error:
            raise RuntimeError(f"libcudart cannot be loaded ({error}); name its folder in LD_LIBRARY_PATH") from None
        self.kinds = cuda.MemcpyKind

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a function of libcudart by name."""
        status = getattr(self.wrapper.handle, name)(*arguments)
        if status:
            self.wrapper.handle.cudaGetErrorString.restype = ctypes.c_char_p
            text = (self.wrapper.handle.cudaGetErrorString(status) or b"unknown error").decode()
            hint = "; build for a smaller batch, or free the GPU" if status == OUT_OF_MEMORY else ""
            raise RuntimeError(f"{name}: CUDA error {status}, {text}{hint}")

    def pointer(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """Return what a function of libcudart writes to its first argument."""
        made = ctypes.c_void_p()
        self(name, ctypes.byref(made), *arguments)
        return made


class Lane:
    """One execution context with its stream, its buffers, and its captured graph for the shapes fed last."""

    def __init__(self, trt: Any, cuda: Cuda, engine: Any, inputs: list[str], outputs: list[str]) -> None:
        self.trt, self.cuda, self.engine, self.inputs, self.outputs = trt, cuda, engine, inputs, outputs
        self.context = engine.create_execution_context()
        if self.context is None:
            raise RuntimeError("TensorRT made no execution context: too little GPU memory is free")
        self.stream = cuda.pointer("cudaStreamCreate")
        self.buffers: dict[str, tuple[int, ctypes.c_void_p]] = {}
        self.host: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.graph: ctypes.c_void_p | None = None
        self.can_capture = True

    def feed(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Copy the inputs to the device; new shapes make new buffers and drop the graph."""
        shapes = {name: array.shape for name, array in arrays.items()}
        if shapes != self.shapes:
            self._resize(shapes, arrays)
        for name, array in arrays.items():
            pointer = self.buffers[name][1]
            source = ctypes.c_void_p(array.ctypes.data)
            size, kind = ctypes.c_size_t(array.nbytes), self.cuda.kinds.HostToDevice
            self.cuda("cudaMemcpyAsync", pointer, source, size, kind, self.stream)

    def _resize(self, shapes: dict[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray]) -> None:
        self._drop_graph()
        for name, shape in shapes.items():
            if not self.context.set_input_shape(name, shape):
                raise ValueError(f"input {name}: shape {'x'.join(map(str, shape))} is outside the engine's profile")
            self._reserve(name, arrays[name].nbytes)
        for name in self.outputs:
            dtype = np.dtype(self.trt.nptype(self.engine.get_tensor_dtype(name)))
            self.host[name] = np.empty(tuple(self.context.get_tensor_shape(name)), dtype)
            self._reserve(name, self.host[name].nbytes)
        self.shapes = shapes

    def _reserve(self, name: str, size: int) -> None:
        """Let the tensor have a buffer of at least `size` bytes; one that is large enough is kept."""
        if name not in self.buffers or self.buffers[name][0] < size:
            if name in self.buffers:
                self.cuda("cudaFree", self.buffers.pop(name)[1])
            self.buffers[name] = (size, self.cuda.pointer("cudaMalloc", ctypes.c_size_t(max(size, 1))))
        self.context.set_tensor_address(name, self.buffers[name][1].value)

    def launch(self) -> None:
        """Start the engine on the stream: its graph, or the plain call where it cannot be captured."""
        if self.graph is None and self.can_capture:
            self.enqueue()  # the first call may allocate, which a capture forbids
            self._capture()
        if self.graph is not None:
            self.cuda("cudaGraphLaunch", self.graph, self.stream)
        else:
            self.enqueue()

    def enqueue(self) -> None:
        """Start the engine on the stream without a graph."""
        if not self.context.execute_async_v3(self.stream.value):
            raise RuntimeError("TensorRT could not start the engine (execute_async_v3)")

    def _capture(self) -> None:
        """Record the engine as a CUDA graph; where that fails it is run without one from then on."""
        self.synchronize()
        self.cuda("cudaStreamBeginCapture", self.stream, CAPTURE_THREAD_LOCAL)
        is_recorded = bool(self.context.execute_async_v3(self.stream.value))
        recorded = ctypes.c_void_p()
        status = self.cuda.wrapper.handle.cudaStreamEndCapture(self.stream, ctypes.byref(recorded))
        self.can_capture = is_recorded and not status and bool(recorded.value)
        if self.can_capture:
            # CUDA 11 has three more arguments than 12; WithFlags has had these since 11.4.
            self.graph = self.cuda.pointer("cudaGraphInstantiateWithFlags", recorded, ctypes.c_ulonglong(0))
            self.cuda("cudaGraphDestroy", recorded)
        else:
            self.cuda.wrapper.handle.cudaGetLastError()  # clear the error that the failed capture left

    def fetch(self) -> dict[str, np.ndarray]:
        """Return copies of the outputs, waiting for the stream."""
        for name, array in self.host.items():
            target, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
            kind = self.cuda.kinds.DeviceToHost
            self.cuda("cudaMemcpyAsync", target, self.buffers[name][1], size, kind, self.stream)
        self.synchronize()
        return {name: array.copy() for name, array in self.host.items()}

    def synchronize(self) -> None:
        """Wait for all that was started on the stream."""
        self.cuda("cudaStreamSynchronize", self.stream)

    def _drop_graph(self) -> None:
        if self.graph is not None:
            self.cuda("cudaGraphExecDestroy", self.graph)
            self.graph = None

    def close(self) -> None:
        """Free graph, buffers and stream."""
        with contextlib.suppress(RuntimeError):  # a broken context frees nothing more
            self._drop_graph()
            for _, pointer in self.buffers.values():
                self.cuda("cudaFree", pointer)
            self.cuda("cudaStreamDestroy", self.stream)
        self.buffers, self.context = {}, None


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
        super().__init__(
            shapes,
            {name: (self._dtype(name), self._sizes(name)) for name in inputs},
            [name for name in names if name not in inputs],
        )
        self._lanes = [self._lane()]

    def _dtype(self, name: str) -> np.dtype:
        return np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))

    def _sizes(self, name: str) -> tuple[int | None, ...]:
        return tuple(size if size >= 0 else None for size in self._engine.get_tensor_shape(name))

    def _lane(self) -> Lane:
        return Lane(self._trt, self._cuda, self._engine, self.input_names, self.output_names)

    def _infer(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        lane = self._lanes[0]
        lane.feed(arrays)
        lane.launch()
        return lane.fetch()

    def time(self, feeds: Mapping[str, np.ndarray], iterations: int = 50, warmup: int = 10) -> list[float]:
        """Return each call's milliseconds on the GPU by CUDA events, inputs and outputs lying there."""
        arrays, _ = self._check(feeds)
        lane = self._lanes[0]
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
        """Return calls per second with `num_streams` of them in flight, inputs and outputs lying on the GPU."""
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
        lane.context.profiler = Profiler(self._trt)
        lane.feed(arrays)
        for _ in range(NUM_WARM + iterations):
            lane.enqueue()
            lane.synchronize()
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
