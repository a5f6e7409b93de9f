import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import numpy_helper

from engine.passes.qdq import prepare_for_target
from eval.parity.check import check_parity
from eval.parity.graph import check_sites
from eval.parity.random_feeds import random_feeds
from quant.insert import insert_quantizers
from quant.models.pretrained import LoadedModel
from quant.onnx_export import export_onnx
from quant.recipe import load_recipe
from quant.tensor_quantizer import named_quantizers
from tests.eval import tiny


@pytest.fixture(scope="module")
def quantized():
    """A tiny BERT with plausible ranges; every site has its own, so that no two constants of the file are equal."""
    loaded = tiny.bert()
    loaded.model.config._attn_implementation = "sdpa"
    insert_quantizers(loaded.model, load_recipe("int8_attention"))
    for i, (name, quantizer) in enumerate(named_quantizers(loaded.model)):
        if not quantizer.enabled:
            continue
        weight = getattr(loaded.model.get_submodule(name.rpartition(".")[0]), "weight", None)
        if name.endswith("weight_quantizer"):
            quantizer.set_amax(weight.detach().abs().amax(1) * 1.5)
        elif "softmax" in name:
            quantizer.set_amax(torch.ones(1))
        else:
            quantizer.set_amax(torch.tensor([4.0 + i / 64]))
        if name.endswith("0.intermediate.dense.input_quantizer"):
            quantizer.set_pre_quant_scale(torch.linspace(0.5, 1.5, 32))
    return loaded


@pytest.fixture(scope="module")
def exported(quantized):
    return export_onnx(quantized.model, processor=quantized.processor)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_good_file_passes_in_its_own_consumer(tmp_path, quantized, exported, target):
    onnx.save(prepare_for_target(exported, target), tmp_path / "model.onnx")
    report = check_parity(tmp_path / "model.onnx", quantized, backend=target)
    assert report.num_weights == 12 and report.num_activations > 12 and report.min_equal_integers >= 0.9999
    assert report.engine_error_mean <= 0.5 * report.quantization_error_mean
    assert report.num_rows == 105 and target in str(report)


def edited(proto, suffix, change):
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    hits = [i for i in copy.graph.initializer if i.name.endswith(suffix)]
    assert hits, [i.name for i in copy.graph.initializer]
    array = numpy_helper.to_array(hits[0]).copy()
    hits[0].CopyFrom(numpy_helper.from_array(np.asarray(change(array), array.dtype), hits[0].name))
    return copy


def one_step_off(array):
    array.flat[0] += 1 if array.flat[0] < 127 else -1
    return array


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        (
            "layer.0.attention.self.key.weight_int8_transposed",
            one_step_off,
            "key.weight_quantizer: 1 of 1024 integers and 0",
        ),
        (
            "key.weight_quantizer.export_scale",
            lambda s: np.nextafter(s, np.float32(9)),
            "key.weight_quantizer: 0 of 1024 .* and 32",
        ),
        (
            "output.dense.input_quantizer.export_scale",
            lambda s: s * 1.001,
            "input_quantizer: no QuantizeLinear has its scale",
        ),
        ("pre_quant_scale", lambda s: s * 1.5, "behind a Mul by its pre_quant_scale"),
    ],
)
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_one_changed_number_is_named(quantized, exported, target, suffix, change, message):
    proto = prepare_for_target(exported, target)
    with pytest.raises(ValueError, match=f"the ONNX file is not the quantized model in .*{message}"):
        check_sites(edited(proto, suffix, change), quantized.model)


def test_wrong_zero_points_are_named(quantized, exported):
    proto = edited(prepare_for_target(exported, "onnxruntime"), "zero_point_uint8", lambda z: z - 1)
    with pytest.raises(ValueError, match=r"zero point \[127\] of uint8"):
        check_sites(proto, quantized.model)


def test_a_lost_mask_fails_the_outputs(tmp_path, quantized, exported):
    proto = prepare_for_target(exported, "onnxruntime")
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            if name == "attention_mask":  # ids have the same shape and are not 0 where the mask is 1
                node.input[i] = "all_ones"
    proto.graph.node.insert(0, onnx.helper.make_node("Pow", ["attention_mask", "zero_exponent"], ["all_ones"]))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "zero_exponent"))
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(
        ValueError, match=r"outputs change by .* with what stands in the padding\. Look for a lost mask"
    ):
        check_parity(tmp_path / "model.onnx", quantized, backend="onnxruntime")


def test_a_changed_float_weight_fails_the_outputs(tmp_path, quantized, exported):
    proto = edited(prepare_for_target(exported, "onnxruntime"), "LayerNorm.weight", lambda w: w * 1.5)
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"does not compute what the quantized model computes: .*flips"):
        check_parity(tmp_path / "model.onnx", quantized, backend="onnxruntime")


def test_a_float_file_is_checked_as_one(tmp_path):
    loaded = tiny.vit()
    proto = prepare_for_target(export_onnx(loaded.model, processor=loaded.processor), "onnxruntime")
    onnx.save(proto, tmp_path / "model.onnx")
    report = check_parity(tmp_path / "model.onnx", loaded)
    assert report.num_weights == 0 and report.engine_error_max < 1e-4
    onnx.save(edited(proto, "classifier.weight", lambda w: w * 1.1), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="the float file is not the model"):
        check_parity(tmp_path / "model.onnx", loaded)


def test_a_released_model_is_judged_the_same(tmp_path):
    loaded = tiny.bert()
    onnx.save(prepare_for_target(export_onnx(loaded.model), "onnxruntime"), tmp_path / "model.onnx")
    kept = check_parity(tmp_path / "model.onnx", loaded)
    assert check_parity(tmp_path / "model.onnx", loaded, release=True) == kept
    assert {parameter.device.type for parameter in loaded.model.parameters()} == {"meta"}


def test_random_feeds_have_two_shapes_and_real_padding():
    feeds = list(random_feeds(tiny.bert()))
    assert {f["input_ids"].shape for f in feeds} == {(2, 12), (5, 31)}
    assert all(f["attention_mask"][0].all() for f in feeds) and any((f["attention_mask"] == 0).any() for f in feeds)
    assert all((f["input_ids"][f["attention_mask"] == 0] == 0).all() for f in feeds)


def test_a_model_that_reads_its_padding_may_do_so_in_the_engine_too(tmp_path):
    """ConvBERT convolves over tokens, padding and all: the file is right, and no mask is lost."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64,
             "vocab_size": 99, "embedding_size": 32, "conv_kernel_size": 3, "initializer_range": 0.2}  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ConvBertModel(transformers.ConvBertConfig(**sizes)).eval()
    loaded = LoadedModel(model, None, "convbert")
    path = tmp_path / "m.onnx"
    onnx.save(prepare_for_target(export_onnx(model), "onnxruntime"), path)
    assert check_parity(path, loaded).engine_error_max < 1e-5
