"""Every pass keeps the numbers; weights are folded by the one formula, to the bit."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper, numpy_helper

from engine.passes.qdq import prepare_for_target
from engine.passes.weights import quantize
from tests.engine.graphs import WIDTH, count, linear_model, make_model, run_plain, samples, table_model

TARGET_NAMES = ["onnxruntime", "openvino"]  # fp32 files with INT8 weights; TensorRT's: test_trt.py and test_tensorrt.py


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@settings(max_examples=60, deadline=None)
@given(
    w=hnp.arrays(np.float32, (4, 6), elements=st.floats(-1e3, 1e3, width=32)),
    scale=hnp.arrays(np.float32, (4,), elements=st.floats(float(np.float32(1e-6)), 10.0, width=32)),
)
def test_weights_are_divided_rounded_half_to_even_and_clamped_in_fp32(w, scale):
    for axis, x in ((0, w), (1, w.T)):
        expected = np.empty(x.shape, np.int8)
        for index in np.ndindex(*x.shape):  # the formula by hand, one element at a time
            quotient = np.float32(x[index]) / np.float32(scale[index[axis]])
            expected[index] = max(-128, min(127, round(float(quotient))))  # Python rounds half to even
        np.testing.assert_array_equal(quantize(x, scale, axis), expected)


def test_ties_go_to_even_and_the_ends_are_minus_128_and_127():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 127.5, 500, -127.5, -128.5, -500], np.float32)
    assert quantize(x, np.float32(1), 0).tolist() == [0, 2, 2, 0, -2, 127, 127, -128, -128, -128]


def test_the_formula_equals_torch_to_the_bit():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    w, scale = rng.normal(size=(64, 333)).astype(np.float32), rng.uniform(1e-4, 0.05, 64).astype(np.float32)
    ours = quantize(w, scale, 0)
    theirs = torch.clamp(torch.round(torch.tensor(w) / torch.tensor(scale)[:, None]), -128, 127).to(torch.int8)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_scales_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"3 scales do not fit axis 0 of a weight of shape \(4, 6\)"):
        quantize(np.ones((4, 6), np.float32), np.ones(3, np.float32), 0)


@pytest.mark.parametrize("target", TARGET_NAMES)
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"with_bias": False},
        {"smooth": True, "num_siblings": 3},
        {"as_gemm": True},
        {"as_gemm": True, "with_bias": False},
        {"transpose": False},
    ],
    ids=str,
)
def test_a_prepared_linear_computes_what_the_exported_one_does(target, kind):
    model = linear_model(**kind)
    before = model.SerializeToString()
    prepared = prepare_for_target(model, target)
    assert model.SerializeToString() == before, "the caller's model was changed"
    for old, new in zip(run_plain(model, samples()), run_plain(prepared, samples()), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-5)  # the order of fp32 sums may differ, the integers may not
    siblings = kind.get("num_siblings", 1)
    assert count(prepared, "Transpose") == count(prepared, "Gemm") == 0
    assert count(prepared, "QuantizeLinear") == 1, "one Q for all that read the tensor"
    assert count(prepared, "DequantizeLinear") == 1 + siblings
    weights = [x for x in initializers(prepared).values() if x.ndim == 2]
    assert [x.dtype for x in weights] == [np.dtype(np.int8)] * siblings
    original = initializers(model)
    axis = 1 if kind.get("transpose") is False else 0
    folded = quantize(original["lin0.weight"], original["lin0.scale"], axis)
    np.testing.assert_array_equal(weights[0], folded if axis else folded.T)


def test_onnxruntime_gets_uint8_activations_of_equal_value_and_int8_weights():
    model = linear_model(num_siblings=2)
    plain, shifted = (prepare_for_target(model, target) for target in ("openvino", "onnxruntime"))
    zero_points = {name: x for name, x in initializers(shifted).items() if x.dtype == np.uint8}
    assert [int(x) for x in zero_points.values()] == [128]
    integers = []
    for prepared, dtype, offset in ((plain, np.int8, 0), (shifted, np.uint8, 128)):
        q = next(node for node in prepared.graph.node if node.op_type == "QuantizeLinear")
        prepared.graph.output.append(
            onnx.helper.make_tensor_value_info(q.output[0], onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), None)
        )
        integers.append(run_plain(prepared, samples())[-1].astype(np.int32) - offset)
    np.testing.assert_array_equal(*integers)
    assert integers[0].min() < -100 and integers[0].max() > 100


@pytest.mark.parametrize("target", TARGET_NAMES)
@pytest.mark.parametrize("per_column", [False, True])
def test_an_embedding_table_is_gathered_before_it_is_dequantized(target, per_column):
    model = table_model(per_column)
    prepared = prepare_for_target(model, target)
    ops = [node.op_type for node in prepared.graph.node]
    assert ops == ["Gather", "DequantizeLinear"]
    ids = {"ids": np.array([[0, 49, 7], [3, 3, 11]])}
    np.testing.assert_array_equal(run_plain(prepared, ids)[0], run_plain(model, ids)[0])


def test_a_float_model_passes_through_unchanged():
    model = linear_model(quantized=False)
    prepared = prepare_for_target(model, "onnxruntime")
    assert [node.op_type for node in prepared.graph.node] == [node.op_type for node in model.graph.node]
    np.testing.assert_array_equal(run_plain(prepared, samples())[0], run_plain(model, samples())[0])


def test_the_stamp_names_the_target_and_what_the_caller_says():
    prepared = prepare_for_target(linear_model(), "openvino", {"int8kit.recipe_digest": "abc"})
    stamp = {entry.key: entry.value for entry in prepared.metadata_props}
    assert stamp == {"int8kit.target": "openvino", "int8kit.recipe_digest": "abc"}


def test_an_unknown_target_names_its_near_matches():
    with pytest.raises(ValueError, match=r"unknown target 'onnxruntim'; .* did you mean onnxruntime"):
        prepare_for_target(linear_model(), "onnxruntim")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lin0.scale", np.zeros(WIDTH, np.float32), r"lin0.weight has a scale that is not a positive number"),
        ("lin0.scale", np.full(WIDTH, np.nan, np.float32), r"lin0.weight has a scale that is not a positive number"),
        ("lin0.zero", np.ones(WIDTH, np.int8), r"lin0.weight has a zero point other than int8 0"),
    ],
)
def test_a_weight_that_is_not_symmetric_int8_is_refused(name, value, message):
    model = linear_model()
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(value, name))
    with pytest.raises(ValueError, match=message):
        prepare_for_target(model, "openvino")


ATTENTION_SIDE = """
<ir_version: 10, opset_import: ["" : 20]>
graph (float[b, s, 8] x) => (float[b, 2, s, 4] y)
<int64[4] shape = {0, 0, 2, 4}, float scale = {0.03}, int8 zero = {0}, float factor = {0.35355338},
 float[8] one = {1, 1, 1, 1, 1, 1, 1, 1}>
{
    a = Add(x, one)
    r = Reshape(a, shape)
    t = Transpose <perm = [0, 2, 1, 3]> (r)
    m = Mul(t, factor)
    q = QuantizeLinear(m, scale, zero)
    y = DequantizeLinear(q, scale, zero)
}
"""  # fmt: skip


def test_hoisting_moves_rounding_before_the_reshape_and_keeps_every_bit():
    model = onnx.parser.parse_model(ATTENTION_SIDE)
    hoisted = prepare_for_target(model, "openvino")
    assert [node.op_type for node in hoisted.graph.node] == [
        "Add", "Mul", "QuantizeLinear", "DequantizeLinear", "Reshape", "Transpose",
    ]  # fmt: skip
    x = np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32)
    outputs = [
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for m in (model, hoisted)
    ]
    assert np.array_equal(*outputs)
    assert hoisted.graph.output[0].name == "y"


def concat_conv(width: int = 8) -> onnx.ModelProto:
    """Return Concat(x, -x) → Q → DQ → Conv by an INT8 weight, as a prepared file has it."""
    rng = np.random.default_rng(0)
    constants = {
        "s": np.array(0.03, np.float32), "z": np.array(0, np.int8),
        # within 63: sums of two products fit 16 bits, so that no CPU saturates
        "w": rng.integers(-63, 64, (4, 2 * width, 1, 1)).astype(np.int8),
        "ws": rng.uniform(0.001, 0.01, 4).astype(np.float32), "wz": np.zeros(4, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("Neg", ["x"], ["minus"]),
        helper.make_node("Concat", ["x", "minus"], ["both"], axis=1),
        helper.make_node("QuantizeLinear", ["both", "s", "z"], ["q"], name="site"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wdq"], axis=0),
        helper.make_node("Conv", ["dq", "wdq"], ["y"], kernel_shape=[1, 1]),
    ]
    value = onnx.TensorProto.FLOAT
    return make_model(nodes, [("x", value, ["n", width, 6, 6])], [("y", value, ["n", 4, 6, 6])], constants)


def run_openvino(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    core = pytest.importorskip("openvino").Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(core.read_model(model.SerializeToString()), "CPU", options)([x])[0]


def test_openvino_convolves_int8_behind_a_concat_rightly_in_uint8_alone():
    """Once the last line fails, OpenVINO (2026.4.1 here) is mended and `conv_inputs_to_uint8` can go."""
    model, x = concat_conv(), np.random.default_rng(1).normal(size=(2, 8, 6, 6)).astype(np.float32)
    (expected,) = run_plain(model, {"x": x})
    prepared = prepare_for_target(model, "openvino")
    quantizer = next(node for node in prepared.graph.node if node.op_type == "QuantizeLinear")
    assert initializers(prepared)[quantizer.input[2]] == np.array(128, np.uint8)
    np.testing.assert_allclose(run_plain(prepared, {"x": x})[0], expected, atol=1e-5)
    np.testing.assert_allclose(run_openvino(prepared, x), expected, atol=1e-4)
    assert np.abs(run_openvino(model, x) - expected).mean() > 0.1 * np.abs(expected).mean()


def test_linears_and_attention_stay_int8_for_openvino():
    prepared = prepare_for_target(linear_model(), "openvino")
    assert all(array.dtype != np.uint8 for array in initializers(prepared).values())
