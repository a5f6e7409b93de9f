"""Learned rounding: what it changes, what it gains, what undoes it."""

import json

import pytest
import torch

from calib.__main__ import main
from calib.apply import apply_statistics
from calib.collect import collect
from calib.rounding import AppliedRounding, learn_codes, learned_rounding, rounded_as_told
from calib.samples import load_samples
from quant.checkpoint import load_checkpoint
from quant.insert import insert_quantizers
from quant.models.pretrained import load_float_model
from quant.modules import QuantConv1D, QuantLinear
from quant.recipe import load_recipe
from quant.sites.site import quantization_of
from quant.tensor_quantizer import quantizers_disabled
from quant.weights_digest import weights_digest
from tests.eval import tiny
from tests.families import get_family
from tests.quant.test_families import calibrated


def test_learned_codes_are_neighbours_and_err_less_where_inputs_are_correlated():
    generator = torch.Generator().manual_seed(0)
    mixed = torch.eye(48) + torch.randn(48, 48, generator=generator) / 4
    x = torch.randn(512, 48, generator=generator) @ mixed
    weight = torch.randn(32, 48, generator=generator)
    scale = weight.abs().amax(1, keepdim=True) / 7
    codes = learn_codes(weight, scale, (-7, 7), x.T @ x)
    assert codes.abs().max() <= 7 and torch.equal(codes, codes.round())
    assert ((codes - weight / scale).abs() <= 1 + 1e-5).all()
    nearest = (weight / scale).round()
    errors = [float((x @ (each * scale - weight).T).square().sum()) for each in (codes, nearest)]
    assert errors[0] < 0.7 * errors[1]


@pytest.fixture(scope="module")
def model_and_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounding")
    return str(tiny.save(tiny.bert(num_layers=1), folder / "model")), str(tiny.write_sentences(folder / "data"))


@pytest.fixture
def prepared(model_and_data):
    """A calibrated model with SmoothQuant, and its samples."""
    loaded = load_float_model(model_and_data[0])
    samples = load_samples(model_and_data[1], loaded, num_samples=24)
    insert_quantizers(loaded.model, load_recipe("int8_smoothquant"))
    apply_statistics(loaded.model, collect(loaded.model, samples, progress=False))
    return loaded.model, samples


def layers_of(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantLinear | QuantConv1D)
            and m.weight_quantizer.is_active}  # fmt: skip


def rounded(layer):
    weight = layer.smoothed_weight()
    return layer.weight_quantizer(weight)


def test_within_the_block_the_layers_compute_with_it_and_keep_their_float_weights(prepared):
    model, samples = prepared
    batch = next(iter(samples))
    with quantizers_disabled(model), torch.no_grad():
        plain = model(**batch).logits
    before, nearest = weights_digest(model), {n: rounded(layer) for n, layer in layers_of(model).items()}
    with rounded_as_told(model, load_recipe("int8_smoothquant").with_options(rounding="learned"), samples) as found:
        assert found.is_kept and found.error_after < found.error_before and set(found.gains) <= set(nearest)
        assert weights_digest(model) == before
        with quantizers_disabled(model), torch.no_grad():
            torch.testing.assert_close(model(**batch).logits, plain, rtol=0, atol=0)
        within = {n: rounded(layer) for n, layer in layers_of(model).items()}
    for name, layer in layers_of(model).items():
        torch.testing.assert_close(rounded(layer), within[name])  # the nearest of the new weight is what was learned
        scale = layer.weight_quantizer.broadcast_scale(within[name])
        assert ((within[name] - nearest[name]).abs() <= scale * 1.001).all()
        assert torch.equal(within[name], nearest[name]) == (name not in found.better)
    (fold,) = [each for each in quantization_of(model).folds if isinstance(each, AppliedRounding)]
    after = weights_digest(model)
    fold.undo()
    assert weights_digest(model) == before
    fold.redo()
    assert weights_digest(model) == after != before


@pytest.mark.parametrize("name", ["gpt2", "albert", "llama", "vit"])
def test_layers_of_other_families_and_none_that_runs_several_times(name):
    family = get_family(name)
    model = calibrated(family, family.model(is_short=name != "albert"))
    before = {n: layer.weight.detach().clone() for n, layer in layers_of(model).items()}
    with learned_rounding(model, family.batch(model, 9, 8, 0)) as found:
        assert found.num_samples == 9
    changed = [n for n, layer in layers_of(model).items() if not torch.equal(layer.weight, before[n])]
    assert sorted(changed) == (sorted(found.better) if found.is_kept else []) and set(found.better) <= set(before)
    assert not [n for n in found.gains if "albert_layers" in n]  # one layer stands for all blocks
    assert found.gains  # ALBERT's embedding projection, pooler or head


def test_where_the_held_out_samples_see_no_gain_the_model_stays_as_it_was(prepared, monkeypatch):
    model, samples = prepared
    before, nearest = weights_digest(model), {n: rounded(layer) for n, layer in layers_of(model).items()}
    monkeypatch.setattr("calib.rounding.held_out_error", lambda *_: 1.0)
    with rounded_as_told(model, load_recipe("int8_smoothquant").with_options(rounding="learned"), samples) as found:
        assert found.better and not found.is_kept and "not kept" in str(found)
        assert all(torch.equal(rounded(layer), nearest[n]) for n, layer in layers_of(model).items())
    assert weights_digest(model) == before


def test_nothing_is_learned_unless_the_recipe_says_so_or_from_a_handful_of_samples(prepared, model_and_data):
    model, samples = prepared
    before = weights_digest(model)
    with rounded_as_told(model, load_recipe("int8_smoothquant"), samples) as found:
        assert found is None
    few = load_samples(model_and_data[1], load_float_model(model_and_data[0]), num_samples=3)
    with rounded_as_told(model, load_recipe("int8_smoothquant").with_options(rounding="learned"), few) as found:
        assert not found.gains and "takes at least" in str(found)
    assert weights_digest(model) == before


def test_a_recipe_says_it_and_older_ones_keep_their_digest():
    plain = load_recipe("int8_smoothquant")
    learned = plain.with_options(rounding="learned")
    assert "rounding" not in plain.to_dict()["calibrator"] and learned.to_dict()["calibrator"]["rounding"] == "learned"
    assert learned.digest != plain.digest
    with pytest.raises(ValueError, match="calibrator rounding"):
        plain.with_options(rounding="up")


def test_the_command_learns_it_and_the_checkpoint_bears_it(model_and_data, tmp_path, capsys):
    model, data = model_and_data
    flags = ["--model", model, "--samples", data, "--num-samples", "24"]
    for name, more in (("plain", []), ("learned", ["--rounding", "learned"])):
        with pytest.raises(SystemExit) as ended:
            main([*flags, *more, "--out", str(tmp_path / name)])
        assert ended.value.code == 0
    assert "learned rounding: " in capsys.readouterr().err
    description = json.loads((tmp_path / "learned" / "quantization.json").read_text())
    assert description["provenance"]["rounding"]["kept"]
    plain, learned = (load_checkpoint(tmp_path / name).model for name in ("plain", "learned"))
    assert weights_digest(plain) != weights_digest(learned)
    assert quantization_of(learned).recipe.calibrator.rounding == "learned"
