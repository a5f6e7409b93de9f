"""int7 in every target's file: the fake-quantized numbers, no code outside, and no node where only weights have it."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from calib.apply import apply_statistics
from calib.collect import collect
from engine.lint.report import lint
from engine.passes.qdq import prepare_for_target
from engine.passes.tensorrt_graph import quantize_attention_outputs
from eval.parity.check import check_parity
from eval.parity.graph import check_sites
from eval.parity.onnx_reference import plain_runner
from quant.insert import insert_quantizers
from quant.models.pretrained import LoadedModel
from quant.onnx_export import export_onnx
from quant.recipe import load_recipe, recipe_from_dict
from quant.tensor_quantizer import rounded_scales
from tests.conftest import text_batch, tiny_bert

RULES = {
    "int8": [],
    "weights": [{"match": "*weight_quantizer", "format": "int7"}],
    "everything": [{"match": "*", "format": "int7"}],
}
# As written the four compute in fp32 (tensorrt is checked typed): tiny models differ by the order of sums alone.
FILES = [("onnxruntime", None), ("openvino", None), ("tensorrt8", None), ("tensorrt", "fp16"), ("tensorrt", "bf16")]


@pytest.fixture(scope="module", params=["weights", "everything"])
def exported(request):
    """A tiny BERT in int8_full with int7, its scales numbers of bf16 (so of all types), and its one export."""
    with torch.random.fork_rng():
        loaded = LoadedModel(quantized(request.param), None, "bert")
    with rounded_scales(loaded.model, torch.bfloat16):
        yield request.param, loaded, export_onnx(loaded.model)


def quantized(what):
    content = load_recipe("int8_full").to_dict()
    rules = [*content["rules"], *RULES[what]]
    # A tenth of the activations' values is clipped: without a Clip their codes would lie outside.
    calibrator = {"method": "percentile", "percentile": 90}
    model = tiny_bert()
    insert_quantizers(model, recipe_from_dict({"name": what, "rules": rules, "calibrator": calibrator}))
    apply_statistics(model, collect(model, [text_batch(padded=False)], progress=False))
    return model


@pytest.mark.parametrize(("target", "dtype"), FILES)
def test_every_target_computes_what_the_model_does(tmp_path, exported, target, dtype):
    what, loaded, proto = exported
    path = tmp_path / "m.onnx"
    prepared = prepare_for_target(proto, target, dtype=dtype)
    onnx.save(prepared, path)
    report = check_sites(prepared, loaded.model)
    assert report.min_equal_integers == 1.0 and report.num_weights == 12 and report.num_activations == 16
    if dtype is None:
        batch = text_batch()
        with torch.no_grad():
            expected = loaded.model(**batch).logits.numpy()
        feeds = {name: x.numpy() for name, x in batch.items()}
        feeds["token_type_ids"] = np.zeros_like(feeds["input_ids"])
        np.testing.assert_allclose(plain_runner(path)(feeds)["logits"], expected, atol=1e-5)
    if dtype is not None:
        check_parity(path, loaded, backend=target)  # its own tolerance of the type
    elif what == "everything":  # the engines too, also on a CPU without VNNI: 7 bits cannot saturate its sums
        assert check_parity(path, loaded, backend=target).engine_error_max <= 1e-5


@pytest.mark.parametrize(("target", "dtype"), FILES)
def test_no_file_holds_or_makes_a_code_outside(exported, target, dtype):
    what, _, proto = exported
    prepared = prepare_for_target(proto, target, dtype=dtype)
    arrays = [numpy_helper.to_array(i) for i in prepared.graph.initializer]
    assert all(np.abs(a.astype(int)).max() <= 63 for a in arrays if a.dtype == np.int8 and a.ndim > 1)
    outputs = {o: n for n in prepared.graph.node for o in n.output}
    before = Counter(
        outputs[n.input[0]].op_type
        for n in prepared.graph.node
        if n.op_type == "QuantizeLinear" and n.input[0] in outputs
    )
    if what == "everything":
        assert set(before) <= {"Clip", "Cast"}, before
    else:
        assert "Clip" not in before


def optimized(proto, path):
    options = onnxruntime.SessionOptions()
    # Not ALL: layout changes and NCHWc names depend on the CPU.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_weights_alone_cost_no_node_and_everything_costs_clips(tmp_path, exported):
    what, _, proto = exported
    plain = optimized(prepare_for_target(export_onnx(quantized("int8")), "onnxruntime"), tmp_path / "int8.onnx")
    ours = optimized(prepare_for_target(proto, "onnxruntime"), tmp_path / "int7.onnx")
    if what == "weights":
        assert ours == plain
    else:  # a Clip for each activation, and the two products of V, whose output is rounded, end as float
        extra = ours - plain
        assert extra.pop("Clip") == 16 and extra == {"MatMulIntegerToFloat": 2, "QuantizeLinear": 2}
        assert plain - ours == {"QLinearMatMul": 2}


def test_clips_do_not_keep_quantizers_from_their_places(exported):
    _, _, proto = exported
    graph = ir.from_proto(prepare_for_target(proto, "tensorrt8"))
    assert quantize_attention_outputs(graph) == 2  # one for each layer, as in INT8
    openvino = prepare_for_target(proto, "openvino")
    outputs = {o: n for n in openvino.graph.node for o in n.output}
    for node in openvino.graph.node:
        if node.op_type in ("QuantizeLinear", "Clip") and node.input[0] in outputs:
            assert outputs[node.input[0]].op_type not in ("Transpose", "Reshape"), node.name


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_the_linter_calls_seven_bits_no_mistake(exported, target):
    _, _, proto = exported
    report = lint(prepare_for_target(proto, target))
    assert not [finding for finding in report.findings if finding.level == "error"], report


def lose(proto, clips):
    for clip in clips:
        clip.op_type = "Identity"
        del clip.input[1:]


def widen(proto, clips):
    wide = {clip.input[2] for clip in clips}
    for constant in proto.graph.initializer:
        if constant.name in wide:
            array = numpy_helper.to_array(constant) * np.float32(1.02)  # 64 instead of 63 steps
            constant.CopyFrom(numpy_helper.from_array(array, constant.name))


@pytest.mark.parametrize("exported", ["everything"], indirect=True)
@pytest.mark.parametrize("break_it", [lose, widen])
def test_a_lost_or_wider_clip_is_named(exported, break_it):
    _, loaded, proto = exported
    prepared = prepare_for_target(proto, "onnxruntime")
    break_it(prepared, [node for node in prepared.graph.node if node.op_type == "Clip"])
    with pytest.raises(ValueError, match=r"no QuantizeLinear has its scale .* behind a Clip to int7's codes"):
        check_sites(prepared, loaded.model)
