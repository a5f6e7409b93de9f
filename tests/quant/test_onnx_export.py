"""The exported graph: Q/DQ where the sites are, free batch and length, the same numbers in the runtime."""

from collections import Counter

import numpy as np
import pytest
import torch

from calib.apply import apply_statistics
from calib.collect import collect
from engine.backends.onnxruntime.backend import plain_session
from engine.passes.qdq import prepare_for_target
from quant.insert import insert_quantizers
from quant.onnx_export import export_onnx
from quant.recipe import load_recipe, recipe_from_dict
from tests.conftest import batch_for, text_batch, tiny_bert, tiny_gpt2
from tests.quant.test_checkpoint import calibrated


def run(proto, batch):
    session = plain_session(proto.SerializeToString())  # as written: fused kernels saturate on a CPU without VNNI
    feeds = {
        i.name: batch[i.name].numpy() if i.name in batch else np.zeros_like(batch["input_ids"])
        for i in session.get_inputs()
    }
    return session.run(None, feeds)[0]


def test_smoothquant_exports_and_agrees_at_another_shape(tiny_model):
    calibrated(tiny_model, "int8_smoothquant")  # int8_full: test_families.py, for every family
    proto = prepare_for_target(export_onnx(tiny_model), "onnxruntime")
    shape = {"batch_size": 3} if tiny_model.main_input_name == "pixel_values" else {"batch_size": 3, "length": 17}
    batch = batch_for(tiny_model, **shape)
    with torch.no_grad():
        expected = tiny_model(**batch).logits.numpy()
    real = batch["attention_mask"].bool().numpy() if expected.ndim == 3 else slice(None)  # padded positions may differ
    np.testing.assert_allclose(run(proto, batch)[real], expected[real], atol=1e-5)


def test_one_pair_of_nodes_for_each_site_and_names_for_inputs_and_outputs():
    model = calibrated(tiny_bert(), "int8_linear")
    proto = export_onnx(model)
    counts = Counter(node.op_type for node in proto.graph.node)
    assert counts["DequantizeLinear"] >= 2 * 10 and counts["Round"] == counts["Clip"] == 0
    assert [i.name for i in proto.graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [o.name for o in proto.graph.output] == ["logits"]
    assert [d.dim_param for d in proto.graph.input[0].type.tensor_type.shape.dim] == ["batch", "sequence"]


def test_a_float_model_exports_too_and_export_leaves_the_model_as_it_was():
    model, batch = tiny_bert(num_hidden_layers=1), text_batch()
    with torch.no_grad():
        np.testing.assert_allclose(run(export_onnx(model), batch), model(**batch).logits.numpy(), atol=1e-5)
        calibrated(model)
        before = model(**batch).logits
        export_onnx(model)
        assert torch.equal(model(**batch).logits, before)


def test_uncalibrated_models_are_refused():
    model = tiny_bert()
    insert_quantizers(model, load_recipe("int8_linear"))
    with pytest.raises(RuntimeError, match="quantizers have no amax"):
        export_onnx(model)


def test_smoothing_a_head_leaves_the_embedding_that_shares_its_weight():
    model = tiny_gpt2()  # its head is its embedding table
    recipe = {"name": "head", "rules": [{"match": "*", "enable": False}, {"match": "lm_head.*"}]}
    insert_quantizers(model, recipe_from_dict({**recipe, "smoothquant": {"alpha": 0.5}}))
    batch = text_batch(padded=False)
    apply_statistics(model, collect(model, [batch], progress=False))
    assert [str(s.smoothing) for s in model.quantization.sites if s.smoothing] == ["explicit, alpha 0.5"]
    with torch.no_grad():
        expected = model(**batch).logits.numpy()
    np.testing.assert_allclose(run(export_onnx(model), batch), expected, atol=1e-5)
    assert model.lm_head.weight is model.transformer.wte.weight
