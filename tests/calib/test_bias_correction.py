"""Bias correction: what it changes, what judges it, what undoes it."""

import copy
import json

import pandas as pd
import pytest
import torch

from calib.__main__ import main
from calib.apply import apply_statistics
from calib.bias_correction import MIN_SAMPLES, correct_biases, relative_error
from calib.collect import collect
from quant.insert import insert_quantizers
from quant.models.example_inputs import example_inputs
from quant.modules import QUANT_LAYER_TYPES
from quant.recipe import load_recipe
from quant.tensor_quantizer import quantizers_disabled
from quant.weights_digest import weights_digest
from tests.conftest import text_batch, tiny_bert
from tests.families import ENCODER_DECODERS, get_family

LAYER = "bert.encoder.layer.0.intermediate.dense"


def prepared(recipe="int8_linear", model=None, batch=None):
    """A calibrated model whose first FFN is rounded so coarsely that its outputs shift, and its statistics."""
    model = model or tiny_bert()
    insert_quantizers(model, load_recipe(recipe), batch)
    statistics = collect(model, [batch or text_batch(16, seed=seed) for seed in range(2)], progress=False)
    apply_statistics(model, statistics)
    return model, statistics


def shifted(seed=0):
    model, statistics = prepared()
    layer = model.get_submodule(LAYER)
    layer.weight_quantizer.set_amax(layer.weight_quantizer.amax * 0.4)  # clips: as a bad calibrator would
    return model, statistics


def outputs(model, batch, name):
    seen = []
    handle = model.get_submodule(name).register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return seen[0][batch["attention_mask"].bool()]


def test_a_layers_weighted_mean_is_the_float_layers_over_all_samples():
    model, _ = shifted()
    batch = text_batch(24, seed=9)
    with quantizers_disabled(model):
        target = outputs(model, batch, LAYER)
    done = correct_biases(model, batch)
    assert done.is_kept and LAYER in done.layers and done.error_after < done.error_before
    weight = 1 / target.square().sum(1, keepdim=True)
    shift = ((target - outputs(model, batch, LAYER)) * weight).sum(0) / weight.sum()
    torch.testing.assert_close(shift, torch.zeros_like(shift), atol=2e-6, rtol=0)


def test_only_biases_of_quantized_layers_change_and_the_head_stays():
    model, _ = shifted()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    done = correct_biases(model, text_batch(24, seed=9))
    changed = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert changed == {f"{layer}.bias" for layer in done.layers} and "classifier.bias" not in changed


def test_a_correction_that_held_out_samples_do_not_confirm_leaves_no_trace(monkeypatch):
    model, _ = shifted()
    before = weights_digest(model)
    monkeypatch.setattr("calib.bias_correction.relative_error", Falling())
    done = correct_biases(model, text_batch(24, seed=9))
    assert not done.is_kept and done.layers and weights_digest(model) == before
    assert "not kept" in str(done) and model.quantization.folds == ()


class Falling:
    """A judge that finds the corrected model worse."""

    def __init__(self):
        self.found = iter([0.1, 0.2])

    def __call__(self, *_):
        return next(self.found)


@pytest.mark.parametrize("recipe", ["int8_full", "int8_smoothquant"])
def test_statistics_are_applied_again_after_it_as_if_it_had_not_been(recipe):
    model, statistics = prepared(recipe)
    alone = copy.deepcopy(model)
    apply_statistics(alone, statistics, "mse")
    assert correct_biases(model, text_batch(24, seed=9)).layers
    apply_statistics(model, statistics, "mse")
    assert all(torch.equal(x, alone.state_dict()[name]) for name, x in model.state_dict().items())


def test_padding_and_a_second_call_say_the_same():
    model, _ = shifted()
    again = copy.deepcopy(model)
    batch = text_batch(24, seed=9)
    longer = {name: torch.nn.functional.pad(x, (0, 5)) for name, x in batch.items()}
    correct_biases(model, batch)
    correct_biases(again, longer)
    torch.testing.assert_close(model.get_submodule(LAYER).bias, again.get_submodule(LAYER).bias)


def test_layers_that_run_several_times_or_have_no_bias_stay():
    family = get_family("albert")
    model = family.model()
    done = correct_biases(
        prepared("int8_full", model, family.batch(model, 8, 12, 0))[0], family.batch(model, 24, 12, 3)
    )
    assert all("albert_layers" not in layer for layer in done.layers)
    llama = get_family("llama").model()
    batch = get_family("llama").batch(llama, 8, 12, 0)
    done = correct_biases(prepared("int8_linear", llama, batch)[0], batch)
    assert done.num_layers == 0 and not done.is_kept and "no quantized layer has a bias" in str(done)


def test_too_few_samples_are_told():
    model, _ = shifted()
    before = weights_digest(model)
    done = correct_biases(model, text_batch(MIN_SAMPLES - 1))
    assert not done.is_kept and "at least 6 samples" in str(done) and weights_digest(model) == before


@pytest.mark.parametrize("name", ["vit", "swin", "gpt2", "clip", "deberta_v2", "mobilevit"])
def test_families_go_through(name):
    family = get_family(name)
    model = family.model()
    prepared("int8_full", model, family.batch(model, 8, 12, 0))
    done = correct_biases(model, family.batch(model, 12, 12, 3))
    has_bias = any(isinstance(m, QUANT_LAYER_TYPES) and m.bias is not None for m in model.modules())
    assert bool(done.num_layers) == has_bias and done.error_before >= 0


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoders_go_through(name):
    model = ENCODER_DECODERS[name].model(is_short=True)
    batch = example_inputs(model, batch_size=12, seq_length=12)
    prepared("int8_linear", model, batch)
    encoder_alone = {k: x for k, x in batch.items() if not k.startswith("decoder")}  # it then writes for itself
    assert correct_biases(model, encoder_alone).num_samples == 12


def test_the_relative_error_weighs_every_position_alike():
    target = torch.tensor([[[1.0, 0.0], [0.0, 100.0], [9.0, 9.0]]])
    x = target + torch.tensor([[[0.1, 0.0], [10.0, 0.0], [50.0, 0.0]]])
    mask = torch.tensor([[True, True, False]])
    assert relative_error(x, target, mask) == pytest.approx(0.1)


def test_the_command_corrects_says_so_and_can_leave_it(tmp_path, capsys, text_model):
    folder = tmp_path / "model"
    text_model.model.save_pretrained(folder)
    text_model.processor.save_pretrained(folder)
    pd.DataFrame({"text": [f"word {i} and {i * 7} more" for i in range(24)]}).to_csv(tmp_path / "rows.csv", index=False)
    told = {}
    for choice in ("auto", "off"):
        words = ["--model", str(folder), "--samples", str(tmp_path / "rows.csv"), "--out", str(tmp_path / choice)]
        with pytest.raises(SystemExit) as ended:
            main([*words, "--bias-correction", choice, "--num-samples", "24"])
        assert ended.value.code == 0
        told[choice] = capsys.readouterr().err
    content = {choice: json.loads((tmp_path / choice / "quantization.json").read_text()) for choice in told}
    assert "bias correction: " in told["auto"] and "bias correction" not in told["off"]
    assert content["auto"]["provenance"]["bias_correction"]["num_samples"] == 24
    assert "bias_correction" not in content["off"]["provenance"]
    assert content["off"]["recipe"]["calibrator"]["bias_correction"] == "off"
    assert "bias_correction" not in content["auto"]["recipe"]["calibrator"]  # the digest of shipped recipes stays
