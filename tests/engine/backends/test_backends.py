"""Engines on both backends: built, stamped, loaded, refused; never anything half-written in place of something good."""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine import backend as backend_module
from engine import manifest as manifest_module
from engine import source as source_module
from engine.backend import BuildOptions, get_backend
from engine.hardware import cpu_flags, saturates
from engine.manifest import Products, manifest_path, read_manifest
from engine.operands import Operand
from engine.passes.qdq import prepare_for_target
from engine.products import Product, find_products, sort_products
from engine.shapes import parse_shapes
from tests.engine.graphs import WIDTH, linear_model, run_plain, samples

ROOT = Path(__file__).parents[3]
NAMES = ["onnxruntime", "openvino"]  # those that run on any CPU; TensorRT: test_trt.py


@pytest.fixture(params=NAMES)
def backend(request):
    chosen = get_backend(request.param)
    if reason := chosen.check_run():
        pytest.skip(reason)
    return chosen


def save_model(folder: Path, target: str, **kind) -> Path:
    path = folder / f"{target}.onnx"
    onnx.save(prepare_for_target(linear_model(**kind), target, {"int8kit.recipe_digest": "cafe"}), path)
    return path


def build(folder: Path, backend, *shapes: str, force: bool = False, **kind) -> Path:
    out = folder / "engine"
    source = save_model(folder, backend.name, **kind)
    backend.build(source, out, BuildOptions(parse_shapes(shapes), threads=1, force=force))
    return out


def int8_names(backend, *names: str) -> tuple[str, ...]:
    """Return the products that run in INT8: none in OpenVINO where its INT8 kernels saturate (test_saturation.py)."""
    return () if backend.name == "openvino" and saturates(cpu_flags()) else names


def test_an_engine_computes_what_its_file_does_and_runs_every_linear_in_int8(tmp_path, backend):
    engine = build(tmp_path, backend, num_siblings=3, smooth=True)
    expected = run_plain(tmp_path / f"{backend.name}.onnx", samples(64))
    with backend.load(engine) as runner:
        assert (runner.input_names, runner.output_names) == (["x"], ["y0", "y1", "y2"])
        outputs = runner(samples(64))
    for index, y in enumerate(expected):
        close = np.isclose(outputs[f"y{index}"], y, atol=1e-4)
        assert close.mean() > 0.99, "more than rounding flips differ"
    assert read_manifest(engine).products.int8 == int8_names(backend, "lin0", "lin1", "lin2")


def test_a_gemm_and_a_conv1d_weight_run_in_int8_too(tmp_path, backend):
    for index, kind in enumerate(({"as_gemm": True}, {"transpose": False})):
        folder = tmp_path / str(index)
        folder.mkdir()
        assert read_manifest(build(folder, backend, **kind)).products.int8 == int8_names(backend, "lin0")


def test_a_float_file_builds_and_counts_no_int8(tmp_path, backend):
    path, out = tmp_path / "float.onnx", tmp_path / "engine"
    onnx.save(linear_model(quantized=False), path)
    engine = backend.build(path, out, BuildOptions(threads=1))
    assert (engine.manifest.products.int8, engine.manifest.products.float) == ((), ("lin0",))
    with backend.load(out) as runner:
        np.testing.assert_allclose(runner(samples())["y0"], run_plain(path, samples())[0], atol=1e-4)


def test_the_manifest_survives_its_file(tmp_path, backend):
    engine = build(tmp_path, backend, "x:1x16:4x16:8x16")
    manifest = read_manifest(engine)
    again = tmp_path / "again"
    again.write_bytes(b"")
    manifest_module.write_manifest(manifest, manifest_path(again))
    assert read_manifest(again) == manifest
    assert (manifest.recipe_digest, manifest.target, manifest.threads) == ("cafe", backend.name, 1)
    assert manifest.cpu_flags == cpu_flags() and manifest.versions[backend.name]
    assert manifest.size_bytes == engine.stat().st_size
    assert str(manifest.shapes["x"]) == "1x16:4x16:8x16"


def test_a_short_batch_is_padded_to_the_static_one_and_cut(tmp_path, backend):
    engine = build(tmp_path, backend, "x:8x16")
    with backend.load(engine) as runner:
        whole = runner(samples(8))["y0"]
        part = runner({"x": samples(8)["x"][:3]})["y0"]
        assert (runner.static_batch, part.shape) == (8, (3, WIDTH))
        np.testing.assert_array_equal(part, whole[:3])
        with pytest.raises(ValueError, match=r"input x has shape 9x16, the engine takes 8x16 .*other --shapes"):
            runner(samples(9))


