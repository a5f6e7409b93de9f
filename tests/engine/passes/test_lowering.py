"""What TensorRT 8's parser takes in float alone is computed in float, with the same integers; the rest is refused."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from engine.graph import sweep
from engine.passes.half import to_half
from engine.passes.lowering import expand_operators, to_opset_17
from tests.engine.graphs import make_model, run_plain

INTS = TensorProto.INT64


def lowered(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model after the passes of target tensorrt8 that replace operators."""
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    expand_operators(graph)
    sweep(graph)
    to_opset_17(graph)
    return ir.to_proto(graph)


def one_node(op_type: str, shape_out: list, constants: dict, **attributes) -> onnx.ModelProto:
    node = helper.make_node(op_type, ["x", *constants], ["y"], name="node", **attributes)
    return make_model([node], [("x", INTS, ["n", 6])], [("y", INTS, shape_out)], constants)


CASES = {
    "CumSum": one_node("CumSum", ["n", 6], {"axis": np.array(1)}),
    "ArgMax": one_node("ArgMax", ["n"], {}, axis=-1, keepdims=0),
    "Clip": one_node("Clip", ["n", 6], {"low": np.array(2), "high": np.array(900)}),
}


@pytest.mark.parametrize("op_type", CASES)
def test_integers_go_through_what_the_parser_takes_and_stay_the_same(op_type):
    x = np.random.default_rng(0).integers(0, 2000, (3, 6))
    (expected,) = run_plain(CASES[op_type], {"x": x})
    model = lowered(CASES[op_type])
    np.testing.assert_array_equal(run_plain(model, {"x": x})[0], expected)
    onnx.checker.check_model(model)
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    left = [node for node in model.graph.node if node.op_type == op_type]
    assert all(kinds[node.input[0]] == TensorProto.FLOAT for node in left)
    assert bool(left) == (op_type != "Clip")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"mode": "cubic"}, "Resize node: TensorRT 8 has no mode cubic; it has nearest, linear"),
        ({"mode": "linear", "antialias": 1}, "Resize node: TensorRT 8 has no antialias"),
    ],
)
def test_a_resize_that_tensorrt_8_lacks_is_refused(attributes, message):
    sizes = {"sizes": np.array([1, 2, 8, 8])}
    shapes = ([("x", TensorProto.FLOAT, [1, 2, 4, 4])], [("y", TensorProto.FLOAT, [1, 2, 8, 8])])

    def resize(**attributes) -> onnx.ModelProto:
        node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], name="node", **attributes)
        return make_model([node], *shapes, sizes)

    with pytest.raises(ValueError, match=message):
        lowered(resize(**attributes))
    x = {"x": np.random.default_rng(0).normal(size=(1, 2, 4, 4)).astype(np.float32)}
    model = resize(mode="linear", antialias=0)
    np.testing.assert_array_equal(run_plain(lowered(model), x)[0], run_plain(model, x)[0])


def test_buckets_of_positions_are_not_rounded_to_half():
    """Ceil(log(x) / log(511 / 128) * 127), as DeBERTa computes it: in fp16 whole buckets would be off by one."""
    constants = {"factor": np.array(127 / np.log(511 / 128), np.float32), "middle": np.array(128, np.float32)}
    nodes = [
        helper.make_node("Cast", ["x"], ["xf"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["xf", "middle"], ["share"]),
        helper.make_node("Log", ["share"], ["log"]),
        helper.make_node("Mul", ["log", "factor"], ["bucket"]),
        helper.make_node("Ceil", ["bucket"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["y"], to=INTS),
    ]
    model = make_model(nodes, [("x", INTS, ["n"])], [("y", INTS, ["n"])], constants)
    x = {"x": np.arange(129, 512)}
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    to_half("fp16")(graph)
    half = ir.to_proto(graph)
    assert TensorProto.FLOAT16 not in [node.attribute[0].i for node in half.graph.node if node.op_type == "Cast"]
    np.testing.assert_array_equal(run_plain(half, x)[0], run_plain(model, x)[0])  # ONNX Runtime's Ceil is fp32 anyway
