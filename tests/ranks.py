"""Runs a function on several processes of this machine over gloo, as torchrun would; never leaves one behind."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from tests.forks import fork_context


def run_ranks(function: Callable[..., None], *args: Any, world_size: int = 2, seconds: float = 150) -> None:
    """Call function(rank, *args) on `world_size` processes.

    Raises: AssertionError: one of them failed, or did not end in `seconds` (it prints its stack before it goes).
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = fork_context()
    ranks = [
        context.Process(target=_run, args=(rank, world_size, port, seconds, function, args), daemon=True)
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    try:
        for process in ranks:
            process.join(seconds + 30)
        assert [process.exitcode for process in ranks] == [0] * world_size
    finally:
        for process in ranks:
            process.kill()


def _run(rank: int, world_size: int, port: int, seconds: float, function: Callable[..., None], args: tuple) -> None:
    faulthandler.dump_traceback_later(seconds, exit=True)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
    }
    torch.set_num_threads(1)
    function(rank, *args)
    if dist.is_initialized():
        dist.barrier()  # no one leaves while another still computes
    sys.stdout.flush()
    os._exit(0)  # gloo's threads have kept the interpreter from ending by itself
