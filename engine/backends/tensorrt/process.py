"""TensorRT in an interpreter of its own: 8.5 to 9 have no wheels for the Python that today's transformers needs.

`TrtProcess(python)` is the backend `tensorrt`; what it is asked is done there by
`python -m engine.backends.tensorrt.process`, which needs this package, numpy, onnx, onnx-ir, polygraphy and tensorrt.
A TensorRT that crashes takes that process alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from engine.backend import Backend, BuildOptions, EngineFile
from engine.backends.runner import Runner
from engine.backends.tensorrt.backend import BACKEND as TENSORRT
from engine.backends.tensorrt.backend import target_of
from engine.bug_report.reproduction import FaultCase, Reproduction
from engine.inspect.layers import Inspection, InspectRequest

ROOT = Path(__file__).parents[3]


class TrtProcess(Backend):
    """The backend `tensorrt` of another interpreter.

    Args: python: its path, or that of a script which sets up its libraries and ends in `exec python3.10 "$@"`.
    """

    info = TENSORRT.info

    def __init__(self, python: str) -> None:
        self.python = python
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._lock = threading.Lock()  # one question at a time, also where several clients call

    def ask(self, question: str, *arguments: Any) -> Any:
        """Return what `_Worker` answers; its errors are raised here.

        Raises: RuntimeError: the interpreter does not start, or its process ended. An interrupt ends it: half an answer
            may be on its way, and the next question would get the rest.
        """
        with self._lock:
            pipe = self._pipe or self._start()
            try:
                pipe.send((question, arguments))
                is_error, answer = pipe.recv()
            except (EOFError, ConnectionError):
                self._pipe = None
                status = self._process.wait() if self._process else None
                ended = f"was killed by signal {-status}" if status and status < 0 else f"ended with exit code {status}"
                raise RuntimeError(
                    f"{self.python} {ended}; 'import tensorrt, numpy, onnx, onnx_ir, polygraphy' must work there"
                ) from None
            except BaseException:
                self._end()
                raise
        if is_error:
            raise answer
        return answer

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [self.python, "-m", "engine.backends.tensorrt.process", str(theirs.fileno())]
            try:
                self._process = subprocess.Popen(
                    command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                    env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
                )  # fmt: skip
            except OSError as error:
                raise RuntimeError(f"cannot start {self.python}: {error.strerror}; name a Python interpreter") from None
        self._pipe = Connection(ours.detach())
        return self._pipe

    def close(self) -> None:
        """End the process, which frees what it holds first."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            self._process.wait()

    def _end(self) -> None:
        """End the process at once, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
        self.close()

    def version(self) -> str | None:
        """Return its TensorRT's version, None where it cannot be loaded."""
        found: str | None = self.ask("version")
        return found

    def target(self) -> str:
        """Return the export target of its TensorRT."""
        return target_of(self.version())

    def check_build(self) -> str | None:
        """Return None, or why no engine can be built there."""
        return self._check("check_build")

    def check_run(self) -> str | None:
        """Return None, or why no engine can run there."""
        return self._check("check_run")

    def _check(self, question: str) -> str | None:
        try:
            reason: str | None = self.ask(question)
        except RuntimeError as error:
            return str(error)
        return reason

    def build(self, onnx_path: str | Path, out: str | Path, options: BuildOptions) -> EngineFile:
        """Write an engine and its manifest, as the backend `tensorrt` does."""
        made: EngineFile = self.ask("build", Path(onnx_path).absolute(), Path(out).absolute(), options)
        return made

    def load(self, engine: str | Path, threads: int | None = None) -> Runner:
        """Return a runner for an engine of that interpreter's TensorRT."""
        return _ProcessRunner(self, *self.ask("load", Path(engine).absolute()))

    def inspect(self, engine: str, request: InspectRequest) -> Inspection:
        """Return the layers of an engine as that TensorRT tells them."""
        found: Inspection = self.ask("inspect", str(Path(engine).absolute()), request)
        return found

    def recognizes(self, engine: str, request: InspectRequest) -> bool:
        """Whether a file without a manifest is TensorRT's."""
        return TENSORRT.recognizes(engine, request)

    def reproduction(self, case: FaultCase) -> Reproduction:
        """Return the trtexec command that builds the engine."""
        return TENSORRT.reproduction(case)


class _ProcessRunner(Runner):
    """A runner that lives in the other process."""

    has_device_clock = True

    def __init__(self, process: TrtProcess, key: str, shapes: Any, inputs: Any, output_names: list[str]) -> None:
        super().__init__(shapes, inputs, output_names)
        self._process, self._key = process, key

    def _infer(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs: dict[str, np.ndarray] = self._process.ask("run", self._key, "__call__", arrays)
        return outputs

    def time(self, feeds: Mapping[str, np.ndarray], iterations: int = 50, warmup: int = 10) -> list[float]:
        """Return each call's milliseconds on the GPU."""
        times: list[float] = self._process.ask("run", self._key, "time", dict(feeds), iterations, warmup)
        return times

    def close(self) -> None:
        """Free the engine there."""
        with contextlib.suppress(RuntimeError):  # the process may have ended before
            self._process.ask("close", self._key)


class _Worker:
    """What the other interpreter does, by the name of the question."""

    def __init__(self) -> None:
        self._runners: dict[str, Runner] = {}
        self.version, self.check_build, self.check_run = TENSORRT.version, TENSORRT.check_build, TENSORRT.check_run
        self.build, self.inspect = TENSORRT.build, TENSORRT.inspect

    def load(self, engine: Path) -> tuple[str, Any, Any, list[str]]:
        """Return the runner's key, which no other process will give again, and what `Runner` is made from."""
        runner, key = TENSORRT.load(engine), uuid.uuid4().hex
        self._runners[key] = runner
        return key, runner.shapes, runner.inputs, runner.output_names

    def run(self, key: str, method: str, *arguments: Any) -> Any:
        """Return what a method of a runner returns.

        Raises: RuntimeError: if another process held it, which has ended.
        """
        if key not in self._runners:
            raise RuntimeError("the interpreter that held this engine has ended; load the engine again")
        return getattr(self._runners[key], method)(*arguments)

    def close(self, key: str) -> None:
        """Free a runner; one of a process that has ended is free."""
        if key in self._runners:
            self._runners.pop(key).close()


def serve(descriptor: int) -> None:
    """Answer the questions that come in until the other side closes."""
    pipe, worker = Connection(descriptor), _Worker()
    while True:
        try:
            question, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = (False, getattr(worker, question)(*arguments))
        except Exception as error:  # raised on the other side
            error.__traceback__ = error.__cause__ = error.__context__ = None
            answer = (True, error)
        pipe.send(answer)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the asking side, and then the pipe
    serve(int(sys.argv[1]))
