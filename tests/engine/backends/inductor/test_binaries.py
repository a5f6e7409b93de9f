"""Compiled kernels kept beside an engine are taken from there, and nothing is compiled again."""

import io
import os
import zipfile

import pytest

triton = pytest.importorskip("triton", reason="the kernels need the package triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton interprets in this process, and compiles nothing", allow_module_level=True)

from triton import knobs  # noqa: E402

from engine.backends.inductor.binaries import read_binaries, recorded, served, write_binaries  # noqa: E402
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
