"""Models whose weights stand in a file of their own: read without them, built from them, engines of two files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engine.backend import BuildOptions, get_backend
from engine.backends.onnxruntime import backend as ort_module
from engine.backends.tensorrt import backend as trt_module
from engine.backends.tensorrt import builder as trt_builder
from engine.graph_file import data_path, weight_bytes, weight_files
from engine.manifest import manifest_path, read_manifest
from engine.passes.qdq import prepare_for_target
from engine.shapes import parse_shapes
from engine.source import read_onnx
from tests.engine.graphs import WIDTH, linear_model, make_model, quantize, run_plain

ROOT = Path(__file__).parents[2]
OVER_2_GB = 2**31 // (4 * WIDTH) + 1024  # rows of float32


def table_file(folder: Path, num_rows: int, *, sparse: bool = False, target: str = "onnxruntime") -> Path:
    """Write ids -> rows of a table in a file of its own -> a quantized linear; a sparse table is all zeros."""
    model = prepare_for_target(linear_model(), target)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"]))
    table = model.graph.initializer.add(
        name="table.weight", data_type=TensorProto.FLOAT, dims=[num_rows, WIDTH], data_location=TensorProto.EXTERNAL
    )
    size_bytes = 4 * num_rows * WIDTH
    for key, value in (("location", "m.onnx.data"), ("offset", "0"), ("length", str(size_bytes))):
        table.external_data.add(key=key, value=value)
    model.graph.node.insert(0, helper.make_node("Gather", ["table.weight", "ids"], ["x"], name="lookup"))
    path = folder / "m.onnx"
    onnx.save(model, path)
    with open(data_path(path), "wb") as file:
        if sparse:
            file.truncate(size_bytes)
        else:
            file.write(np.random.default_rng(0).normal(size=(num_rows, WIDTH)).astype(np.float32).tobytes())
    return path


IDS = {"ids": np.array([3, 0, 1, 7], dtype=np.int64)}


def test_a_builders_model_leaves_large_weights_in_their_file(tmp_path):
    path = table_file(tmp_path, 2000)
    whole, light = read_onnx(path, limit=10**6), read_onnx(path, limit=100_000)
    assert whole == read_onnx(path)
    sizes = [len(each.SerializeToString()) for each in (whole, light)]
    assert sizes[0] > 4 * 2000 * WIDTH > 10 * sizes[1]
    assert weight_bytes(whole) == weight_bytes(light) > 4 * 2000 * WIDTH
    assert weight_files(path) == [data_path(path)]
    small = table_file(tmp_path, 20)  # as small as a scale: passes may read its numbers
    (table,) = [each for each in read_onnx(small, limit=100).graph.initializer if each.name == "table.weight"]
    assert len(table.raw_data) == 4 * 20 * WIDTH


def test_weights_that_end_too_early_are_told_before_any_runtime_sees_them(tmp_path):
    path = table_file(tmp_path, 2000)
    data_path(path).write_bytes(data_path(path).read_bytes()[:-4])
    for limit in (None, 10**6, 100):
        with pytest.raises(ValueError, match=r"is not a whole ONNX file: .*table.weight"):
            read_onnx(path, limit=limit)


@pytest.fixture
def two_files(tmp_path, monkeypatch):
    """An engine whose weights are taken for too many for one file."""
    monkeypatch.setattr(ort_module, "MAX_FILE_BYTES", 100_000)
    source = tmp_path / "source"
    source.mkdir()
    path, out = table_file(source, 2000), tmp_path / "engine"
    return path, out, get_backend("onnxruntime").build(path, out, BuildOptions(parse_shapes(["ids:4"]))).manifest


def test_an_engine_of_two_files_runs_where_both_are_moved(two_files, tmp_path):
    path, out, manifest = two_files
    assert sorted(each.name for each in tmp_path.iterdir()) == ["engine", "engine.data", "engine.json", "source"]
    assert manifest.size_bytes == out.stat().st_size + data_path(out).stat().st_size > 4 * 2000 * WIDTH
    (expected,) = run_plain(path, IDS)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for each in (out, data_path(out), manifest_path(out)):
        shutil.move(each, moved)
    shutil.rmtree(path.parent)  # the engine holds what it needs
    with get_backend("onnxruntime").load(moved / "engine") as runner:
        assert np.isclose(runner(IDS)["y0"], expected, atol=1e-4).mean() > 0.9  # a rounding flip is no other weight


def test_int8_weights_in_a_file_of_their_own_run_as_those_in_the_graph(tmp_path, monkeypatch):
    """On a CPU without VNNI ONNX Runtime rewrites them while it builds."""
    rng, width = np.random.default_rng(0), 512
    weight = rng.integers(-127, 128, (width, width), dtype=np.int8)
    nodes = [*quantize("x", "x_dq", "x_scale", "x_zero", "x"),
             helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_dq"], axis=1),
             helper.make_node("MatMul", ["x_dq", "w_dq"], ["y"], name="product")]  # fmt: skip
    constants = {"x_scale": np.float32(0.02), "x_zero": np.uint8(128), "w": weight, "w_zero": np.zeros(width, np.int8),
                 "w_scale": np.full(width, 0.01, np.float32)}  # fmt: skip
    shape = ["batch", width]
    model = make_model(nodes, [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, shape)], constants)
    onnx.save(model, tmp_path / "one.onnx")
    onnx.save(model, tmp_path / "two.onnx", save_as_external_data=True, location="weights", size_threshold=1000)
    backend, feeds, outputs = get_backend("onnxruntime"), {"x": rng.normal(size=(3, width)).astype(np.float32)}, []
    for name, limit in (("one", 10**9), ("two", 100_000)):
        monkeypatch.setattr(ort_module, "MAX_FILE_BYTES", limit)
        backend.build(tmp_path / f"{name}.onnx", tmp_path / name, BuildOptions())
        assert data_path(tmp_path / name).exists() == (name == "two")
        with backend.load(tmp_path / name) as runner:
            outputs.append(runner(feeds)["y"])
    assert data_path(tmp_path / "two").stat().st_size >= width * width
    np.testing.assert_array_equal(*outputs)


def test_the_second_file_is_judged_as_the_first(two_files):
    _, out, _ = two_files
    backend, content = get_backend("onnxruntime"), data_path(out).read_bytes()
    data_path(out).write_bytes(content[:-4] + b"\1\2\3\4")
    with pytest.raises(ValueError, match=r"engine\.data is not the file that engine\.json describes"):
        backend.load(out)
    data_path(out).unlink()
    with pytest.raises(FileNotFoundError, match=r"keeps its weights in engine\.data, which is missing; copy it too"):
        backend.load(out)


def test_a_smaller_engine_in_its_place_leaves_no_weights_of_the_old_one(two_files, monkeypatch):
    path, out, _ = two_files
    monkeypatch.undo()
    backend = get_backend("onnxruntime")
    manifest = backend.build(path, out, BuildOptions(parse_shapes(["ids:4"]), force=True)).manifest
    assert not data_path(out).exists() and manifest.size_bytes == out.stat().st_size
    with backend.load(out) as runner:
        assert runner(IDS)["y0"].shape == (4, WIDTH)


def test_a_file_of_that_name_that_is_not_the_engines_stays(tmp_path):
    path, out = table_file(tmp_path, 20), tmp_path / "engine"
    data_path(out).write_text("mine")
    for force in (False, True):
        get_backend("onnxruntime").build(path, out, BuildOptions(force=force))
        assert data_path(out).read_text() == "mine"


def test_rebuild_refuses_other_weights_beside_the_same_graph(tmp_path):
    path, out = table_file(tmp_path, 2000), tmp_path / "engine"
    get_backend("onnxruntime").build(path, out, BuildOptions())
    data_path(path).write_bytes(bytes(data_path(path).stat().st_size))
    done = subprocess.run(
        [sys.executable, "build_engine.py", "--rebuild", str(out), "--out", str(tmp_path / "again")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "other weights beside it" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "again").exists()


# In a process of its own that may not hold the weights three times (2.1 GB each): ONNX Runtime maps their file (which
# counts as much) and copies them once to write the optimized one, and nothing here holds them at all.
LIMITED = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (5 << 30, 5 << 30))
from engine.backend import BuildOptions, get_backend
from engine.passes.qdq import prepare_for_target
from engine.shapes import parse_shapes
name, source, out, shapes = sys.argv[1:]
options = BuildOptions(parse_shapes([shapes]), threads=1)
print(json.dumps(get_backend(name).build(source, out, options).manifest.size_bytes))
"""


