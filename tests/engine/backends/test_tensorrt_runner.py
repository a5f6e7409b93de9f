"""The TensorRT runner on a stand-in of TensorRT's API: numbers, shapes, graphs, times, errors, and what is freed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from engine.backends.tensorrt.runner import TrtRunner
from engine.shapes import parse_shapes
from tests.engine.backends.tensorrt_stand_in import KERNEL_MS, StandIn, engine_bytes

cuda = pytest.importorskip("polygraphy.cuda", reason="the runner calls CUDA through polygraphy, which is not installed")


@pytest.fixture
def make(monkeypatch):
    """A function that makes (runner, stand-in); every runner is closed at the end, and nothing may be left then."""
    made = []

    def runner(content: bytes | None = None, *shapes: str, version: str = "10.0", fails: set | None = None, **kind):
        trt = StandIn(version, fails)
        monkeypatch.setattr(cuda, "wrapper", lambda: SimpleNamespace(handle=trt.cudart))
        made.append((TrtRunner(trt, content or engine_bytes(), parse_shapes(shapes), **kind), trt))
        return made[-1]

    yield runner
    for each, trt in made:
        each.close()
        assert not trt.cudart.memory and not trt.cudart.handles, "not all was freed"


def feeds(batch: int, seed: int = 0, dtype: type = np.int32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(batch, 3)).astype(np.float32), "ids": rng.integers(0, 99, (batch, 3)).astype(dtype)}


def assert_right(outputs: dict[str, np.ndarray], fed: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(outputs["y"], (2 * fed["x"] + fed["ids"].astype(np.int32)).astype(np.float32))


@pytest.mark.parametrize("version", ["8.5", "8.6", "10.0", "11.0"])
def test_outputs_are_the_engines_and_their_own_memory(make, version):
    runner, _ = make(version=version)
    assert runner.input_names == ["x", "ids"] and runner.output_names == ["y", "total"]
    assert runner.inputs["ids"] == (np.dtype(np.int32), (None, 3)) and runner.static_batch is None
    first, second = feeds(4), feeds(4, seed=1)
    kept = runner(first)
    assert_right(runner(second), second)
    assert_right(kept, first)  # a later call writes over nothing that was given away
    assert kept["total"] == 4 and kept["total"].shape == ()


def test_batches_of_any_size_follow_each_other(make):
    runner, trt = make()
    for batch in (2, 8, 1, 8, 3):
        fed = feeds(batch, seed=batch)
        assert_right(runner(fed), fed)
    # Buffers only grow (2, then 8): x, ids and y twice, and total once.
    assert trt.cudart.calls.count("cudaMalloc") == 7 and trt.cudart.calls.count("cudaFree") == 3


def test_a_graph_is_recorded_once_for_each_shape(make):
    runner, trt = make()
    for _ in range(3):
        runner(feeds(4))
    assert trt.cudart.calls.count("cudaStreamBeginCapture") == 1 and trt.cudart.calls.count("cudaGraphLaunch") == 3
    fed = feeds(5)
    assert_right(runner(fed), fed)
    assert trt.cudart.calls.count("cudaGraphExecDestroy") == 1 and trt.cudart.calls.count("cudaStreamBeginCapture") == 2


@pytest.mark.parametrize("why", ["capture", "instantiate"])
def test_what_cannot_be_recorded_runs_without_a_graph(make, why):
    runner, trt = make(fails={why})
    trt.cudart.can_instantiate = why != "instantiate"
    for seed in range(3):
        fed = feeds(4, seed)
        assert_right(runner(fed), fed)
    assert trt.cudart.calls.count("cudaStreamBeginCapture") == 1 and "cudaGraphLaunch" not in trt.cudart.calls


def test_a_short_batch_is_padded_with_its_last_row_and_cut(make):
    content = engine_bytes(inputs={"x": ["float32", [4, 3]], "ids": ["int32", [4, 3]]},
                           outputs={"y": ["float32", [4, 3]], "total": ["float32", []]})  # fmt: skip
    runner, _ = make(content, "x:4x3", "ids:4x3")
    assert runner.static_batch == runner.batch_size == 4
    fed = feeds(3)
    outputs = runner(fed)
    assert_right(outputs, fed)
    assert outputs["y"].shape == (3, 3) and outputs["total"] == 4
    with pytest.raises(ValueError, match=r"input x has shape 5x3, the engine takes 4x3"):
        runner(feeds(5))


def test_feeds_become_the_engines_types(make):
    runner, _ = make()
    fed = feeds(2, dtype=np.int64)
    assert_right(runner({"x": fed["x"].astype(np.float64), "ids": fed["ids"]}), fed)
    column = np.asfortranarray(feeds(4)["x"])
    assert_right(runner({**feeds(4), "x": column[:, ::-1][:, ::-1]}), feeds(4))
    assert_right(runner({**feeds(4), "ids": np.ones((4, 3), bool)}), {**feeds(4), "ids": np.ones((4, 3), bool)})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": None}, "input x is missing"),
        ({"xx": np.zeros((4, 3), np.float32)}, r"xx is no input \(did you mean x\?\)"),
        ({"x": np.zeros((4, 3), np.int64)}, "input x has type int64, the engine takes float32; convert it first"),
        ({"ids": np.zeros((4, 3), np.float32)}, "input ids has type float32, the engine takes int32"),
        ({"ids": np.zeros((3, 3), np.int32)}, r"different numbers of samples: \[3, 4\]"),
        ({"x": np.zeros((4, 4), np.float32)}, r"input x has shape 4x4, the engine takes \?x3"),
        ({"x": np.zeros((4, 3, 1), np.float32)}, "input x has shape 4x3x1"),
        ({"x": np.zeros((0, 3), np.float32)}, "input x has shape 0x3"),
        ({"ids": np.full((4, 3), 2**31, np.int64)}, "input ids holds 2147483648, which int32 does not"),
        ({"x": np.full((4, 3), 1e39)}, r"input x holds 1e\+39, which float32 does not"),
    ],
)
def test_wrong_feeds_are_named_and_harm_nothing(make, changed, message):
    runner, _ = make()
    with pytest.raises(ValueError, match=message):
        runner({name: x for name, x in (feeds(4) | changed).items() if x is not None})
    assert_right(runner(feeds(4)), feeds(4))


def test_a_shape_beyond_the_profile_leaves_the_old_one_good(make):
    """The manifest names no range here, so that TensorRT itself refuses; the context's shapes are mixed then."""
    runner, _ = make()
    assert_right(runner(feeds(4)), feeds(4))
    with pytest.raises(ValueError, match="input x: shape 9x3 is outside the engine's profile"):
        runner(feeds(9))
    lane = runner._lanes[0]
    lane.context.shapes["x"] = (9, 3)  # as where the second input was refused
    assert_right(runner(feeds(4)), feeds(4))


