"""TensorRT's options: as trtexec's words, in the manifest, at a rebuild, and where an engine may run."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper

import build_engine
from engine import gpu as gpu_module
from engine.backend import get_backend
from engine.backends.own_options import given_flags, own_from_json
from engine.backends.tensorrt import backend as trt_module
from engine.backends.tensorrt import builder as trt_builder
from engine.backends.tensorrt import runner as trt_runner
from engine.backends.tensorrt.options import TensorRTOptions, trtexec_command
from engine.manifest import Manifest, Products, manifest_path, sha256_of, write_manifest
from engine.passes.qdq import prepare_for_target
from engine.shapes import parse_shapes
from tests.engine.backends.test_tensorrt import ROOT, command, options
from tests.engine.graphs import make_model, run_plain

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


@pytest.mark.parametrize("has_field", [True, False])  # manifests of before 0.2 have no field for the capability
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
def test_an_engine_is_held_to_what_it_was_built_for(monkeypatch, tmp_path, level, built_on, message, has_field):
    out, capability = tmp_path / "engine", tuple(map(int, built_on.split(".")))
    out.write_bytes(b"plan")
    write_manifest(
        Manifest("tensorrt", {"tensorrt": "10.0"}, f"a card (compute capability {built_on})", (), {}, Products(),
                 sha256_of(out), "", 4, options={"hardware_compatibility": level},
                 compute_capability=capability if has_field else None),
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
