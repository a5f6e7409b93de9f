"""Each family of tests/families.py once: insertion, calibration, checkpoint and the file that ONNX Runtime runs.

`make test-all` exports every family, `make test` four that differ most. The whole matrix (every recipe, every target,
engines, QAT) is `make families`.
"""

import numpy as np
import pytest
import torch

from calib.apply import apply_statistics
from calib.collect import collect
from engine.backends.onnxruntime.backend import OrtRunner, plain_session
from engine.passes.qdq import prepare_for_target
from quant.checkpoint import load_checkpoint, save_checkpoint
from quant.insert import insert_quantizers
from quant.models.example_inputs import OUTPUT_NAMES
from quant.onnx_export import export_onnx
from quant.own_attention import OWN_ATTENTIONS
from quant.recipe import load_recipe
from quant.sites.plan import plan_sites
from quant.tensor_quantizer import quantizers_disabled
from tests.families import FAMILIES, get_family

# Of the samples: in the others an element lies so near the middle of two integers that another order of a sum rounds
# it the other way. A wrong scale, a lost mask or a lost bias moves every sample.
MIN_EXACT_SHARE = 0.5


# An encoder, one with an attention of our own, an image model, a decoder: exporting a family takes seconds.
QUICK = {"bert", "deberta_v2", "vit", "llama"}
assert FAMILIES.keys() >= QUICK
EXPORTED = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name, family in FAMILIES.items() if not family.is_slow
]  # fmt: skip


def outputs_of(model, batch):
    with torch.no_grad():
        output = model(**batch)
    return {name: output[name].numpy() for name in OUTPUT_NAMES if output.get(name) is not None}


def calibrated(family, model, recipe="int8_full"):
    insert_quantizers(model, load_recipe(recipe), family.batch(model, 4, 12, 0))
    apply_statistics(model, collect(model, [family.batch(model, 4, 12, seed) for seed in range(2)], progress=False))
    return model


def share_of_equal_samples(got, expected, mask):
    """Return the share of samples whose outputs agree to 1e-5; those of padding, and logits of pairs, do not count."""
    equal = np.ones(len(next(iter(expected.values()))), bool)
    for name in [name for name in expected if name != "logits_per_image"]:
        difference = np.abs(got[name] - expected[name])
        if mask is not None and difference.shape[:2] == mask.shape and name.endswith(("logits", "hidden_state")):
            difference[~mask.numpy().astype(bool)] = 0
        equal &= difference.reshape(len(difference), -1).max(1) <= 1e-5
    return equal.mean()


@pytest.mark.parametrize("name", FAMILIES)
def test_insertion_keeps_the_float_model_and_a_checkpoint_every_bit(tmp_path, name):
    family = get_family(name)
    model = family.model()
    batch = family.batch(model, 4, 12, 3)
    before = outputs_of(model, batch)
    calibrated(family, model)
    with quantizers_disabled(model):
        for key, value in outputs_of(model, batch).items():
            np.testing.assert_allclose(value, before[key], rtol=1e-4, atol=1e-5)
    quantized = outputs_of(model, batch)
    assert all(np.abs(quantized[key] - before[key]).max() > 1e-4 for key in before)  # it does round
    save_checkpoint(model, tmp_path / "c")
    loaded = load_checkpoint(tmp_path / "c").model
    assert loaded.quantization == model.quantization
    for key, value in outputs_of(loaded, batch).items():
        np.testing.assert_array_equal(value, quantized[key])


@pytest.mark.parametrize("name", EXPORTED)
def test_the_file_for_onnx_runtime_agrees_at_another_shape(name):
    family = get_family(name)
    model = calibrated(family, family.model(is_short=True))
    proto = prepare_for_target(export_onnx(model), "onnxruntime")
    batch = family.batch(model, 5, 17, 4)
    runner = OrtRunner(plain_session(proto.SerializeToString()), {})
    got = runner({name: batch[name].numpy() for name in runner.input_names})
    assert share_of_equal_samples(got, outputs_of(model, batch), batch.get("attention_mask")) >= MIN_EXACT_SHARE


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_is_quantized_but_where_the_registry_says_so_and_every_site_has_its_reason(name):
    family = get_family(name)
    model = family.model()
    sites = plan_sites(model, load_recipe("int8_full"), family.batch(model, 4, 12, 0))
    off = {site.consumers for site in sites if not site.enabled and site.kind in ("bmm", "softmax")}
    assert off == {(module,) for module in family.float_attention} and all(site.reason for site in sites)
    assert any(site.kind == "softmax" for site in sites)


