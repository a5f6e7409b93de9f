"""A stand-in of TensorRT's runtime API and of libcudart, so that `engine.backends.tensorrt.runner` runs on the CPU.

`StandIn(version)` has what TensorRT 8.5 to 11 have in common; an engine is JSON, see `engine_bytes`. As on a GPU
nothing happens before the stream is waited for, memory that was freed or is too small is refused, and time is a clock
of its own, of which each run of an engine takes KERNEL_MS. What is wrong with a call is a status, never an exception.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

KERNEL_MS, COPY_MS = 0.25, 5.0
INVALID_VALUE, OUT_OF_MEMORY, INVALID_HANDLE, CAPTURE_FAILED = 1, 2, 400, 901


def engine_bytes(**changes: Any) -> bytes:
    """Return an engine of x (1 to 8, 3) float32 and ids (as many, 3) int32 to y = 2 x + ids and a count."""
    content = {
        "inputs": {"x": ["float32", [-1, 3]], "ids": ["int32", [-1, 3]]},
        "outputs": {"y": ["float32", [-1, 3]], "total": ["float32", []]},
        "max_batch": 8,
        "version_compatible": False,
        "host_inputs": [],
    }
    return json.dumps(content | changes).encode()


class Cudart:
    """The functions of libcudart that the runner calls, on the host's memory."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}  # address -> the buffer that stands there
        self.handles: dict[int, Any] = {}  # streams, events, graphs
        self.free_bytes, self.clock_ms, self.can_instantiate = 1 << 20, 0.0, True
        self.calls: list[str] = []
        for name in dir(self):
            if name.startswith("do_"):
                setattr(self, f"cuda{name[3:]}", self._counted(name))
        self.cudaGetErrorString = self._text  # a plain function: ctypes' restype is set on it

    def _counted(self, name: str) -> Callable:
        def call(*arguments: Any) -> int:
            self.calls.append(f"cuda{name[3:]}")
            return getattr(self, name)(*arguments) or 0

        return call

    @property
    def _text(self) -> Callable:
        return lambda status: b"out of memory" if status == OUT_OF_MEMORY else b"invalid"

    def _new(self, out: Any, thing: Any) -> None:
        number = 1000 + len(self.calls)
        self.handles[number], out._obj.value = thing, number

    def _drop(self, handle: Any) -> int:
        return 0 if self.handles.pop(handle.value, None) is not None else INVALID_HANDLE

    def do_StreamCreate(self, out: Any) -> None:
        self._new(out, SimpleNamespace(waiting=[], recording=None))

    def do_EventCreate(self, out: Any) -> None:
        self._new(out, SimpleNamespace(stream=None, ms=None))

    do_StreamDestroy = do_EventDestroy = do_GraphDestroy = do_GraphExecDestroy = _drop

    def do_Malloc(self, out: Any, size: Any) -> int:
        if size.value > self.free_bytes:
            return OUT_OF_MEMORY
        buffer = ctypes.create_string_buffer(size.value)
        self.memory[ctypes.addressof(buffer)], out._obj.value = buffer, ctypes.addressof(buffer)
        self.free_bytes -= size.value
        return 0

    def do_Free(self, pointer: Any) -> int:
        buffer = self.memory.pop(pointer.value, None)
        self.free_bytes += len(buffer) if buffer is not None else 0
        return 0 if buffer is not None else INVALID_VALUE

    def do_MemcpyAsync(self, target: Any, source: Any, size: Any, kind: Any, stream: Any) -> int:
        device = target.value if kind.value == 1 else source.value  # 1: host to device, 2: back
        if device not in self.memory or len(self.memory[device]) < size.value:
            return INVALID_VALUE

        def copy() -> None:
            ctypes.memmove(target.value, source.value, size.value)
            self.clock_ms += COPY_MS

        self.handles[stream.value].waiting.append(copy)
        return 0

    def do_StreamSynchronize(self, stream: Any) -> int:
        if stream.value not in self.handles:
            return INVALID_HANDLE
        waiting = self.handles[stream.value].waiting
        while waiting:
            waiting.pop(0)()
        return 0

    def do_StreamBeginCapture(self, stream: Any, mode: int) -> None:
        self.handles[stream.value].recording = []

    def do_StreamEndCapture(self, stream: Any, out: Any) -> int:
        found, self.handles[stream.value].recording = self.handles[stream.value].recording, None
        if not found:
            return CAPTURE_FAILED
        self._new(out, found)
        return 0

    def do_GraphInstantiateWithFlags(self, out: Any, graph: Any, flags: Any) -> int:
        if not self.can_instantiate:
            return OUT_OF_MEMORY
        self._new(out, list(self.handles[graph.value]))
        return 0

    def do_GraphLaunch(self, graph: Any, stream: Any) -> int:
        if graph.value not in self.handles:
            return INVALID_HANDLE
        self.handles[stream.value].waiting += self.handles[graph.value]
        return 0

    def do_EventRecord(self, event: Any, stream: Any) -> None:
        found = self.handles[event.value]
        found.stream = stream
        self.handles[stream.value].waiting.append(lambda: setattr(found, "ms", self.clock_ms))

    def do_EventSynchronize(self, event: Any) -> int:
        return self.do_StreamSynchronize(self.handles[event.value].stream)

    def do_EventElapsedTime(self, out: Any, start: Any, end: Any) -> int:
        times = [self.handles[each.value].ms for each in (start, end)]
        if None in times:
            return INVALID_HANDLE
        out._obj.value = times[1] - times[0]
        return 0

    def do_GetLastError(self) -> int:
        return 0


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class IProfiler:
    pass