def test_time_returns_one_latency_for_each_call(tmp_path, backend):
    with backend.load(build(tmp_path, backend)) as runner:
        latency_ms = runner.time(samples(), iterations=7, warmup=2)
    assert len(latency_ms) == 7 and min(latency_ms) > 0


def test_wrong_feeds_are_named(tmp_path, backend):
    with backend.load(build(tmp_path, backend, "x:1x16:4x16:8x16")) as runner:
        with pytest.raises(ValueError, match=r"input x is missing; xx is no input \(did you mean x\?\)"):
            runner({"xx": samples()["x"]})
        with pytest.raises(ValueError, match=r"input x has type int64, the engine takes float32"):
            runner({"x": np.ones((2, WIDTH), np.int64)})
        with pytest.raises(ValueError, match=r"input x has shape 9x16"):
            runner(samples(9))


def rewrite(engine: Path, **changes) -> None:
    path = manifest_path(engine)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_engine_of_another_cpu_or_version_is_refused_with_what_to_do(tmp_path, backend):
    engine = build(tmp_path, backend)
    versions = {**read_manifest(engine).versions, backend.name: "0.1"}
    rewrite(engine, cpu_flags=["amx_tile", *cpu_flags()], versions=versions)
    with pytest.raises(RuntimeError, match=r"was built by .* 0\.1, here is .*this CPU lacks amx_tile\. Build it here"):
        backend.load(engine)


def test_a_truncated_or_lonely_engine_is_refused(tmp_path, backend):
    engine = build(tmp_path, backend)
    engine.write_bytes(engine.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"is not the file that engine.json describes"):
        backend.load(engine)
    manifest_path(engine).write_text("{")
    with pytest.raises(ValueError, match=r"is not an engine manifest"):
        backend.load(engine)
    manifest_path(engine).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no engine.json beside it"):
        backend.load(engine)
    with pytest.raises(FileNotFoundError, match=r"no engine .*nothing; build it with"):
        backend.load(tmp_path / "nothing")


@pytest.mark.parametrize("content", [b"", b"not an onnx file at all", None], ids=["empty", "text", "truncated"])
def test_a_file_that_is_no_whole_onnx_is_refused(tmp_path, backend, content):
    path = tmp_path / "bad.onnx"
    whole = linear_model().SerializeToString()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ValueError, match=r"bad.onnx \(\d+ bytes\) is not a whole ONNX file"):
        backend.build(path, tmp_path / "engine", BuildOptions())
    with pytest.raises(FileNotFoundError, match=r"no ONNX file .*; export one"):
        backend.build(tmp_path / "no.onnx", tmp_path / "engine", BuildOptions())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bad.onnx"]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ("y:1x16", "names 'y', which is no input of the model; its inputs are x"),
        ("x:1x2x3", "has 3 axes, the model's input has 2"),
        ("x:4x8", "axis 1 of the model's input is fixed at 16"),
        ("x:1x8:4x16:8x32", "axis 1 of the model's input is fixed at 16"),  # no range holds over a fixed axis
        ("x:1x16:4x16:8x32", "axis 1 of the model's input is fixed at 16"),
    ],
)
def test_shapes_that_do_not_fit_the_model_are_refused(tmp_path, backend, shapes, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, backend, shapes)
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize("text", ["x", "x:axb", "x:0x1", "x:1:2", ":1x2", "x:1x2:1:2x2"])
def test_shapes_of_another_form_are_refused(text):
    with pytest.raises(ValueError, match=r"is not name:min:opt:max"):
        parse_shapes([text])
    with pytest.raises(ValueError, match=r"min <= opt <= max must hold"):
        parse_shapes(["x:4x4:2x4:8x4"])


