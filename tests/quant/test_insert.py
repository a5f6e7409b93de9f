"""Insertion: which sites there are, which share a tensor, and why each is on or off."""

import pytest
import torch
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

from calib.apply import apply_statistics
from calib.collect import collect
from quant.checkpoint import load_checkpoint, save_checkpoint
from quant.insert import insert_quantizers
from quant.modules import QUANT_LAYER_TYPES, QuantConv1D, QuantConv2d, QuantLinear
from quant.recipe import load_recipe, recipe_from_dict, shipped_recipes
from quant.sites.layer_class import quant_class
from quant.sites.plan import plan_sites
from quant.sites.site import quantization_of
from quant.sites.summary import summarize_sites
from quant.tensor_quantizer import quantizers_disabled
from tests.conftest import batch_for, text_batch, tiny_bert, tiny_gpt2, tiny_vit
from tests.test_house import ROOT

OFF = {"match": "*", "enable": False}


def on(sites, kind):
    return [site for site in sites if site.kind == kind and site.enabled]


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_every_shipped_recipe_fits_every_family_and_bypassed_it_is_the_float_model(tiny_model, recipe):
    batch = batch_for(tiny_model)
    with torch.no_grad():
        before = tiny_model(**batch).logits
        keys = set(tiny_model.state_dict())
        sites = insert_quantizers(tiny_model, load_recipe(recipe))
        with quantizers_disabled(tiny_model):
            after = tiny_model(**batch).logits
    assert on(sites, "linear")
    assert keys <= set(tiny_model.state_dict())
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


def test_q_k_and_v_share_one_quantizer_and_the_head_is_off(bert):
    sites = insert_quantizers(bert, load_recipe("int8_linear"))
    attention = bert.bert.encoder.layer[0].attention.self
    assert attention.query.input_quantizer is attention.key.input_quantizer is attention.value.input_quantizer
    assert attention.query.input_quantizer is not bert.bert.encoder.layer[1].attention.self.query.input_quantizer
    assert attention.query.weight_quantizer is not attention.key.weight_quantizer
    inputs = [site for site in on(sites, "linear") if not site.is_weight]
    assert len(inputs) == 2 * 4  # per layer: QKV, attention output, FFN in, FFN out
    assert inputs[0].consumers == tuple(f"bert.encoder.layer.0.attention.self.{n}" for n in ("query", "key", "value"))
    assert "shared by 3 layers" in inputs[0].reason
    off = {site.name: site.reason for site in sites if not site.enabled}
    assert "classifier" in off["classifier.input_quantizer"] and "pooler" in off["bert.pooler.dense.weight_quantizer"]


def tables_of(model):
    recipe = load_recipe(ROOT / "benchmarks" / "recipes" / "int8_compact.yaml")
    return {site.consumers[0].rpartition(".")[2]: site.enabled
            for site in insert_quantizers(model, recipe) if site.kind == "embedding"}  # fmt: skip


def test_compact_quantizes_tables_of_words_and_leaves_positions(bert, llama):
    assert tables_of(bert) == {"word_embeddings": True, "token_type_embeddings": True, "position_embeddings": False}
    assert tables_of(llama) == {"embed_tokens": True}
    assert tables_of(tiny_gpt2()) == {"wte": True, "wpe": False}


def test_gate_and_up_share_one_quantizer(llama):
    insert_quantizers(llama, load_recipe("int8_linear"))
    mlp = llama.model.layers[0].mlp
    assert mlp.gate_proj.input_quantizer is mlp.up_proj.input_quantizer
    assert mlp.down_proj.input_quantizer is not mlp.gate_proj.input_quantizer
    assert not llama.lm_head.input_quantizer.enabled


def test_a_layer_switched_off_alone_does_not_switch_off_those_that_read_the_same_tensor(bert):
    recipe = recipe_from_dict({"name": "r", "rules": [OFF, {"kind": "linear"}, {"match": "*value*", "enable": False}]})
    insert_quantizers(bert, recipe)
    attention = bert.bert.encoder.layer[0].attention.self
    assert attention.query.input_quantizer.enabled and attention.query.input_quantizer is attention.key.input_quantizer
    assert not attention.value.input_quantizer.enabled and not attention.value.weight_quantizer.enabled


def test_full_puts_one_quantizer_on_each_norm_output_and_none_behind_it(bert):
    sites = insert_quantizers(bert, load_recipe("int8_full"))
    names = {site.name for site in on(sites, "norm_output")}
    assert names == {
        "bert.embeddings.LayerNorm.output_quantizer", "bert.encoder.layer.0.output.LayerNorm.output_quantizer",
        "bert.encoder.layer.0.attention.output.LayerNorm.output_quantizer",
        "bert.encoder.layer.1.attention.output.LayerNorm.output_quantizer",
    }  # fmt: skip
    by_name = {site.name: site for site in sites}
    query = by_name["bert.encoder.layer.0.attention.self.query.input_quantizer"]
    assert not query.enabled and query.reason == "reads bert.embeddings.LayerNorm.output_quantizer"
    assert by_name["bert.encoder.layer.1.output.LayerNorm.output_quantizer"].reason == "no quantized product reads it"


def test_attention_sites_and_the_softmax_amax_of_one(vit):
    sites = insert_quantizers(vit, load_recipe("int8_attention"))
    assert len(on(sites, "bmm")) == 6 and len(on(sites, "softmax")) == 2
    softmax = next(site for site in on(sites, "softmax"))
    assert vit.get_submodule(softmax.name).amax.item() == 1


