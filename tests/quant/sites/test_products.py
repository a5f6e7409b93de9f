"""Weights that a model multiplies by itself: no quantizer reaches them, and insertion says so."""

import pytest
import torch
import transformers
from torch import nn

from quant.recipe import load_recipe
from quant.sites.plan import plan_sites
from quant.sites.products import WatchProducts
from tests.families import DECODER, FAMILIES, get_family

SIZES = {"vocab_size": 99, "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_layers": 1,
         "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "pad_token_id": 1,
         "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}  # fmt: skip


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(2, 3, 4))
        self.table = nn.Parameter(torch.randn(3, 3))
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        y = torch.einsum("bi,oi->bo", self.layer(x), self.experts[1])  # a view: one expert
        return y + self.table[0]  # looked up, not multiplied


def test_a_slice_of_a_bare_weight_is_seen_and_a_layers_own_weight_and_a_table_are_not():
    model = Fused()
    with WatchProducts(model, ["layer"]) as products, torch.no_grad():
        model(torch.randn(2, 4))
    assert list(products.found) == ["experts"]


def test_a_mixture_of_experts_says_how_much_stays_float(caplog):
    config = transformers.MixtralConfig(**DECODER, num_local_experts=4, num_experts_per_tok=2)
    sites = plan_sites(transformers.MixtralForCausalLM(config).eval(), load_recipe("int8_linear"))
    assert any(site.enabled for site in sites)
    assert "6 weights (80 % of the parameters) stay float" in caplog.text and "MixtralExperts" in caplog.text


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_of_the_table_has_such_weights(name, caplog):
    model = get_family(name).model()
    plan_sites(model, load_recipe("int8_linear"), get_family(name).batch(model, 4, 12, 0))
    assert "stay float" not in caplog.text


def test_a_model_that_does_not_run_is_named_with_its_inputs():
    model = transformers.BartForSequenceClassification(transformers.BartConfig(**SIZES)).eval()
    with pytest.raises(ValueError, match=r"BartForSequence.* does not run .*decoder_input_ids \(2, 6\): Ind"):
        plan_sites(model, load_recipe("int8_linear"))
