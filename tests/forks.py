"""Fresh processes that have torch and transformers imported already: forks of one server, started once a test process.

A spawned process imports them anew, longer than most tests take; a fork of the tests' own process would inherit its
threads and models. The server has imported and done nothing.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What the children run; with the packages that these import.
PRELOADED = ["tests.conftest", "tests.training.test_qat_ranks", "tests.calib.test_collect", "tests.eval.sweep.sweeps"]


def fork_context() -> ForkServerContext:
    """Return the context of the running server; its children see the environment as it was when the server began."""
    context = multiprocessing.get_context("forkserver")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)  # of the server: it takes no sys.path
    try:
        context.set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context
