"""Compiled kernels kept beside an engine are taken from there, and nothing is compiled again."""

import io
import os
import zipfile
from functools import partial

import pytest

triton = pytest.importorskip("triton", reason="the kernels need the package triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton interprets in this process, and compiles nothing", allow_module_level=True)

from torch._inductor.runtime import compile_tasks  # noqa: E402
from triton import knobs  # noqa: E402
from triton.backends.nvidia.compiler import get_ptxas_version  # noqa: E402
from triton.runtime.jit import JITCallable  # noqa: E402

from engine.backends.inductor.binaries import (  # noqa: E402
    HELPERS,
    MODULES,
    launched_kernels,
    read_binaries,
    recorded,
    served,
    settle_keys,
    write_binaries,
)
from tests.kernels.test_compile import compile_for, quantize_kernel  # noqa: E402

TYPES = {"x": "*fp16", "factor": "*fp32", "out": "*i8", "scale": "fp32", "inverse": "fp32"}
CONSTANTS = {"HAS_FACTOR": True, "ROWS": 4, "WIDTH": 1024}


def compiled(folder):
    """Return a kernel that Triton compiled, or found in a folder."""
    with knobs.cache.scope():
        knobs.cache.dir = str(folder)
        return compile_for(90, quantize_kernel, TYPES, CONSTANTS)


@pytest.fixture
def kept(tmp_path):
    with recorded() as binaries:
        first = compiled(tmp_path / "first")
    return first, binaries


def test_another_cache_gets_it_and_compiles_nothing(kept, tmp_path, monkeypatch):
    first, binaries = kept
    (files,) = binaries.values()
    assert sorted(name.rpartition(".")[2] for name in files) == ["cubin", "json"]
    monkeypatch.setattr(triton.compiler.ASTSource, "make_ir", lambda *_: pytest.fail("compiled again"))
    with served(binaries):
        assert compiled(tmp_path / "second").asm["cubin"] == first.asm["cubin"]
    assert compiled(tmp_path / "second").asm["cubin"] == first.asm["cubin"]  # it stays in that cache


def test_what_a_cache_has_already_is_recorded_too(kept, tmp_path):
    _, binaries = kept
    with recorded() as again:
        compiled(tmp_path / "first")
    assert again == binaries and "manager_class" not in vars(knobs.cache)


def test_kernels_are_kept_by_the_assembler_that_torchs_compiler_sets(tmp_path, monkeypatch):
    compiled(tmp_path / "before")  # Triton asks its own assembler's version, and remembers it
    other = tmp_path / "ptxas"
    real = knobs.nvidia.ptxas.path
    other.write_text(f'#!/bin/sh\n"{real}" "$@" || exit 1\n[ "$1" != --version ] || echo another build\n')
    other.chmod(0o755)
    setting = partial(monkeypatch.setenv, "TRITON_PTXAS_PATH", str(other))
    monkeypatch.setattr(compile_tasks, "_set_triton_ptxas_path", setting)
    with recorded() as binaries:
        compiled(tmp_path / "first")
    (key,) = binaries
    setting()
    get_ptxas_version.cache_clear()  # as in a process that loads, where torch's compiler ran first
    compiled(tmp_path / "later")
    assert [path.name for path in (tmp_path / "later").iterdir()] == [key]
    monkeypatch.delenv("TRITON_PTXAS_PATH")
    get_ptxas_version.cache_clear()
    compiled(tmp_path / "other")  # in a process that ran kernels before it loads
    monkeypatch.setattr(triton.compiler.ASTSource, "make_ir", lambda *_: pytest.fail("compiled again"))
    with served(binaries):
        compiled(tmp_path / "loaded")
    monkeypatch.undo()
    get_ptxas_version.cache_clear()


@pytest.mark.parametrize("first", range(len(launched_kernels())))
def test_keys_are_those_of_any_process_whichever_kernel_was_compiled_first(first):
    settle_keys()
    wanted = {each.__name__: each.cache_key for each in launched_kernels()}
    for module in (*HELPERS, *MODULES):
        for each in vars(module).values():
            if isinstance(each, JITCallable):  # as in a new process
                each.hash, each.used_global_vals = None, {}
    launched_kernels()[first].cache_key  # noqa: B018 (Triton makes it, and those of what it calls)
    settle_keys()
    assert {each.__name__: each.cache_key for each in launched_kernels()} == wanted


def test_nothing_foreign_is_served(kept, tmp_path):
    _, binaries = kept
    with served({"another": next(iter(binaries.values()))}):
        assert "ptx" in compiled(tmp_path / "third").asm  # compiled here, with its texts


def test_an_engines_file_holds_them(kept):
    _, binaries = kept
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("plans.json", "[]")
        write_binaries(archive, binaries)
    with zipfile.ZipFile(content) as archive:
        assert read_binaries(archive) == binaries
