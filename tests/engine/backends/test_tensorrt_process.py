"""TensorRT in an interpreter of its own: questions, answers and errors cross the pipe; a lost process is said."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from multiprocessing.connection import Connection

import numpy as np
import pytest

from engine.backend import BuildOptions, get_backend
from engine.backends.runner import Runner
from engine.backends.tensorrt import process as trt_process
from engine.backends.tensorrt.backend import target_of
from engine.backends.tensorrt.process import TrtProcess, serve
from engine.inspect.layers import InspectRequest
from engine.shapes import ShapeRange


class Doubling(Runner):
    """A runner that doubles x, as an engine of a static batch of 2 would."""

    def __init__(self):
        super().__init__({"x": ShapeRange((2, 3), (2, 3), (2, 3))}, {"x": (np.dtype(np.float32), (2, 3))}, ["y"])
        self.is_closed = False

    def _infer(self, arrays):
        return {"y": arrays["x"] * 2}

    def time(self, feeds, iterations=50, warmup=10):
        return [0.5] * iterations

    def close(self):
        self.is_closed = True


@pytest.fixture
def process(monkeypatch):
    """A TrtProcess whose other side is a thread here, with `Doubling` as every engine."""
    runner = Doubling()

    def load(engine):
        if engine.name == "broken":
            raise ValueError("engine broken is truncated")
        return runner

    monkeypatch.setattr(trt_process.TENSORRT, "load", load)
    threads = []

    def start(self):
        ours, theirs = socket.socketpair()
        threads.append(threading.Thread(target=serve, args=(theirs.detach(),)))
        threads[-1].start()
        self._pipe = Connection(ours.detach())
        return self._pipe

    monkeypatch.setattr(TrtProcess, "_start", start)
    made = TrtProcess("unused")
    yield made, runner
    made.close()
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_a_runner_there_is_a_runner_here(process, tmp_path):
    backend, runner = process
    with backend.load(tmp_path / "engine") as remote:
        assert remote.has_device_clock and remote.static_batch == 2
        x = np.arange(3, dtype=np.float32).reshape(1, 3)
        np.testing.assert_array_equal(remote({"x": x})["y"], x * 2)  # padded to the static batch and cut again
        assert remote.time({"x": np.zeros((2, 3), np.float32)}, iterations=4) == [0.5] * 4
        with pytest.raises(ValueError, match="input x has shape 3x3, the engine takes 2x3"):
            remote({"x": np.zeros((3, 3), np.float32)})
    assert runner.is_closed
    with pytest.raises(ValueError, match="engine broken is truncated"):
        backend.load(tmp_path / "broken")


def test_an_engine_of_a_process_that_ended_is_not_taken_for_another(process, tmp_path):
    backend, _ = process
    old = backend.load(tmp_path / "engine")
    backend.close()  # as when it was killed
    new = backend.load(tmp_path / "other")
    feeds = {"x": np.zeros((2, 3), np.float32)}
    with pytest.raises(RuntimeError, match="the interpreter that held this engine has ended; load the engine again"):
        old(feeds)
    old.close()
    np.testing.assert_array_equal(new(feeds)["y"], feeds["x"])


class Interrupted:
    """A pipe whose answer does not come before Ctrl-C."""

    def __init__(self, pipe):
        self.send, self.close = pipe.send, pipe.close

    def recv(self):
        raise KeyboardInterrupt


def test_an_interrupt_ends_the_process_and_the_next_answer_is_its_own():
    here = TrtProcess(sys.executable)
    try:
        here._pipe = Interrupted(here._start())  # Ctrl-C while the answer is waited for
        with pytest.raises(KeyboardInterrupt):
            here.ask("version")
        first = here._process
        assert first is not None and first.returncode == -signal.SIGKILL
        assert here.ask("check_build") is not None  # a reason: no GPU, or no TensorRT; the version may be None
        assert here._process is not first
    finally:
        here.close()


def test_an_interpreter_without_tensorrt_or_that_is_none_says_so(tmp_path):
    here = TrtProcess(sys.executable)  # this project's own Python holds no tensorrt
    try:
        reason = here.check_build()
        if here.version() is None:
            assert "tensorrt is not installed" in (reason or "") or "cannot be loaded" in (reason or "")
            with pytest.raises(FileNotFoundError, match="no ONNX file"):
                here.build(tmp_path / "none.onnx", tmp_path / "engine", BuildOptions())
        assert here._process is not None
        here._process.kill()
        assert "was killed by signal 9" in (here.check_run() or "")
    finally:
        here.close()
    assert "cannot start" in (TrtProcess(str(tmp_path / "python3")).check_build() or "")


def test_its_target_is_that_of_its_version_and_inspection_crosses_the_pipe(process, monkeypatch, tmp_path):
    backend, _ = process
    monkeypatch.setattr(trt_process.TENSORRT, "version", lambda: "8.6.1")
    monkeypatch.setattr(trt_process.TENSORRT, "inspect", lambda engine, request: (engine, request.iterations))
    backend.close()  # what the other side answers with is taken when it starts
    assert backend.target() == "tensorrt8" and get_backend("tensorrt_rtx").target() == "tensorrt"
    assert backend.inspect(str(tmp_path / "e"), InspectRequest(iterations=3)) == (str(tmp_path / "e"), 3)
    assert [target_of(version) for version in ("9.3", "10.0", None)] == ["tensorrt8", "tensorrt", "tensorrt"]


def test_tensorrt_alone_lives_in_another_interpreter():
    other = get_backend("tensorrt").in_interpreter("python3.10")
    assert isinstance(other, TrtProcess) and other.python == "python3.10"
    assert [get_backend(name).in_interpreter("python3.10") for name in ("tensorrt_rtx", "onnxruntime")] == [None, None]