class Context:
    """An execution context; `fails` names what it refuses: enqueue, capture or address."""

    def __init__(self, engine: Engine, fails: set[str]) -> None:
        self.engine, self.fails, self.profiler = engine, fails, None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if not 1 <= shape[0] <= self.engine.content["max_batch"]:
            return False
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = next(iter(self.shapes.values()))[0] if self.shapes else -1
        return tuple(batch if size == -1 else size for size in self.engine.get_tensor_shape(name))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return "address" not in self.fails

    def execute_async_v3(self, stream: int) -> bool:
        cudart = self.engine.cudart
        found = cudart.handles[stream]
        shapes = {each[0] for each in self.shapes.values()}
        if "enqueue" in self.fails or len(shapes) != 1 or (found.recording is not None and "capture" in self.fails):
            return False
        (found.waiting if found.recording is None else found.recording).append(self._run)
        return True

    def _array(self, name: str) -> np.ndarray:
        dtype, _ = self.engine.tensors[name]
        shape = self.shapes.get(name) or self.get_tensor_shape(name)
        buffer = self.engine.cudart.memory[self.addresses[name]]  # a KeyError: read after it was freed
        return np.frombuffer(buffer, np.dtype(dtype), int(np.prod(shape))).reshape(shape)

    def _run(self) -> None:
        x, ids = self._array("x"), self._array("ids")
        self._array("y")[...] = 2 * x + ids
        self._array("total")[...] = len(x)
        self.engine.cudart.clock_ms += KERNEL_MS
        if self.profiler is not None:
            for layer, ms in (("product", 0.2), ("sum", 0.05)):
                self.profiler.report_layer_time(layer, ms)


class Engine:
    """A deserialized engine."""

    def __init__(self, content: dict[str, Any], cudart: Cudart, fails: set[str]) -> None:
        self.content, self.cudart, self.fails = content, cudart, fails
        self.tensors: dict[str, Any] = content["inputs"] | content["outputs"]
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.content["inputs"] else "output"

    def get_tensor_dtype(self, name: str) -> str:
        return self.tensors[name][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name][1])

    def get_tensor_location(self, name: str) -> str:
        return "host" if name in self.content["host_inputs"] else "device"

    def create_execution_context(self) -> Context | None:
        return None if "context" in self.fails else Context(self, self.fails)

    def create_engine_inspector(self) -> Any:
        layers = ["product", "sum"]
        return SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": layers, "as": form}))


class StandIn:
    """The module `tensorrt` as far as the runner asks it; `runtimes` are those that it made."""

    ILogger, IProfiler = ILogger, IProfiler
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    TensorLocation = SimpleNamespace(DEVICE="device", HOST="host")
    LayerInformationFormat = SimpleNamespace(JSON="json")

    def __init__(self, version: str = "10.0", fails: set[str] | None = None) -> None:
        self.__version__, self.cudart, self.fails = version, Cudart(), fails or set()
        self.runtimes: list[Any] = []

    def nptype(self, dtype: str) -> Any:
        if dtype == "bfloat16":
            raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
        return np.dtype(dtype).type

    def Runtime(self, logger: Any) -> Any:
        runtime = SimpleNamespace(deserialize_cuda_engine=lambda content: self._deserialize(runtime, logger, content))
        if self.__version__ != "8.5":  # there was nothing to allow yet
            runtime.engine_host_code_allowed = False
        self.runtimes.append(runtime)
        return runtime

    def _deserialize(self, runtime: Any, logger: Any, content: bytes) -> Engine | None:
        try:
            found = json.loads(content)
        except ValueError:
            logger.log(ILogger.ERROR, "Magic tag does\n not match")
            return None
        if found["version_compatible"] and not runtime.engine_host_code_allowed:
            logger.log(ILogger.ERROR, "host code is not allowed")
            return None
        return Engine(found, self.cudart, self.fails)
