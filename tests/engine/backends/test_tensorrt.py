"""The TensorRT backends without a GPU: built engines, their manifests, options and errors; and the graph passes."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import build_engine
from engine.backend import BuildOptions, get_backend
from engine.backends.own_options import given_flags, own_from_json
from engine.backends.tensorrt import backend as trt_module
from engine.backends.tensorrt import builder as trt_builder
from engine.backends.tensorrt import gpu as gpu_module
from engine.backends.tensorrt import runner as trt_runner
from engine.backends.tensorrt.options import TensorRTOptions, trtexec_command
from engine.manifest import Manifest, manifest_path, read_manifest, sha256_of, write_manifest
from engine.passes.lowering import SUPPORTED_OPS
from engine.passes.qdq import prepare_for_target
from engine.products import Products
from engine.shapes import parse_shapes
from tests.engine.graphs import count, linear_model, make_model, run_plain, samples

ROOT = Path(__file__).parents[3]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(prepare_for_target(linear_model(num_siblings=2), "tensorrt"), path)
    return path


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


SOURCES = ("CUBLAS", "CUBLAS_LT", "CUDNN", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")  # of TensorRT 8.5 to 10


def test_the_trtexec_command_states_every_option():
    every = TensorRTOptions(64, 3, "t.cache", ("cublas_lt",), True, "ampere_plus", True)
    every.check("tensorrt")
    text = trtexec_command("tensorrt", "m.onnx", "e", parse_shapes(["x:2x3"]), ["fp16", "int8"], every, SOURCES)
    assert text == (
        "trtexec --onnx=m.onnx --saveEngine=e --fp16 --int8 --avgTiming=1 --minShapes=x:2x3 --optShapes=x:2x3 "
        "--maxShapes=x:2x3 --memPoolSize=workspace:64 --builderOptimizationLevel=3 --timingCacheFile=t.cache "
        "--tacticSources=+CUBLAS_LT,-CUBLAS,-CUDNN,-EDGE_MASK_CONVOLUTIONS,-JIT_CONVOLUTIONS --versionCompatible "
        "--hardwareCompatibilityLevel=ampere+ --refit --profilingVerbosity=detailed"
    )


def test_the_words_of_trtexec_are_its_own():
    def command(backend, shape="x:2", **kind):
        return trtexec_command(backend, "m.onnx", "e", parse_shapes([shape]), [], TensorRTOptions(**kind))

    same = command("tensorrt", hardware_compatibility="same_compute_capability")
    assert "--hardwareCompatibilityLevel=sameComputeCapability" in same
    rtx = command("tensorrt_rtx", compute_capabilities=("8.9", "12.0"))
    assert "--computeCapabilities=89,120" in rtx and "avgTiming" not in rtx
    named = trtexec_command("tensorrt", "m", "e", {"in:0": parse_shapes(["x:2"])["x"]}, [], TensorRTOptions())
    assert "--minShapes='in:0':2" in shlex.split(named)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--builder-level", "5"], "--builder-level and --rebuild: the manifest says what to build"),
        (["--refit", "--workspace-mib", "64"], "--workspace-mib, --refit and --rebuild"),
        (["--hardware-compatibility", "none"], "--hardware-compatibility and --rebuild"),
        (["--precision", "fp16"], "--precision and --rebuild"),
        (["--timing-cache", "t"], "--timing-cache is only for --backend tensorrt;"),
    ],
)
def test_nothing_beside_rebuild_is_dropped_silently(rtx, source, tmp_path, flags, message):
    rtx.build(source, tmp_path / "engine", options("x:4x16"))
    done = command("--rebuild", tmp_path / "engine", "--out", tmp_path / "again", *flags)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"builder_levl": 3}, r"builder_levl, which is no option here \(did you mean builder_level\?\)"),
        ({"workspace_mib": "64"}, "workspace_mib '64', which is no int"),
        ({"refit": 1, "sparsity": True}, "refit 1, which is no bool; sparsity, which is no option here"),
        ({"builder_level": 9}, "--builder-level 9 must be 0 to 5"),
    ],
)
def test_a_manifest_with_options_unknown_here_is_refused(written, message):
    with pytest.raises(ValueError, match=message):
        own_from_json(written, "tensorrt_rtx", "engine.json")
    with pytest.raises(ValueError, match=r"no option here|is only for|is no"):
        own_from_json(written, "onnxruntime", "engine.json")


def test_no_hardware_compatibility_is_none_at_all():
    assert TensorRTOptions(hardware_compatibility="none") == TensorRTOptions()
    assert given_flags(own_from_json({"hardware_compatibility": "none"}, "tensorrt", "engine.json")) == []


@pytest.mark.parametrize(
    ("level", "built_on", "message"),
    [
        ("none", "8.6", r"was built for a card \(compute capability 8\.6\), here is another"),  # written before 0.2
        (None, "9.0", r"was built for a card \(compute capability 9\.0\), here is another"),
        ("same_compute_capability", "8.6", r"was built for a card \(compute capability 8\.6\), here is another"),
        ("same_compute_capability", "9.0", None),
        ("ampere_plus", "8.6", None),
    ],
)
def test_an_engine_is_held_to_what_it_was_built_for(monkeypatch, tmp_path, level, built_on, message):
    out = tmp_path / "engine"
    out.write_bytes(b"plan")
    write_manifest(
        Manifest("tensorrt", {"tensorrt": "10.0"}, f"a card (compute capability {built_on})", (), {}, Products(),
                 sha256_of(out), "", 4, options={"hardware_compatibility": level}),
        manifest_path(out),
    )  # fmt: skip
    monkeypatch.setattr(trt_module, "load_module", lambda name: SimpleNamespace(__version__="10.0"))
    monkeypatch.setattr(trt_module, "find_gpu", lambda: gpu_module.Gpu("another", (9, 0)))
    monkeypatch.setattr(trt_runner, "TrtRunner", lambda *x, **kind: "runs")
    if message is None:
        assert get_backend("tensorrt").load(out) == "runs"
    else:
        with pytest.raises(RuntimeError, match=message):
            get_backend("tensorrt").load(out)


def test_every_option_survives_the_manifest():
    every = TensorRTOptions(64, 3, "t.cache", ("CUBLAS_LT",), True, "ampere_plus", True)
    content = json.loads(json.dumps(dataclasses.asdict(every)))
    assert own_from_json(content, "tensorrt", "engine.json") == every
    assert own_from_json({}, "onnxruntime", "engine.json") is None


def test_rebuild_leaves_the_timing_cache_of_the_first_build_alone(monkeypatch, capsys, tmp_path, source):
    """The path comes from a file that may be of another machine: it is neither read nor written unasked."""
    asked = []
    monkeypatch.setattr(build_engine, "get_backend", lambda name: SimpleNamespace(build=lambda *x: asked.append(x[2])))
    path = tmp_path / "engine.json"
    made = Manifest("tensorrt", {}, "a GPU", (), {}, Products(), "", sha256_of(source), 0, onnx=str(source),
                    options={"timing_cache": "/first/cache", "builder_level": 4})  # fmt: skip
    write_manifest(made, path)
    for flags in ([], ["--timing-cache", "mine"]):
        with pytest.raises((SystemExit, AttributeError)):  # what is built here has no manifest to print
            build_engine.main(["--rebuild", str(path), "--out", "e", *flags])
    assert [(each.own.timing_cache, each.own.builder_level) for each in asked] == [(None, 4), ("mine", 4)]
    assert capsys.readouterr().err.count("/first/cache, the timing cache of the first build, is left alone") == 1


def test_two_builds_into_one_folder_leave_whole_engines(rtx, source, tmp_path):
    arguments = [sys.executable, "build_engine.py", "--onnx", str(source), "--backend", "tensorrt_rtx", "--shapes",
                 "x:4x16", "--force", "--out", str(tmp_path / "engine")]  # fmt: skip
    both = [subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    content = json.loads(manifest_path(tmp_path / "engine").read_text())
    assert (tmp_path / "engine").stat().st_size == content["size_bytes"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["engine", "engine.json", "model.onnx"]


def test_a_shape_with_start_and_end_is_written_as_tensorrt_8_reads_it():
    nodes = [
        helper.make_node("Shape", ["x"], ["length"], start=1, end=2),
        helper.make_node("Slice", ["table", "zero", "length", "one"], ["y"]),
    ]
    constants = {"table": np.arange(12, dtype=np.float32)[None], "zero": np.array([0]), "one": np.array([1])}
    inputs, outputs = [("x", TensorProto.FLOAT, ["batch", "length"])], [("y", TensorProto.FLOAT, [1, "length"])]
    lowered = prepare_for_target(make_model(nodes, inputs, outputs, constants), "tensorrt8")
    shapes = [node for node in lowered.graph.node if node.op_type == "Shape"]
    assert len(shapes) == 1 and not shapes[0].attribute
    (y,) = run_plain(lowered, {"x": np.zeros((2, 5), np.float32)})
    np.testing.assert_array_equal(y, [[0, 1, 2, 3, 4]])


class FakeCache:
    """A timing cache whose entries are words."""

    def __init__(self, content):
        self.words = set(bytes(content).decode().split())

    def combine(self, other, ignore_mismatch):
        self.words |= other.words
        return True

    def serialize(self):
        return " ".join(sorted(self.words)).encode()


class FakeConfig:
    """As much of a builder's configuration, and of a builder, as a timing cache asks of it."""

    def __init__(self, words=""):
        self.cache = FakeCache(words.encode())

    def create_builder_config(self):
        return FakeConfig()

    def create_timing_cache(self, content):
        return FakeCache(content)

    def set_timing_cache(self, cache, ignore_mismatch):
        return "other_gpu" not in cache.words

    def get_timing_cache(self):
        return self.cache


def test_a_timing_cache_is_checked_before_the_build_and_merged_after_it(tmp_path):
    path = tmp_path / "folder" / "cache"
    cache = trt_builder._TimingCache(FakeConfig(), str(path))
    assert cache.content() == b""
    cache.save(FakeConfig("gemm"))
    assert path.read_bytes() == b"gemm"
    path.write_bytes(b"gemm softmax")  # what another build wrote meanwhile
    cache.save(FakeConfig("erf"))
    assert path.read_bytes() == b"erf gemm softmax" and sorted(p.name for p in path.parent.iterdir()) == [
        "cache", "cache.lock"]  # fmt: skip
    path.write_bytes(b"other_gpu")
    with pytest.raises(RuntimeError, match=r"cache is broken, or of another version or GPU; remove it or name another"):
        trt_builder._TimingCache(FakeConfig(), str(path))
