"""From statistics to amax: every method without another pass, exact weights, mismatches refused."""

import copy

import pytest
import torch

from calib.apply import apply_statistics
from calib.collect import collect
from calib.folding import Fold, apply_fold
from calib.histogram import Histogram
from quant.checkpoint import load_checkpoint, save_checkpoint
from quant.insert import insert_quantizers
from quant.modules import QuantLinear
from quant.recipe import METHODS, load_recipe
from quant.sites.site import How
from quant.weights_digest import weights_digest
from tests.conftest import batch_for, text_batch, tiny_bert, tiny_gpt2, tiny_llama, tiny_vit
from training.qat import start_qat


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


def smoothed(make=tiny_llama):
    model = make()
    insert_quantizers(model, load_recipe("int8_smoothquant"))
    return model, collect(model, [batch_for(model, seed=seed) for seed in range(2)], progress=False)


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("make", [tiny_llama, tiny_bert, tiny_vit, tiny_gpt2])
def test_one_calibrator_after_another_leaves_what_the_last_one_alone_does(make):
    alone, statistics = smoothed(make)
    apply_statistics(alone, statistics, "mse")
    model, statistics = smoothed(make)
    for method in ("max", "entropy", "mse"):
        apply_statistics(model, statistics, method)
    assert any(site.smoothing is not None and site.smoothing.how is How.FOLDED for site in model.quantization.sites)
    expected, got = state(alone), state(model)
    assert set(got) == set(expected) and all(torch.equal(got[key], expected[key]) for key in got)
    assert model.quantization == alone.quantization
    again = copy.deepcopy(model)  # a copy bears folds of its own
    apply_statistics(again, statistics, "max")
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_statistics_of_other_weights_are_refused_and_change_nothing():
    model, statistics = smoothed()
    apply_statistics(model, statistics)
    before = state(model)
    other = tiny_llama(seed=1)
    insert_quantizers(other, load_recipe("int8_smoothquant"))
    with pytest.raises(ValueError, match=r"taken from other weights \([0-9a-f]{12}\) than this model's.*collect again"):
        apply_statistics(other, statistics)
    foreign = collect(other, [text_batch()], progress=False)
    with pytest.raises(ValueError, match="taken from other weights"):
        apply_statistics(model, foreign)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    apply_statistics(model, collect(model, [text_batch()], progress=False))  # of the folded weights themselves: right
    start_qat(model, model.quantization.recipe.qat)
    assert not model.quantization.folds


def test_the_digest_is_of_values_not_of_storage():
    model = tiny_bert()
    digest = weights_digest(model)
    insert_quantizers(model, load_recipe("int8_full"))
    assert weights_digest(model) == digest  # quantizers are no weights
    layer = model.classifier
    layer.weight.data = layer.weight.data.t().contiguous().t()
    assert not layer.weight.is_contiguous() and weights_digest(model) == digest
    layer.weight.data[0, 0] += 1e-3
    assert weights_digest(model) != digest
    assert weights_digest(tiny_bert().bfloat16()) not in (digest, weights_digest(tiny_bert().bfloat16().float()))


def test_a_fold_is_undone_to_the_bit_also_where_a_product_leaves_the_normal_floats():
    torch.manual_seed(0)
    producer, consumer = QuantLinear(8, 8), QuantLinear(8, 8)
    producer.weight.data[0, 0], producer.weight.data[1, 1], consumer.weight.data[0, 0] = 1e-42, -0.0, 3e38
    before = [each.clone() for each in (producer.weight, producer.bias, consumer.weight)]
    s = torch.logspace(-4, 4, 8)
    done = apply_fold(Fold(producer, (consumer,), 8, 1), s.flip(0))
    done.undo()
    after = (producer.weight, producer.bias, consumer.weight)
    assert all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(before, after, strict=True))


def test_layers_that_no_sample_reaches_stay_float_and_are_named(caplog, tmp_path):
    model, statistics = prepared("int8_linear")
    name = "bert.encoder.layer.1.intermediate.dense"
    statistics.sites[f"{name}.input_quantizer"].histogram = Histogram()  # as an expert's that no token went to
    apply_statistics(model, statistics)
    assert f"no sample reached 1 sites: {name}.input_quantizer They stay float" in caplog.text
    off = {s.name for s in model.quantization.sites if s.reason == "no calibration sample reached this layer"}
    assert off == {f"{name}.input_quantizer", f"{name}.weight_quantizer"}
    layer, x = model.get_submodule(name), torch.randn(2, 32)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
    save_checkpoint(model, tmp_path / "c")
    with torch.no_grad():
        assert torch.equal(load_checkpoint(tmp_path / "c").model(**text_batch()).logits, model(**text_batch()).logits)
    for site in statistics.sites.values():
        site.histogram = Histogram()
    with pytest.raises(ValueError, match=r"and all other sites saw no value; were all samples padding\?"):
        apply_statistics(model, statistics)
