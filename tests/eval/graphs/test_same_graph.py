"""Equal graphs are found by what is joined to what, never by names; numbers that only scale a result do not count."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from eval.graphs.same_graph import graph_digest
from eval.timing.in_turn import ShapeTiming


def write(path, seed=0, prefix="", zero_point=128, size=4, shape=(2, 2), op="Relu", epsilon=0.1, names=("x", "y")):
    """Write a small quantized graph, its numbers drawn with `seed`."""
    rng = np.random.default_rng(seed)
    x, y = names
    constants = {
        "scale": np.float32(rng.uniform(0.1, 1)), "zero": np.uint8(zero_point), "shape": np.array(shape, np.int64),
        "weight": rng.integers(-127, 127, (size, size), dtype=np.int8), "bias": rng.normal(size=size).astype("f4"),
    }  # fmt: skip
    n = {name: prefix + name for name in (*constants, "q", "d", "w", "m", "b")}
    nodes = [
        helper.make_node("QuantizeLinear", [x, n["scale"], n["zero"]], [n["q"]], name=f"{prefix}quantize"),
        helper.make_node("DequantizeLinear", [n["q"], n["scale"], n["zero"]], [n["d"]]),
        helper.make_node("DequantizeLinear", [n["weight"], n["scale"]], [n["w"]]),
        helper.make_node("MatMul", [n["d"], n["w"]], [n["m"]]),
        helper.make_node("Add", [n["m"], n["bias"]], [n["b"]]),
        helper.make_node(op, [n["b"]], [n["b"] + "a"], **({"alpha": epsilon} if op == "LeakyRelu" else {})),
        helper.make_node("Reshape", [n["b"] + "a", n["shape"]], [y]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, [1, size])],
        [helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), n[name]) for name, array in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return graph_digest(path)


def test_other_numbers_and_other_names_are_the_same_graph(tmp_path):
    first = write(tmp_path / "a.onnx")
    assert first == write(tmp_path / "b.onnx", seed=1)
    assert first == write(tmp_path / "c.onnx", seed=2, prefix="other_", names=("in", "out"))


@pytest.mark.parametrize(
    "changes", [{"zero_point": 0}, {"size": 8}, {"shape": (4, 1)}, {"op": "Sigmoid"}, {"op": "LeakyRelu"}]
)
def test_another_zero_point_shape_or_node_is_another_graph(tmp_path, changes):
    assert write(tmp_path / "a.onnx") != write(tmp_path / "b.onnx", **changes)


def test_an_attribute_counts_and_a_file_that_is_no_graph_has_none(tmp_path):
    first, second = (write(tmp_path / "a.onnx", op="LeakyRelu", epsilon=each) for each in (0.1, 0.2))
    assert first != second
    (tmp_path / "engine").write_bytes(b"\x00plan\xff" * 40)
    assert graph_digest(tmp_path / "engine") is None


def test_a_system_has_the_times_of_its_graph():
    timing = ShapeTiming("a", {"a": {}, "b": {}}, {"f": "out of memory"}, {"a": "1", "b": "2", "f": "3"})
    assert (timing.timed_as("b", "2"), timing.timed_as("c", "2"), timing.timed_as("g", "3")) == ("b", "b", "f")
    assert timing.timed_as("c", "4") is None and timing.timed_as("c", None) is None
