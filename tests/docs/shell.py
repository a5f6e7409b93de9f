"""A bash whose `python` and `int8kit` are forks of one process that has imported torch, transformers and our rooms.

A page has a dozen commands, and most of a command's time is importing these; the words, the folder and the three
streams are those of a process of its own. `python -m tests.docs.shell SOCKET` is the server.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.docs.pages import ROOT

PRELOADED = ("torch", "transformers", "datasets", "calib.command", "eval.command", "eval.parity.checked_export",
             "eval.sweep.run", "training.command", "int8kit.pipeline")  # fmt: skip
CLIENT = """#!{python} -ES
import json, os, socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect({path!r})
words = {words!r} + sys.argv[1:]
socket.send_fds(line, [json.dumps([words, os.getcwd(), dict(os.environ)]).encode()], [0, 1, 2])
line.shutdown(socket.SHUT_WR)
sys.exit(int(line.recv(16) or b"1"))
"""
TIMEOUT_S = 900  # of one block


@contextmanager
def warm_shell(folder: Path) -> Iterator[Shell]:
    """Yield a shell whose server lives as long as the block."""
    path = folder / "server"
    names = folder / "bin"
    names.mkdir()
    for name, words in (("python", []), ("int8kit", ["-m", "int8kit"])):
        (names / name).write_text(CLIENT.format(python=sys.executable, path=str(path), words=words))
        (names / name).chmod(0o755)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-W", "ignore", "-m", "tests.docs.shell", str(path)]
    server = subprocess.Popen(words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL)
    try:
        while not path.exists():
            assert server.poll() is None, "the server of the documentation's commands did not start"
            time.sleep(0.1)
        yield Shell(names, environment)
    finally:
        server.kill()
        server.wait()


class Shell:
    """Runs blocks of bash or Python."""

    def __init__(self, names: Path, environment: dict[str, str]) -> None:
        self.environment = environment | {"PATH": f"{names}{os.pathsep}{environment['PATH']}"}

    def run(self, words: list[str], cwd: Path) -> tuple[int, str]:
        """Return exit code and output of a command."""
        done = subprocess.run(words, cwd=cwd, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_S)  # fmt: skip
        return done.returncode, done.stdout

    def bash(self, text: str, cwd: Path) -> tuple[int, str]:
        """Return exit code and output of a block, which ends at its first command that fails."""
        return self.run(["bash", "-eu", "-o", "pipefail", "-c", text], cwd)

    def python(self, text: str, cwd: Path) -> tuple[int, str]:
        """Return exit code and output of a block of Python."""
        return self.run(["python", "-c", text], cwd)


def _serve(path: str) -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen()
    os.rename(f"{path}.new", path)  # seen once it listens
    while True:
        line, _ = listener.accept()
        message, streams, _, _ = socket.recv_fds(line, 1 << 20, 3)
        while part := line.recv(1 << 20):
            message += part
        child = os.fork()
        if child == 0:
            listener.close()
            _become(*json.loads(message), streams)
        for stream in streams:
            os.close(stream)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(OSError):  # the client was killed
            line.sendall(str(code if code >= 0 else 128 - code).encode())
        line.close()


def _become(words: list[str], cwd: str, environment: dict[str, str], streams: list[int]) -> None:
    """Run `python WORDS` in this process, then end it."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    code: object = 1
    try:
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            sys.path.insert(0, "")
            exec(compile(words[1], "<block>", "exec"), {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    _serve(sys.argv[1])