def test_too_little_memory_says_what_to_do_and_a_smaller_batch_runs(make):
    runner, trt = make()
    trt.cudart.free_bytes = 60  # x, ids and y of one row take 36, the total 4
    with pytest.raises(RuntimeError, match=r"cudaMalloc: CUDA error 2, out of memory; build for a smaller batch"):
        runner(feeds(8))
    assert_right(runner(feeds(1)), feeds(1))


def test_time_is_the_devices_and_leaves_copies_out(make):
    runner, trt = make()
    assert runner.has_device_clock
    assert runner.time(feeds(4), iterations=5, warmup=0) == pytest.approx([KERNEL_MS] * 5)
    assert runner.time(feeds(4), iterations=0) == []
    events = trt.cudart.calls.count("cudaEventCreate")
    assert events == trt.cudart.calls.count("cudaEventDestroy") == 4


def test_throughput_counts_all_streams(make):
    runner, trt = make()
    for num_streams in (3, 1, 2):
        # The stand-in's engine runs one call at a time on any number of streams: as many calls a second.
        assert runner.throughput(feeds(4), num_streams, iterations=12) == pytest.approx(1e3 / KERNEL_MS)
    assert trt.cudart.calls.count("cudaStreamCreate") == 3
    for wrong in ({"num_streams": 0}, {"iterations": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            runner.throughput(feeds(4), **wrong)


def test_layers_are_told_and_timed(make):
    runner, trt = make()
    assert runner.layer_information() == '{"Layers": ["product", "sum"], "as": "json"}'
    assert runner.profile(feeds(4), iterations=5) == [
        {"name": "product", "medianMs": 0.2}, {"name": "sum", "medianMs": 0.05}]  # fmt: skip
    with pytest.raises(ValueError, match="outside the engine's profile"):
        runner.profile(feeds(9))
    assert trt.cudart.calls.count("cudaStreamDestroy") == 2  # its own lane is freed, the runner's is not
    assert_right(runner(feeds(4)), feeds(4))


@pytest.mark.parametrize(
    ("content", "fails", "message"),
    [
        (b"no engine", set(), r"TensorRT 10\.0 refused the engine: Magic tag does not match"),
        (None, {"context"}, "TensorRT made no execution context: too little GPU memory is free"),
        (engine_bytes(host_inputs=["ids"]), set(), "ids lies in the CPU's memory.*sizes as inputs"),
        (engine_bytes(outputs={"y": ["bfloat16", [-1, 3]]}), set(), "y is in bfloat16, which numpy has not"),
    ],
)
def test_an_engine_that_cannot_run_is_refused_at_once(make, content, fails, message):
    with pytest.raises(RuntimeError, match=message):
        make(content, fails=fails)


def test_a_size_that_depends_on_the_numbers_is_refused(make):
    content = engine_bytes(outputs={"y": ["float32", [-1, -2]], "total": ["float32", []]})
    runner, _ = make(content)
    with pytest.raises(RuntimeError, match="output y has a size that TensorRT only knows after a run"):
        runner(feeds(4))


@pytest.mark.parametrize(("fails", "message"), [({"enqueue"}, "could not start"), ({"address"}, "address of x")])
def test_what_tensorrt_refuses_is_an_error(make, fails, message):
    runner, _ = make(fails=fails)
    with pytest.raises(RuntimeError, match=message):
        runner(feeds(4))


def test_code_of_the_file_runs_only_where_it_was_built_to_bring_some(make):
    with pytest.raises(RuntimeError, match="host code is not allowed"):
        make(engine_bytes(version_compatible=True))
    runner, trt = make(engine_bytes(version_compatible=True), may_bring_code=True)
    assert_right(runner(feeds(2)), feeds(2))
    assert [each.engine_host_code_allowed for each in trt.runtimes] == [True]
    _, plain = make()
    assert [each.engine_host_code_allowed for each in plain.runtimes] == [False]
    make(version="8.5", may_bring_code=True)  # which has no such setting


def test_a_closed_engine_says_so(make):
    runner, _ = make()
    runner(feeds(2))
    runner.close()
    runner.close()
    for call in (runner, runner.time, runner.throughput, runner.profile):
        with pytest.raises(RuntimeError, match="this engine is closed; load it again"):
            call(feeds(2))
