"""One execution context of a TensorRT engine: stream, device buffers, CUDA graph; and the calls of libcudart.

CUDA is Polygraphy's wrapper of libcudart (ctypes alone); there is no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

# cudaStreamCaptureModeThreadLocal: other threads' calls do not break a capture.
CAPTURE_THREAD_LOCAL = 1
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
        self.shapes = {}  # until all is done: what fails half-way leaves the context between the two
        for name, shape in shapes.items():
            if not self.context.set_input_shape(name, shape):
                raise ValueError(f"input {name}: shape {'x'.join(map(str, shape))} is outside the engine's profile")
            self._reserve(name, arrays[name].nbytes)
        for name in self.outputs:
            shape = tuple(self.context.get_tensor_shape(name))
            if min(shape, default=0) < 0:
                raise RuntimeError(f"output {name} has a size that TensorRT only knows after a run; none such is read")
            self.host[name] = np.empty(shape, numpy_type(self.trt, self.engine, name))
            self._reserve(name, self.host[name].nbytes)
        self.shapes = shapes

    def _reserve(self, name: str, size: int) -> None:
        """Let the tensor have a buffer of at least `size` bytes; one that is large enough is kept."""
        if name not in self.buffers or self.buffers[name][0] < size:
            if name in self.buffers:
                self.cuda("cudaFree", self.buffers.pop(name)[1])
            self.buffers[name] = (size, self.cuda.pointer("cudaMalloc", ctypes.c_size_t(max(size, 1))))
        if not self.context.set_tensor_address(name, self.buffers[name][1].value):
            raise RuntimeError(f"TensorRT refused the address of {name} (set_tensor_address)")

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
        if is_recorded and not status and recorded.value:
            with contextlib.suppress(RuntimeError):  # too little memory for a graph may be enough for the engine
                # CUDA 11 has three more arguments than 12; WithFlags has had these since 11.4.
                self.graph = self.cuda.pointer("cudaGraphInstantiateWithFlags", recorded, ctypes.c_ulonglong(0))
        if recorded.value:
            self.cuda("cudaGraphDestroy", recorded)
        self.can_capture = self.graph is not None
        if not self.can_capture:
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


def numpy_type(trt: Any, engine: Any, name: str) -> np.dtype:
    """Return a tensor's type.

    Raises: RuntimeError: if numpy has none such (bf16, fp8).
    """
    dtype = engine.get_tensor_dtype(name)
    try:
        return np.dtype(trt.nptype(dtype))
    except TypeError:
        word = str(dtype).rpartition(".")[2].lower()
        raise RuntimeError(f"{name} is in {word}, which numpy has not; cast it to fp32 in the ONNX file") from None
