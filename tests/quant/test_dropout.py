"""QAT computes what is exported: nothing random in training unless asked for, and all of it put back after."""

import json

import pytest
import torch
import transformers

from calib.apply import apply_statistics
from calib.collect import collect
from quant.attention import explicit_attention
from quant.checkpoint import save_checkpoint
from quant.dropout import switch_dropout_off
from quant.insert import insert_quantizers
from quant.models.example_inputs import OUTPUT_NAMES
from quant.recipe import QatOptions, load_recipe
from quant.tensor_quantizer import TensorQuantizer
from tests.families import ENCODER_DECODERS, FAMILIES, Family
from training.qat import finish_qat, start_qat

# Rates that the families' small configurations leave at 0 by default, so that each kind of noise is there.
NOISE = {"drop_path_rate": 0.5, "layerdrop": 0.5, "encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5,
         "attention_dropout": 0.3, "dropout": 0.3, "hidden_dropout_prob": 0.3}  # fmt: skip


def noisy(family: Family):
    """Return the family's model with every kind of noise that its configuration knows, calibrated."""
    known = getattr(transformers, family.model_class).config_class().to_dict()
    rates = {name: rate for name, rate in NOISE.items() if name in known}
    model = Family(family.model_class, {**family.config, **rates}, family.title, family.batch).model()
    batch = family.batch(model, 4, 12, 0)
    insert_quantizers(model, load_recipe("int8_full"), batch)
    apply_statistics(model, collect(model, [batch], progress=False))
    return model, batch


def outputs(model, batch):
    with torch.no_grad():
        result = model(**batch)
    return [result[name] for name in OUTPUT_NAMES if result.get(name) is not None]


@pytest.mark.parametrize("name", [*FAMILIES, *ENCODER_DECODERS])
def test_without_dropout_training_computes_what_evaluation_does(name):
    model, batch = noisy((FAMILIES | ENCODER_DECODERS)[name])
    start_qat(model, QatOptions())
    expected = outputs(model.eval(), batch)
    model.train()
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(outputs(model, batch), expected, strict=True))


@pytest.mark.parametrize("name", ["bert", "swin", "beit", "segformer", "mobilevit", "whisper"])
def test_after_training_the_noise_is_back_and_a_saved_configuration_never_lost_it(tmp_path, name):
    model, _ = noisy((FAMILIES | ENCODER_DECODERS)[name])
    before = {key: dict(vars(module)) for key, module in model.named_modules()}
    types = [type(module) for module in model.modules()]
    config = {key: value for key, value in model.config.to_dict().items() if "drop" in key}
    start_qat(model, QatOptions(activation_ranges="frozen", weight_ranges="frozen"))
    save_checkpoint(model, tmp_path / "c")
    saved = json.loads((tmp_path / "c" / "config.json").read_text())
    assert config and all(saved[key] == value for key, value in config.items() if key in saved)
    finish_qat(model)
    assert [type(module) for module in model.modules()] == types
    assert {key: value for key, value in model.config.to_dict().items() if "drop" in key} == config
    for key, module in model.named_modules():
        now = vars(module)
        assert all(now[n] == value for n, value in before[key].items() if isinstance(value, (float, bool)))


def test_dropout_stays_on_where_the_recipe_says_so():
    model, batch = noisy(FAMILIES["bert"])
    start_qat(model, QatOptions(dropout=True))
    first, second = (outputs(model.train(), batch)[0] for _ in range(2))
    assert not torch.equal(first, second)


def test_rates_that_a_forward_reads_from_the_configuration_and_the_router_are_off_too():
    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, conv_dim=(16, 16),
        conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2, layerdrop=0.9, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, mask_time_prob=0.5, mask_time_length=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Wav2Vec2Model(config).train()
    wave = {"input_values": torch.randn(2, 800)}
    assert not torch.equal(model(**wave).last_hidden_state, model(**wave).last_hidden_state)
    switch_dropout_off(model)
    expected = model.eval()(**wave).last_hidden_state
    assert torch.equal(model.train()(**wave).last_hidden_state, expected)


def test_attention_dropout_stands_behind_the_softmax_quantizer_and_is_not_clipped():
    torch.manual_seed(0)
    module = torch.nn.Module().train()
    module.softmax_quantizer = TensorQuantizer()
    module.softmax_quantizer.set_amax(torch.ones(1))
    q = torch.zeros(1, 1, 4, 8)
    mask = torch.full((4, 4), -1e9).fill_diagonal_(0)  # each query sees itself alone: p = 1
    _, weights = explicit_attention(module, q, q, q, mask, dropout=0.5)
    kept = weights[weights > 0]
    assert len(kept) and torch.equal(kept, torch.full_like(kept, 2.0))  # p / (1 - rate)
