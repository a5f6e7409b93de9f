"""The compiled code of our kernels, kept in an engine: torch's compiler keeps its own, and knows nothing of ours.

Without it the first load on a machine compiles every kernel again, and so do later processes: once torch's compiler has
run, Triton's cache is another folder than before.
"""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch._inductor.runtime import compile_tasks
from triton import knobs
from triton.backends.nvidia.compiler import get_ptxas_version
from triton.runtime.cache import FileCacheManager
from triton.runtime.jit import JITCallable

import kernels.attention_kernel
import kernels.hopper_kernel
import kernels.launches
import kernels.linear_kernel
import kernels.numerics
import kernels.rows_kernel
from kernels.device import INTERPRETED

FOLDER = "kernels/"  # in an engine's file: kernels/KEY/NAME
SUFFIXES = (".json", ".cubin", ".so")  # of what a launch reads: description, code, launcher; not the texts before them
HELPERS = (kernels.launches, kernels.numerics)
# Those with kernels, after the two whose functions they call (HELPERS), each after what it calls itself.
MODULES = (kernels.attention_kernel, kernels.linear_kernel, kernels.hopper_kernel, kernels.rows_kernel)
Binaries = dict[str, dict[str, bytes]]  # Triton's key → file name → content
_SETTING = threading.RLock()  # Triton's cache is one setting of the process


def settle_keys() -> None:
    """Let Triton's keys of our kernels be those of any process, whatever this one did before.

    Two parts of a key are asked for once in a process, and what they say depends on when. The assembler's version:
    torch's compiler points Triton at its own assembler when it first compiles a kernel. And the constants that a
    function reads: those of a function that it calls are among them only if that one was asked for its own before
    (triton-lang/triton#10494, merged after Triton 3.7). So a kernel that was compiled while tiles were timed would be
    kept by a key that a process which only loads never asks for.
    """
    for each in ("_set_triton_ptxas_path", "_set_triton_libdevice_path"):  # the latter is newer than torch 2.11
        getattr(compile_tasks, each, lambda: None)()
    get_ptxas_version.cache_clear()
    for module in () if INTERPRETED else (*HELPERS, *MODULES):
        for each in vars(module).values():  # a module defines what is called before what calls it
            if isinstance(each, JITCallable) and each.__module__ == module.__name__:
                with each._hash_lock:
                    each.hash, each.used_global_vals = None, {}
                    each.cache_key  # noqa: B018 (asking makes it)


@contextmanager
def recorded() -> Iterator[Binaries]:
    """Give what our kernels that are launched within run: filled when the block ends.

    What this process has in memory is set aside meanwhile, so that each kernel asks Triton's cache, and is put back.
    """
    paths: dict[str, dict[str, str]] = {}
    before = knobs.cache.manager_class or FileCacheManager

    class Recording(before):  # type: ignore[misc, valid-type]
        def get_file(self, filename: str) -> str | None:
            return self._keep(filename, super().get_file(filename))

        def put(self, data: Any, filename: str, binary: bool = True) -> str:
            return self._keep(filename, super().put(data, filename, binary))

        def get_group(self, filename: str) -> dict[str, str] | None:
            found: dict[str, str] | None = super().get_group(filename)
            for name, path in (found or {}).items():
                self._keep(name, path)
            return found

        def _keep(self, filename: str, path: Any) -> Any:
            if path is not None and filename.endswith(SUFFIXES) and not filename.startswith("__grp__"):
                paths.setdefault(self.key, {})[filename] = path
            return path

    found: Binaries = {}
    settle_keys()
    with _managed(Recording), _without_memory():
        yield found
    names = {each.__name__ for each in launched_kernels()}
    for key, files in paths.items():
        if any(name.endswith(".so") or Path(name).stem in names for name in files):  # not those of torch's compiler
            found[key] = {name: Path(path).read_bytes() for name, path in files.items()}


@contextmanager
def served(binaries: Binaries) -> Iterator[None]:
    """Let Triton take from `binaries` what its cache does not hold; it writes it there."""
    before = knobs.cache.manager_class or FileCacheManager

    class Serving(before):  # type: ignore[misc, valid-type]
        def get_file(self, filename: str) -> str | None:
            path: str | None = super().get_file(filename)
            own = binaries.get(self.key, {})
            return super().put(own[filename], filename) if path is None and filename in own else path

        def get_group(self, filename: str) -> dict[str, str] | None:
            found: dict[str, str] | None = super().get_group(filename)
            own = binaries.get(self.key, {})
            if (found and own.keys() <= found.keys()) or filename not in own:
                return found
            group = {name: super(Serving, self).put(content, name) for name, content in own.items()}
            super().put_group(filename, group)
            return group

    settle_keys()
    with _managed(Serving):
        yield


def launched_kernels() -> list[Any]:
    """Return our kernels, as Triton holds them; in its interpreter those alone that it does not interpret."""
    return [each for module in MODULES for each in vars(module).values() if hasattr(each, "device_caches")]


@contextmanager
def _managed(manager: type[FileCacheManager]) -> Iterator[None]:
    with _SETTING:
        before = vars(knobs.cache).get("manager_class")  # set in this process; else the environment's
        knobs.cache.manager_class = manager
        try:
            yield
        finally:
            del knobs.cache.manager_class
            if before is not None:
                knobs.cache.manager_class = before


@contextmanager
def _without_memory() -> Iterator[None]:
    found = launched_kernels()
    before = [dict(each.device_caches) for each in found]
    for each in found:
        each.device_caches.clear()
    try:
        yield
    finally:
        for each, caches in zip(found, before, strict=True):
            each.device_caches.update(caches)  # what graphs were captured from stays as loaded as it was


def write_binaries(archive: zipfile.ZipFile, binaries: Binaries) -> None:
    """Put them into an engine's file."""
    for key, files in binaries.items():
        for name, content in files.items():
            archive.writestr(f"{FOLDER}{key}/{name}", content)


def read_binaries(archive: zipfile.ZipFile) -> Binaries:
    """Return what an engine's file holds; nothing in one that was built before there were any."""
    found: Binaries = {}
    for member in archive.namelist():
        if member.startswith(FOLDER) and member.endswith(SUFFIXES) and member.count("/") == 2:
            _, key, name = member.split("/")
            found.setdefault(key, {})[name] = archive.read(member)
    return found
