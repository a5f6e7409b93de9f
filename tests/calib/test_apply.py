"""From statistics to amax: every method without another pass, exact weights, mismatches refused."""

import pytest
import torch

from calib.apply import apply_statistics
from calib.collect import collect
from quant.insert import insert_quantizers
from quant.recipe import METHODS, load_recipe
from tests.conftest import text_batch, tiny_bert


def prepared(recipe="int8_full"):
    model = tiny_bert()
    insert_quantizers(model, load_recipe(recipe))
    return model, collect(model, [text_batch(seed=seed) for seed in range(2)], progress=False)


def test_all_methods_come_from_one_pass_and_the_recipe_says_which():
    model, statistics = prepared()
    name = "bert.embeddings.LayerNorm.output_quantizer"
    amax = {}
    for method in METHODS:
        used = apply_statistics(model, statistics, method)
        assert used.calibrator.method == method and model.quantization.recipe == used
        amax[method] = model.get_submodule(name).amax.item()
    assert amax["max"] == statistics.sites[name].histogram.amax
    assert all(0 < value <= amax["max"] for value in amax.values()) and len(set(amax.values())) > 1


def test_weight_amax_is_the_exact_maximum_of_each_output_channel():
    model, statistics = prepared()
    apply_statistics(model, statistics)
    layer = model.bert.encoder.layer[0].intermediate.dense
    assert torch.equal(layer.weight_quantizer.amax, layer.weight.abs().amax(1))


def test_the_quantized_model_is_close_to_the_float_one_but_not_it():
    batch = text_batch(seed=5)
    with torch.no_grad():
        before = tiny_bert()(**batch).logits
        model, statistics = prepared()
        apply_statistics(model, statistics)
        difference = (model(**batch).logits - before).abs().max()
    assert 0 < difference < 0.05 * before.abs().max()


def test_statistics_of_another_recipe_are_refused():
    _, statistics = prepared("int8_linear")
    model, _ = prepared("int8_full")
    with pytest.raises(ValueError, match="the statistics lack 10 sites of this model and recipe"):
        apply_statistics(model, statistics)