@pytest.mark.slow
def test_over_2_gb_onnxruntime_builds_from_the_mapped_weights(tmp_path):
    path = table_file(tmp_path, OVER_2_GB, sparse=True)
    command = [sys.executable, "-c", LIMITED, "onnxruntime", str(path), str(tmp_path / "engine"), "ids:4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "engine")
    assert json.loads(done.stdout) == manifest.size_bytes > 2**31 and manifest.products.int8 == ("lin0",)
    with get_backend("onnxruntime").load(tmp_path / "engine") as runner:
        y = runner({"ids": np.array([0, 1, 2, OVER_2_GB - 1])})["y0"]
    np.testing.assert_array_equal(y, np.broadcast_to(y[:1], y.shape))  # every row of the table is zero


@pytest.mark.slow
def test_over_2_gb_tensorrt_reads_the_weights_from_their_file(rtx, tmp_path):
    path = table_file(tmp_path, OVER_2_GB, sparse=True, target="openvino")  # which is in fp32, as the table is
    manifest = rtx.build(path, tmp_path / "engine", BuildOptions(parse_shapes(["ids:4"]))).manifest
    # TensorRT-RTX moves the Q of the product's input before the Gather, and so keeps the table as one byte a number.
    assert manifest.size_bytes > OVER_2_GB * WIDTH and manifest.products.int8 == ("lin0",)


def test_tensorrt_gets_a_graph_without_weights_and_the_path_of_both(rtx, tmp_path, monkeypatch):
    monkeypatch.setattr(trt_module, "MAX_FILE_BYTES", 100_000)
    path, seen = table_file(tmp_path, 2000, target="openvino"), []

    def build_engine(trt, content, onnx_path, *rest):
        seen.append((len(content), onnx_path))
        return trt_builder.build_engine(trt, content, onnx_path, *rest)

    monkeypatch.setattr(trt_module, "build_engine", build_engine)
    manifest = rtx.build(path, tmp_path / "engine", BuildOptions(parse_shapes(["ids:4"]))).manifest
    assert seen == [(seen[0][0], path)] and seen[0][0] < 10_000 < manifest.size_bytes
    data_path(path).unlink()
    with pytest.raises(ValueError, match=r"is not a whole ONNX file"):
        rtx.build(path, tmp_path / "again", BuildOptions(parse_shapes(["ids:4"])))