def test_an_existing_engine_is_kept_without_force_and_replaced_with_it(tmp_path, backend):
    engine = build(tmp_path, backend)
    first = engine.read_bytes()
    with pytest.raises(FileExistsError, match=r"exists; choose another --out, or replace it with --force"):
        build(tmp_path, backend)
    build(tmp_path, backend, num_siblings=2, force=True)
    assert engine.read_bytes() != first
    with backend.load(engine) as runner:
        assert runner.output_names == ["y0", "y1"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full", "stop"]
)
@pytest.mark.parametrize("is_first", [True, False], ids=["new", "over an old one"])
def test_a_full_disk_or_an_interrupt_leaves_what_was_there(tmp_path, backend, monkeypatch, error, is_first):
    if not is_first:
        build(tmp_path, backend)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir() if each.suffix != ".onnx"}

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(source_module, "write_manifest", fail)
    with pytest.raises(type(error)):
        build(tmp_path, backend, num_siblings=2, force=True)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir() if each.suffix != ".onnx"} == before


def test_an_unknown_or_missing_backend_says_what_to_do(monkeypatch):
    with pytest.raises(
        ValueError, match=r"unknown backend 'openvin'; the backends are inductor, onnxruntime, openvino, "
    ):
        get_backend("openvin")
    for name in NAMES:
        monkeypatch.setattr("engine.backend.importlib.util.find_spec", lambda _: None)
        reason = get_backend(name).check_build()
        assert reason == f"{name} is not installed; run 'pip install -r engine/requirements.txt'"
        with pytest.raises(RuntimeError, match=f"cannot build for {name}: {name} is not installed"):
            backend_module.require(reason, f"build for {name}")


def test_a_runtime_from_a_package_of_another_name_builds_and_loads(tmp_path, backend, monkeypatch):
    """onnxruntime-gpu provides the module onnxruntime, and there is no package onnxruntime then."""
    other, real = f"{backend.name}-gpu", importlib.metadata.version

    def version(name: str) -> str:
        if name == backend.name:
            raise importlib.metadata.PackageNotFoundError(name)
        return "9.9.9" if name == other else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {backend.name: [other]})
    engine = build(tmp_path, backend)
    assert backend.version() == read_manifest(engine).versions[backend.name] == "9.9.9"
    with backend.load(engine) as runner:
        assert runner(samples())["y0"].shape == (5, WIDTH)
    monkeypatch.setattr(importlib.metadata, "packages_distributions", dict)  # a module of no package at all
    module = importlib.import_module(backend.name)
    assert backend.version() == module.__version__


def test_products_are_named_by_their_weights():
    products = find_products(prepare_for_target(linear_model(num_siblings=2), "openvino"))
    assert [(each.name, each.is_linear) for each in products] == [("lin0", True), ("lin1", True)]


def product(name: str, dtype: ir.DataType, *readers: str) -> Product:
    """Return a product of two activations; its first factor is of a type, its second INT8."""
    sides = tuple(Operand(ir.val(f"{name}_{i}"), each) for i, each in enumerate((dtype, ir.DataType.INT8)))
    node = ir.node("MatMul", [side.value for side in sides], name=name)
    return Product(name, node, sides, frozenset({name}), frozenset(readers))


def test_attention_inside_a_fused_operator_counts_only_where_both_factors_are_quantized():
    quantized, half = product("qk", ir.DataType.INT8, "scale"), product("pv", ir.DataType.FLOAT, "out")
    assert sort_products([quantized, half], set(), {"scale", "pv"}) == Products((), (), ("qk",), ("pv",))
    assert sort_products([quantized], {"scale"}).attention_float == ("qk",), "a reader's own precision says nothing"
    assert Products(("a",), ("head",), (), ("qk",)).summary() == (
        "1 of 2 linears and 0 of 1 attention products in INT8; float: head"
    )


def test_a_product_that_a_bias_gave_its_name_is_found_by_it_unless_the_engine_names_both():
    quantized = product("qk", ir.DataType.INT8, "bias")
    assert sort_products([quantized], {"bias"}, (), {"other"}).attention_int8 == ("qk",)
    assert sort_products([quantized], {"bias"}, (), {"qk"}).attention_float == ("qk",)
    assert sort_products([product("wide", ir.DataType.INT16)], {"wide"}).attention_float == ("wide",)


def test_engine_imports_neither_torch_nor_transformers_nor_anything_of_ours():
    script = """
import importlib, pathlib, sys
class Block:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "transformers", "quant", "calib", "eval"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
for path in sorted(pathlib.Path("engine").glob("*.py")):
    if path.stem != "__init__":
        importlib.import_module(f"engine.{path.stem}")
import onnxruntime, openvino, build_engine
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
