"""Folds by architecture: which tensor's 1/s goes where, and that the float model stays what it was."""

import pytest
import torch

from calib.folding import Fold
from quant.insert import insert_quantizers
from quant.recipe import load_recipe
from quant.tensor_quantizer import quantizers_disabled
from tests.calib.test_smoothquant import smoothed
from tests.families import FAMILIES, padded_batch

# Family → its layer 0, and there: the layer that reads, and the producer that 1/s is folded into (None: explicit).
FOLDS = {
    "gpt2": ("transformer.h.0.", {"attn.c_attn": "ln_1", "attn.c_proj": "attn.c_attn", "mlp.c_fc": "ln_2",
                                  "mlp.c_proj": None}),
    "opt": ("model.decoder.layers.0.", {"self_attn.q_proj": "self_attn_layer_norm", "self_attn.out_proj":
            "self_attn.v_proj", "fc1": "final_layer_norm", "fc2": "fc1"}),
    **dict.fromkeys(("llama", "qwen2", "mistral"), ("model.layers.0.", {
        "self_attn.q_proj": "input_layernorm", "self_attn.o_proj": "self_attn.v_proj",
        "mlp.gate_proj": "post_attention_layernorm", "mlp.down_proj": "mlp.up_proj"})),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDS)
def test_each_fold_of_a_family_leaves_the_float_model_as_it_is(name):
    model = FAMILIES[name].model()
    batch = padded_batch(model)
    with torch.no_grad():
        before = model(**batch).logits
        smoothed(model, 0.5)
        with quantizers_disabled(model):
            after = model(**batch).logits
    assert (after - before).abs().max() < 1e-5 * before.abs().max()
    layer, folds = FOLDS[name]
    how = {site.name: str(site.smoothing) for site in model.quantization.sites if site.smoothing}
    for reader, producer in folds.items():
        expected = "explicit" if producer is None else f"folded into {layer}{producer}"
        assert how[f"{layer}{reader}.input_quantizer"] == f"{expected}, alpha 0.5"


def test_grouped_heads_of_v_carry_one_factor_for_all_their_readers():
    model = FAMILIES["llama"].model()
    insert_quantizers(model, load_recipe("int8_linear"))
    attention = model.model.layers[0].self_attn
    fold = Fold(attention.v_proj, (attention.o_proj,), 32, 8)
    s = fold.constrain(torch.arange(1.0, 33.0))
    heads = s.reshape(4, 8)  # heads 0 and 1 read the first head of V, 2 and 3 the second
    assert torch.equal(heads[0], heads[1]) and torch.equal(heads[2], heads[3])
    assert torch.equal(heads[0], torch.arange(9.0, 17.0))  # the larger of each pair
    before = attention.v_proj.weight.clone()
    fold.apply(s)
    torch.testing.assert_close(attention.v_proj.weight, before / torch.cat([heads[0], heads[2]])[:, None])


def test_only_the_channels_of_v_change_in_a_joint_product():
    model = FAMILIES["gpt2"].model()
    insert_quantizers(model, load_recipe("int8_linear"))
    attention = model.transformer.h[0].attn
    site = next(s for s in model.quantization.sites if s.name == "transformer.h.0.attn.c_proj.input_quantizer")
    assert site.producer_channels == (64, 96)
    before = attention.c_attn.weight.clone(), attention.c_attn.bias.clone()
    Fold(attention.c_attn, (attention.c_proj,), 32, 8, site.producer_channels).apply(torch.full((32,), 2.0))
    assert torch.equal(attention.c_attn.weight[:, :64], before[0][:, :64])
    assert torch.equal(attention.c_attn.weight[:, 64:], before[0][:, 64:] / 2)


def test_a_tensor_that_has_a_quantizer_of_its_own_is_not_folded():
    model = FAMILIES["llama"].model()
    insert_quantizers(model, load_recipe("int8_attention"))
    layer = model.model.layers[0]
    assert not Fold(layer.self_attn.v_proj, (layer.self_attn.o_proj,), 32, 8).is_exact(model)  # V's amax would be off
    assert Fold(layer.mlp.up_proj, (layer.mlp.down_proj,), 64, 8).is_exact(model)
    assert not Fold(layer.mlp.gate_proj, (layer.mlp.down_proj,), 64, 8).is_exact(model)  # SiLU lies between
