"""SmoothQuant: the formula, exact folds found and inexact ones refused, and less error than without."""

import dataclasses

import pytest
import torch

from calib.apply import apply_statistics
from calib.collect import collect
from calib.folding import Fold
from calib.smoothquant import smoothing_scale
from quant.insert import insert_quantizers
from quant.recipe import SmoothQuantOptions, load_recipe
from tests.conftest import batch_for, text_batch, tiny_bert, tiny_llama, tiny_vit


def smoothed(model, alpha="search", recipe="int8_linear", method=None):
    recipe = dataclasses.replace(load_recipe(recipe), smoothquant=SmoothQuantOptions(alpha=alpha))
    insert_quantizers(model, recipe)
    statistics = collect(model, [batch_for(model, seed=seed) for seed in range(3)], progress=False)
    apply_statistics(model, statistics, method)
    return model


def with_outliers(model):
    """Give two channels of the first FFN's input a range a hundred times the others', as real models have."""
    norm = model.bert.encoder.layer[0].attention.output.LayerNorm
    norm.weight.data[:2] *= 100
    model.bert.encoder.layer[0].intermediate.dense.weight.data[:, :2] /= 100
    return model


def test_formula_and_its_errors():
    s = smoothing_scale(torch.tensor([4.0, 0.0, 9.0]), torch.tensor([1.0, 1.0, 4.0]), 0.5)
    assert s.tolist() == [2.0, 1.0, 1.5]
    assert torch.equal(smoothing_scale(torch.tensor([4.0]), torch.tensor([1.0]), 1.0), torch.tensor([4.0]))
    with pytest.raises(ValueError, match=r"alpha 1\.5 lie in \[0, 1\]"):
        smoothing_scale(torch.ones(2), torch.ones(2), 1.5)
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\) must agree"):
        smoothing_scale(torch.ones(2), torch.ones(3), 0.5)


def test_bert_folds_into_the_value_projection_only_and_multiplies_elsewhere():
    model = smoothed(tiny_bert(), alpha=0.8)
    how = {site.name: str(site.smoothing) for site in model.quantization.sites if site.smoothing}
    layer = "bert.encoder.layer.0."
    assert (
        how[f"{layer}attention.output.dense.input_quantizer"] == f"folded into {layer}attention.self.value, alpha 0.8"
    )
    assert how[f"{layer}intermediate.dense.input_quantizer"] == "explicit, alpha 0.8"
    assert how[f"{layer}attention.self.query.input_quantizer"] == "explicit, alpha 0.8"


def test_vit_folds_its_norms():
    model = smoothed(tiny_vit(), alpha=0.5)
    how = {site.name: str(site.smoothing) for site in model.quantization.sites if site.smoothing}
    assert (
        how["vit.layers.0.attention.q_proj.input_quantizer"] == "folded into vit.layers.0.layernorm_before, alpha 0.5"
    )
    assert how["vit.layers.0.mlp.fc1.input_quantizer"] == "folded into vit.layers.0.layernorm_after, alpha 0.5"


def test_llama_folds_norms_and_grouped_values():
    model = smoothed(tiny_llama(), alpha=0.5)
    how = {site.name: str(site.smoothing) for site in model.quantization.sites if site.smoothing}
    layer = "model.layers.0."
    assert how[f"{layer}self_attn.o_proj.input_quantizer"] == f"folded into {layer}self_attn.v_proj, alpha 0.5"
    assert how[f"{layer}mlp.gate_proj.input_quantizer"].startswith(f"folded into {layer}post_attention_layernorm")


@pytest.mark.parametrize("alpha", [0.5, 0.9])
def test_smoothing_leaves_the_float_model_as_it_is(tiny_model, alpha):
    from quant.tensor_quantizer import quantizers_disabled

    batch = batch_for(tiny_model)
    with torch.no_grad():
        before = tiny_model(**batch).logits
        smoothed(tiny_model, alpha)
        with quantizers_disabled(tiny_model):
            torch.testing.assert_close(tiny_model(**batch).logits, before, rtol=1e-4, atol=1e-5)


def test_a_norm_that_feeds_the_residual_is_no_exact_fold():
    model = tiny_bert()
    insert_quantizers(model, load_recipe("int8_linear"))
    layer = model.bert.encoder.layer[0]
    assert not Fold(layer.attention.output.LayerNorm, (layer.intermediate.dense,), 32, 8).is_exact(model)
    assert Fold(layer.attention.self.value, (layer.attention.output.dense,), 32, 8).is_exact(model)
    assert not Fold(layer.intermediate.dense, (layer.output.dense,), 64, 8).is_exact(model)  # GELU lies between


@pytest.mark.parametrize("method", ["max", "percentile", "mse", "entropy"])
def test_search_lowers_the_error_where_channels_differ(method):
    batch = text_batch(seed=9)
    errors = {}
    for alpha in (None, "search"):
        model = with_outliers(tiny_bert())
        with torch.no_grad():
            before = model(**batch).logits
            smoothed(model, alpha, method=method)
            errors[alpha] = float((model(**batch).logits - before).abs().mean())
    assert errors["search"] < 0.7 * errors[None]


def test_attention_recipes_keep_v_unfolded():
    model = smoothed(tiny_bert(), 0.8, "int8_attention")
    how = [
        str(s.smoothing) for s in model.quantization.sites if s.name.endswith("attention.output.dense.input_quantizer")
    ]
    assert how == ["explicit, alpha 0.8"] * 2