def test_layer_types(vit):
    insert_quantizers(vit, load_recipe("int8_linear"))
    kinds = {type(module) for module in vit.modules()}
    assert QuantConv2d in kinds and QuantLinear in kinds
    gpt2 = tiny_gpt2()
    insert_quantizers(gpt2, load_recipe("int8_linear"))
    assert isinstance(gpt2.transformer.h[0].attn.c_attn, QuantConv1D)


def test_padding_does_not_reach_the_logits(bert):
    batch = text_batch()
    other = {**batch, "input_ids": torch.where(batch["attention_mask"] == 1, batch["input_ids"], 42)}
    insert_quantizers(bert, load_recipe("int8_attention"))
    with torch.no_grad(), quantizers_disabled(bert):
        torch.testing.assert_close(bert(**batch).logits, bert(**other).logits)


def test_a_rule_that_matches_nothing_is_refused_unless_optional():
    rules = [OFF, {"kind": "linear"}, {"match": "*layer.7.*"}, {"match": "*encoder.x*", "optional": True}]
    with pytest.raises(ValueError, match=r"1 rules match no quantizer of this model: \{match: '\*layer\.7\.\*'"):
        plan_sites(tiny_bert(), recipe_from_dict({"name": "r", "rules": rules}))


def test_a_second_insertion_and_a_float_model_are_refused(bert):
    with pytest.raises(RuntimeError, match="has no quantizers; call insert_quantizers"):
        quantization_of(bert)
    insert_quantizers(bert, load_recipe("int8_linear"))
    with pytest.raises(RuntimeError, match="already has quantizers"):
        insert_quantizers(bert, load_recipe("int8_linear"))


def test_summary_counts_every_kind():
    table = summarize_sites(plan_sites(tiny_vit(), load_recipe("int8_full")))
    assert table.splitlines()[0].startswith("kind")
    assert {line.split()[0] for line in table.splitlines()[1:]} == {"linear", "conv", "norm_output", "bmm", "softmax"}


class OwnLinear(torch.nn.Linear):
    """Falcon's: the same product by another formula."""

    def forward(self, input):
        return input @ self.weight.T if self.bias is None else input @ self.weight.T + self.bias


class Doubled(torch.nn.Linear):
    """The same name and parameters, another function."""

    def forward(self, input):
        return 2 * super().forward(input)


class Noisy(torch.nn.Linear):
    """A linear layer in evaluation alone."""

    def forward(self, input):
        return super().forward(input * 0.5 if self.training else input)


class Standardized(torch.nn.Conv2d):
    """A convolution of another weight than its parameter."""

    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight / weight.std(), bias)


class Padded(torch.nn.Conv2d):
    """Whose forward is torch's own."""


def test_a_subclass_counts_as_its_base_where_it_computes_the_same():
    for layer in (OwnLinear(6, 4), OwnLinear(6, 4, bias=False), Padded(3, 8, 3, stride=2, dilation=2, padding=1)):
        assert issubclass(quant_class(layer), type(layer)) and issubclass(quant_class(layer), QUANT_LAYER_TYPES)
    own = OwnLinear(4, 4)
    own.forward = lambda x: x
    others = (Doubled(4, 4), Noisy(4, 4), Standardized(3, 8, 3), own, torch.nn.LayerNorm(4), torch.nn.Linear(4, 4))
    assert [quant_class(layer) for layer in others] == [None, None, None, None, None, QuantLinear]
    assert all(layer.training for layer in others)
    conv = Standardized(3, 8, 3)
    conv.__class__._conv_forward = torch.nn.Conv2d._conv_forward  # as a control: nothing but the weight was another
    assert quant_class(conv) is not None


def falcon():
    torch.manual_seed(0)
    config = FalconConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    return FalconForCausalLM(config).eval()


def test_falcons_own_linear_layers_are_quantized_and_come_back_from_a_checkpoint(tmp_path):
    model, batch = falcon(), text_batch(padded=False)
    with torch.no_grad():
        before = model(**batch).logits
        sites = insert_quantizers(model, load_recipe("int8_linear"))
        assert len([site for site in on(sites, "linear") if site.is_weight]) == 2 * 4
        with quantizers_disabled(model):
            torch.testing.assert_close(model(**batch).logits, before, rtol=1e-5, atol=1e-6)
        apply_statistics(model, collect(model, [batch], progress=False))
        save_checkpoint(model, tmp_path / "c")
        assert torch.equal(load_checkpoint(tmp_path / "c").model(**batch).logits, model(**batch).logits)


def test_layers_that_the_example_does_not_reach_are_named_and_run_as_float(caplog):
    torch.manual_seed(0)
    config = SwitchTransformersConfig(vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
                                      num_experts=8, decoder_start_token_id=0)  # fmt: skip
    model = SwitchTransformersForConditionalGeneration(config).eval()
    sites = insert_quantizers(model, load_recipe("int8_linear"))
    missed = [s.consumers[0] for s in sites if s.reason == "the traced forward did not reach this layer"]
    assert missed and f"{len(missed)} layers (" in caplog.text
    assert f"stay float, as the example inputs do not reach them: {missed[0]}" in caplog.text
    for name in missed:
        layer = model.get_submodule(name)
        x = torch.randn(2, layer.in_features)
        assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


def test_a_model_of_which_nothing_is_quantized_is_refused(bert):
    recipe = recipe_from_dict({"name": "r", "rules": [OFF]})
    with pytest.raises(ValueError, match=r"recipe 'r' switches on none of the \d+ quantizers of Bert.*: rule .*Switch"):
        insert_quantizers(bert, recipe)
    assert not hasattr(bert, "quantization")
