"""The TensorRT backends without a GPU: built engines, their manifests, options and errors; and the graph passes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engine import gpu as gpu_module
from engine.backend import BuildOptions, get_backend
from engine.backends.tensorrt import builder as trt_builder
from engine.backends.tensorrt.options import TensorRTOptions
from engine.manifest import manifest_path, read_manifest
from engine.passes.lowering import SUPPORTED_OPS
from engine.passes.qdq import prepare_for_target
from engine.shapes import parse_shapes
from tests.engine.graphs import count, linear_model, make_model, run_plain, samples

ROOT = Path(__file__).parents[3]


def command(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "build_engine.py", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def options(*shapes: str, **tensorrt) -> BuildOptions:
    return BuildOptions(parse_shapes(shapes or ["x:1x16:4x16:8x16"]), own=TensorRTOptions(**tensorrt))


def test_a_half_file_is_typed_throughout_and_no_cast_stands_before_a_product(source):
    model = onnx.load(source)
    producers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type == "MatMul":
            assert [producers[name].op_type for name in node.input] == ["DequantizeLinear"] * 2
    types = {tensor.data_type for tensor in model.graph.initializer}
    assert types == {TensorProto.INT8, TensorProto.FLOAT16}
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {1}
    plain = prepare_for_target(linear_model(num_siblings=2), "openvino")
    for new, old in zip(run_plain(model, samples()), run_plain(plain, samples()), strict=True):
        np.testing.assert_allclose(new, old, atol=0.1)  # sums of 16 products of size 6, rounded to 11 bits


def test_squares_stay_fp32_and_a_lowest_mask_becomes_what_fp16_holds():
    nodes = [
        helper.make_node("Pow", ["x", "two"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axes"], ["mean"], keepdims=1),
        helper.make_node("Sqrt", ["mean"], ["root"]),
        helper.make_node("Div", ["x", "root"], ["normal"]),
        helper.make_node("Where", ["seen", "zero", "lowest"], ["mask"]),
        helper.make_node("Add", ["normal", "mask"], ["y"]),
    ]
    constants = {"two": np.float32(2), "axes": np.array([-1]), "seen": np.arange(16) % 2 == 0, "zero": np.float32(0),
                 "lowest": np.float32(np.finfo(np.float32).min)}  # fmt: skip
    inputs, outputs = [("x", TensorProto.FLOAT, ["batch", 16])], [("y", TensorProto.FLOAT, ["batch", 16])]
    half = prepare_for_target(make_model(nodes, inputs, outputs, constants), "tensorrt")
    x = np.full((2, 16), 1000, np.float32)  # its square is beyond fp16's range
    (y,) = run_plain(half, {"x": x})
    expected = np.where(np.arange(16) % 2 == 0, 1, -9999) * np.ones((2, 1))
    np.testing.assert_allclose(y, expected, atol=1)  # fp16 holds -10000 and no -9999; ONNX Runtime may skip that
    constants["lowest"] = np.full(16, 1e5, np.float32)
    with pytest.raises(ValueError, match=r"weight lowest holds 100000, beyond fp16's 65504; export with --dtype bf16"):
        prepare_for_target(make_model(nodes, inputs, outputs, constants), "tensorrt")


def test_a_tensorrt8_file_is_opset_17_with_float_weights_that_round_to_the_same_integers():
    model = linear_model(num_siblings=2, as_gemm=True)
    prepared = prepare_for_target(model, "tensorrt8")
    assert [each.version for each in prepared.opset_import] == [17]
    assert {node.op_type for node in prepared.graph.node} <= SUPPORTED_OPS
    assert not [t.name for t in prepared.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) > 1]
    assert count(prepared, "QuantizeLinear") == 3
    for new, old in zip(run_plain(prepared, samples()), run_plain(model, samples()), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-5)  # the order of fp32 sums


def test_what_tensorrt_8_lacks_is_expanded_or_named():
    def graph(op_type: str, *names: str, **attributes):
        node = helper.make_node(op_type, list(names), ["y"], **attributes)
        shape = [("x", TensorProto.FLOAT, ["batch", 8])], [("y", TensorProto.FLOAT, ["batch", 8])]
        numbers = {"g": np.linspace(0.5, 1.5, 8, dtype=np.float32), "b": np.linspace(-1, 1, 8, dtype=np.float32)}
        return make_model([node], *shape, numbers)

    x = {"x": np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)}
    norm = graph("LayerNormalization", "x", "g", "b", epsilon=1e-5)
    for model in (norm, graph("Gelu", "x"), graph("Gelu", "x", approximate="tanh"), graph("Reciprocal", "x")):
        lowered = prepare_for_target(model, "tensorrt8")
        np.testing.assert_allclose(run_plain(lowered, x)[0], run_plain(model, x)[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="TensorRT 8 takes no Mish; export with --target tensorrt"):
        prepare_for_target(graph("Mish", "x"), "tensorrt8")


def test_an_engine_is_built_on_the_cpu_and_says_what_it_is(rtx, source, tmp_path):
    out = tmp_path / "engine"
    manifest = rtx.build(source, out, options(workspace_mib=64, compute_capabilities=("8.9",))).manifest
    assert read_manifest(out) == manifest and out.stat().st_size == manifest.size_bytes
    assert (manifest.precision, manifest.device.endswith("no GPU")) == ("fp16", True)
    assert manifest.products.int8 == ("lin0", "lin1") and not manifest.are_products_measured
    assert "--minShapes=x:1x16 --optShapes=x:4x16 --maxShapes=x:8x16" in (manifest.trtexec or "")
    if gpu_module.find_gpu() is None:
        with pytest.raises(RuntimeError, match=r"engines run, and are even deserialized, only on a GPU, and none is"):
            rtx.load(out)


def test_rebuild_makes_the_same_engine_from_the_manifest_alone(rtx, source, tmp_path):
    rtx.build(source, tmp_path / "engine", options("x:4x16", builder_level=2))
    done = command("--rebuild", manifest_path(tmp_path / "engine"), "--out", tmp_path / "again", "--json")
    assert done.returncode == 0, done.stderr
    first, again = read_manifest(tmp_path / "engine"), read_manifest(tmp_path / "again")
    assert (again.shapes, again.options, again.onnx_sha256) == (first.shapes, first.options, first.onnx_sha256)
    source.write_bytes(source.read_bytes() + b"\0")
    done = command("--rebuild", tmp_path / "engine", "--out", tmp_path / "third")
    assert done.returncode == 1 and "is not the file that" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "input x has free axes, and TensorRT needs their range; give --shapes x:1x16:8x16:32x16"),
        (["--shapes", "x:4x16", "--precision", "fp32"], 2, "the file is strongly typed in fp16"),
        (["--shapes", "x:4x16", "--timing-cache", "c"], 2, "--timing-cache is only for --backend tensorrt;"),
        (["--shapes", "x:4x16", "--builder-level", "9"], 2, "--builder-level 9 must be 0 to 5"),
        (["--shapes", "x:4x16", "--compute-capabilities", "9.0"], 1, "this version has no ComputeCapability SM90"),
        (["--shapes", "x:4x16", "--tactic-sources", "CUBLAS_LT"], 1, "this version has no TacticSource CUBLAS_LT"),
    ],
)
def test_wrong_usage_ends_in_one_line(rtx, source, tmp_path, arguments, code, message):
    done = command("--onnx", source, "--backend", "tensorrt_rtx", "--out", tmp_path / "engine", *arguments)
    assert done.returncode == code and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx"]


def test_flags_of_tensorrt_are_refused_by_the_others(source, tmp_path):
    done = command("--onnx", source, "--backend", "openvino", "--out", tmp_path / "e", "--refit")
    assert done.returncode == 2 and "--refit is only for --backend tensorrt and tensorrt_rtx" in done.stderr


def test_what_the_parser_refuses_is_told_in_its_words(rtx, tmp_path):
    path = tmp_path / "m.onnx"
    node = helper.make_node("Mystery", ["x"], ["y"], domain="nobody.knows")
    shapes = [("x", TensorProto.FLOAT, [2])], [("y", TensorProto.FLOAT, [2])]
    infos = [[helper.make_tensor_value_info(*value) for value in values] for values in shapes]
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("nobody.knows", 1)]
    onnx.save(helper.make_model(helper.make_graph([node], "g", *infos), opset_imports=imports, ir_version=10), path)
    with pytest.raises(RuntimeError, match=r"tensorrt_rtx 1\..*its parser refused the file: .*Mystery"):
        rtx.build(path, tmp_path / "engine", BuildOptions())
    with pytest.raises(RuntimeError, match=r"Mystery.*It was asked for --refit; try without"):
        rtx.build(path, tmp_path / "engine", BuildOptions(own=TensorRTOptions(refit=True)))
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("content", [b"", b"not an onnx file", None], ids=["empty", "text", "truncated"])
def test_a_broken_file_is_refused_before_tensorrt_sees_it(tmp_path, source, content):
    source.write_bytes(source.read_bytes()[:300] if content is None else content)
    with pytest.raises(ValueError, match=r"is not a whole ONNX file"):
        get_backend("tensorrt_rtx").build(source, tmp_path / "engine", options())


def test_a_tensorrt_that_cannot_be_loaded_says_what_is_missing(monkeypatch):
    def fail(error):
        def load(name):
            raise error

        return load

    backend = get_backend("tensorrt")
    monkeypatch.setattr(trt_builder.importlib, "import_module", fail(ModuleNotFoundError("no", name="tensorrt")))
    assert "tensorrt is not installed; run 'pip install tensorrt" in (backend.check_build() or "")
    monkeypatch.setattr(trt_builder.importlib, "import_module", fail(ImportError("libcudart.so.12: cannot open")))
    reason = backend.check_run() or ""
    assert "cannot be loaded: libcudart.so.12: cannot open. Install that library" in reason