def test_attention_that_int8kit_does_not_know_stays_float_and_says_so(monkeypatch):
    monkeypatch.setattr("quant.own_attention.OWN_ATTENTIONS", {})
    model = get_family("mpnet").model()
    sites = plan_sites(model, load_recipe("int8_full"))
    softmax = [site for site in sites if site.kind == "softmax"]
    assert [site.name for site in softmax] == [
        f"mpnet.encoder.layer.{i}.attention.attn.softmax_quantizer" for i in (0, 1)
    ]
    assert all(
        not s.enabled and s.reason.startswith("transformers' attention interface does not reach") for s in softmax
    )


@pytest.mark.parametrize(
    "options", [{}, {"share_att_key": False}, {"pos_att_type": ["c2p"]}, {"relative_attention": False}]
)
def test_debertas_attention_equals_transformers_own(options):
    family = get_family("deberta_v2")
    model = type(family)(family.model_class, {**family.config, **options}, "").model()
    batch = family.batch(model, 4, 12, 0)
    before = outputs_of(model, batch)["logits"]
    insert_quantizers(model, load_recipe("int8_attention"), batch)
    assert type(model.deberta.encoder.layer[0].attention.self) in OWN_ATTENTIONS.values()
    with quantizers_disabled(model):
        np.testing.assert_allclose(outputs_of(model, batch)["logits"], before, atol=1e-5)


def test_a_plan_leaves_the_float_model_as_it_was():
    model = get_family("mpnet").model()
    types = [type(module) for module in model.modules()]
    plan_sites(model, load_recipe("int8_full"))
    assert [type(module) for module in model.modules()] == types
    assert not any("attend" in vars(module) for module in model.modules())


def test_what_a_layer_with_several_inputs_reads_is_rounded_once():
    """DeBERTa's projections read words and the table of positions; layer 0's words are no norm's output."""
    model = get_family("deberta_v2").model()
    sites = {site.name: site for site in plan_sites(model, load_recipe("int8_full"))}
    on = {
        name.removeprefix("deberta.encoder.")
        for name, site in sites.items()
        if site.kind == "norm_output" and site.enabled
    }
    assert on == {f"layer.{i}.attention.output.LayerNorm.output_quantizer" for i in (0, 1)}
    assert "rounds both itself" in sites["deberta.encoder.LayerNorm.output_quantizer"].reason
    assert sites["deberta.encoder.layer.1.output.LayerNorm.output_quantizer"].reason == "no quantized product reads it"
    for i in (0, 1):
        words = [
            s for s in sites.values() if f"layer.{i}.attention.self" in s.name and s.name.endswith("input_quantizer")
        ]
        assert sum(site.enabled for site in words) == 1 and sum(len(s.consumers) for s in words if s.enabled) == 3


def test_a_layer_that_serves_twice_has_its_own_quantizer_unless_a_norm_covers_both():
    sites = {site.name: site for site in plan_sites(get_family("albert").model(), load_recipe("int8_full"))}
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0"
    assert sites[f"{layer}.attention.query.input_quantizer"].enabled  # first the embeddings, then its own output
    assert not sites[f"{layer}.ffn.input_quantizer"].enabled  # its attention's norm each time


def test_pixels_seen_as_a_map_and_as_a_sequence_are_two_tensors():
    """SegFormer's key reduction convolves what Q's projection reads; here channels and width are both 16."""
    family = get_family("segformer")
    family = type(family)(family.model_class, {**family.config, "image_size": 32}, "")
    model = calibrated(family, family.model(), "int8_smoothquant")
    shared = [site for site in model.quantization.sites if site.enabled and len(site.consumers) > 1]
    assert shared and all(len({type(model.get_submodule(c)) for c in site.consumers}) == 1 for site in shared)
