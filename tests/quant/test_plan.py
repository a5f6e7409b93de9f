"""A plan is a recipe: each site's own format, calibrator and SmoothQuant, from the rules to the runtime."""

import dataclasses
import json
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from calib.apply import apply_statistics
from calib.calibrators import compute_amax
from calib.collect import collect
from engine.passes.qdq import prepare_for_target
from eval.parity.check import check_parity
from eval.subject import ranges_from
from quant.checkpoint import load_checkpoint, read_description, save_checkpoint
from quant.formats import get_format
from quant.insert import insert_quantizers
from quant.models.pretrained import LoadedModel
from quant.onnx_export import export_onnx
from quant.recipe import METHODS, CalibratorOptions, Rule, load_recipe, recipe_from_dict, shipped_recipes
from quant.sites.exact import exact_recipe
from quant.sites.plan import plan_sites
from quant.sites.site import How, Why, quantization_of, site_quantizers
from quant.sites.stored import identity, site_to_dict
from quant.sites.summary import summarize_sites
from quant.tensor_quantizer import named_quantizers
from tests.conftest import text_batch, tiny_bert
from training.qat import start_qat

INPUTS = "*input_quantizer"
OFF = ("layer.0.attention.self.softmax_quantizer", "layer.1.output.dense.input_quantizer",
       "layer.1.output.dense.weight_quantizer")  # fmt: skip


def recipe_with(*rules: dict, base: str = "int8_linear", **options):
    content = load_recipe(base).to_dict()
    return recipe_from_dict({**content, **options, "name": "mine", "rules": [*content["rules"], *rules]})


def prepared(recipe):
    model = tiny_bert()
    sites = insert_quantizers(model, recipe)
    return model, {s.name: s for s in sites}, collect(model, [text_batch(seed=s) for s in range(2)], progress=False)


def varied(sites):
    """Return the sites, each with settings that its neighbours have not."""
    found, counts = [], Counter()
    for site in (site for site in sites if site.enabled and not site.name.endswith(OFF)):
        settings = {"format": ("int7", "int8")[counts[site.role] % 2]}
        counts[site.role] += 1
        if site.reads_samples:
            counts["method"] += 1
            settings["method"] = METHODS[counts["method"] % 4]
            settings["percentile"] = 99 - counts["method"] / 7 if settings["method"] == "percentile" else None
            if site.kind in ("linear", "norm_output"):
                counts["alpha"] += 1
                settings["alpha"] = {2: "off", 3: 0}.get(counts["alpha"], counts["alpha"] / 10)
        found.append(dataclasses.replace(site, **settings))
    return found + [dataclasses.replace(site, enabled=False) if site.enabled else site
                    for site in sites if not site.enabled or site.name.endswith(OFF)]  # fmt: skip


@pytest.fixture(scope="module", params=["int8_full", "int8_attention"])
def plan(request, tmp_path_factory):
    """A tiny BERT with another setting at every site: what was wanted, the calibrated model, statistics, checkpoint."""
    base = load_recipe(request.param)
    wanted = varied(plan_sites(tiny_bert(), base))
    recipe = exact_recipe(wanted, base)
    model, sites, statistics = prepared(recipe)
    apply_statistics(model, statistics)
    folder = tmp_path_factory.mktemp("plan") / "c"
    save_checkpoint(model, folder)
    return {site.name: site for site in wanted}, model, sites, statistics, folder


def test_every_site_is_planned_with_its_own(plan):
    wanted, _, sites, _, _ = plan
    fields = ("enabled", "format", "method", "percentile", "alpha")
    assert all(getattr(sites[n], f) == getattr(site, f) for n, site in wanted.items() if site.enabled for f in fields)
    assert {n for n, site in sites.items() if site.enabled} == {n for n, site in wanted.items() if site.enabled}
    on = [site for site in sites.values() if site.enabled]
    assert {s.method for s in on if s.reads_samples} == set(METHODS) and {s.format for s in on} == {"int8", "int7"}
    assert len({s.alpha for s in on}) > 4 and sum(n.endswith(OFF) for n in sites) == len(OFF)


def test_calibration_follows_each_site(plan):
    _, model, sites, statistics, _ = plan
    num_plain = num_smoothed = 0
    for site, quantizer in site_quantizers(model):
        if not site.reads_samples:
            continue
        if site.alpha in (None, "off") or (site.smoothing is not None and site.smoothing.how is How.BRANCHED):
            options = CalibratorOptions(site.method, site.percentile or 99.999)
            expected = compute_amax(statistics.sites[site.name].histogram, options, get_format(site.format))
            assert quantizer.amax.item() == pytest.approx(expected, rel=1e-6)
            num_plain += 1
        else:
            assert site.smoothing.alpha == site.alpha == sites[site.name].alpha
            num_smoothed += 1
        assert (site.smoothing is None) == (site.alpha in (None, "off"))
    assert num_plain > 5 and num_smoothed >= 2


def test_the_checkpoint_tells_each_site_and_gives_it_back(plan):
    wanted, model, _, _, folder = plan
    stored = {each["name"]: each for each in read_description(folder)["sites"]}
    for name, site in wanted.items():
        if site.enabled:
            found = [stored[name].get(f) for f in ("format", "method", "percentile", "alpha")]
            assert found == [site.format, site.method, site.percentile, site.alpha]
    loaded = load_checkpoint(folder).model
    assert quantization_of(loaded) == quantization_of(model)
    with torch.no_grad():
        assert torch.equal(loaded(**text_batch()).logits, model(**text_batch()).logits)
    assert ranges_from(read_description(folder))["calibrator"] == "entropy and max and mse and percentile"


def test_the_file_and_the_runtime_hold_each_site(plan, tmp_path):
    """Scales and integers by hand here; `check_parity` compares every site's bits, and what ONNX Runtime computes."""
    _, model, _, _, _ = plan
    proto = prepare_for_target(export_onnx(model), "onnxruntime")
    onnx.save(proto, tmp_path / "m.onnx")
    constants = {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}
    constants |= {
        n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in proto.graph.node if n.op_type == "Constant"
    }
    scales = [constants[node.input[1]] for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    codes = [array for array in constants.values() if array.dtype == np.int8 and array.ndim > 1]
    ends = Counter(int(np.abs(array).max()) for array in codes)
    num_narrow = num_wide = 0
    for site, quantizer in site_quantizers(model):
        if not quantizer.is_active:
            continue
        scale = (quantizer.amax / get_format(site.format).qmax).numpy()
        if site.is_weight:
            top = get_format(site.format).qmax
            num_narrow += site.format == "int7"
            num_wide += site.format == "int8"
            shape = model.get_submodule(site.module).weight.shape
            fitting = [a for a in codes if a.shape in (tuple(shape), tuple(shape[::-1])) and np.abs(a).max() == top]
            assert fitting, site.name
        else:
            assert any(np.allclose(s, scale, rtol=1e-6, atol=0) for s in scales), site.name
    assert num_narrow > 3 and num_wide > 3 and {63, 127} == ends.keys()
    report = check_parity(tmp_path / "m.onnx", LoadedModel(model, None, "bert"))
    assert report.engine_error_max <= 1e-5 and report.num_flips == 0


def test_training_starts_from_these_ranges(plan):
    _, _, _, _, folder = plan
    model = load_checkpoint(folder).model
    before = {name: q.amax.clone() for name, q in named_quantizers(model) if q.enabled}
    start_qat(model, model.quantization.recipe.qat)
    learned = {name: q for name, q in named_quantizers(model) if q.log2_amax is not None}
    assert len(learned) > 20
    assert all(torch.allclose(q.current_amax(), before[name], rtol=1e-6) for name, q in learned.items())
    assert all(q.format.name == site.format for site, q in site_quantizers(model) if site.enabled)


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_exact_recipe_is_the_shipped_one_to_the_bit(name):
    base = load_recipe(name)
    exact = exact_recipe(plan_sites(tiny_bert(), base), base)
    assert all(rule.match == "*" or "*" not in rule.match for rule in exact.rules)
    assert recipe_from_dict(json.loads(json.dumps(exact.to_dict()))) == exact
    states, logits = [], []
    for recipe in (base, exact):
        model, _, statistics = prepared(recipe)
        apply_statistics(model, statistics)
        states.append(model.state_dict())
        with torch.no_grad():
            logits.append(model(**text_batch(seed=7)).logits)
    assert states[0].keys() == states[1].keys() and torch.equal(*logits)
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_the_last_rule_wins_field_by_field_and_the_recipe_has_the_rest():
    rules = ({"match": INPUTS, "method": "percentile", "percentile": 99.5}, {"match": INPUTS, "alpha": False},
             {"match": "*layer.1*" + INPUTS, "method": "mse"},
             {"match": "*layer.0.output*" + INPUTS, "alpha": 0.25})  # fmt: skip
    recipe = recipe_with(*rules, base="int8_smoothquant")
    sites = {s.name.removeprefix("bert.encoder."): s for s in plan_sites(tiny_bert(), recipe)}
    first, second = (sites[f"layer.{i}.output.dense.input_quantizer"] for i in (0, 1))
    assert (first.method, first.percentile, first.alpha) == ("percentile", 99.5, 0.25)
    assert (second.method, second.percentile, second.alpha) == ("mse", None, "off")  # its percentile has no use
    weight = sites["layer.0.output.dense.weight_quantizer"]
    assert (weight.method, weight.alpha, weight.enabled) == (None, None, True)
    assert "by rules method mse: 4 of those on" in summarize_sites(sites.values())
    assert str(recipe.rules[-1]) == "{match: '*layer.0.output**input_quantizer', alpha: 0.25}"


def test_a_method_given_in_place_of_the_recipes_leaves_what_rules_say():
    model, _, statistics = prepared(
        recipe_with({"match": "*layer.0*" + INPUTS, "method": "percentile", "percentile": 90})
    )
    by_method = {}
    for method in ("max", "mse"):
        apply_statistics(model, statistics, method)
        by_method[method] = {s.name: q.amax.item() for s, q in site_quantizers(model) if s.reads_samples}
    changed = {name for name, amax in by_method["max"].items() if amax != by_method["mse"][name]}
    assert changed and not any("layer.0" in name for name in changed)
    assert all(by_method["max"][n] < statistics.sites[n].histogram.amax for n in by_method["max"] if "layer.0" in n)


def test_sites_without_settings_are_told_as_before():
    site = next(s for s in plan_sites(tiny_bert(), load_recipe("int8_linear")) if s.reads_samples)
    told = site_to_dict(site)
    assert not {"method", "percentile", "alpha"} & told.keys()
    assert identity(site_to_dict(dataclasses.replace(site, method="mse", alpha=0.5))) == identity(told)
    assert Rule(match="x", alpha=False) != Rule(match="x", alpha=0) and Rule(match="x", alpha=0).enable is None


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"match": "*weight_quantizer", "method": "mse"}],
         r"gives method to bert.*weight_quantizer \.\.\.\. Weights and softmax outputs have no calibrator"),
        ([{"kind": "linear"}, {"kind": "softmax", "method": "max"}], "gives method to .*softmax_quantizer"),
        ([{"kind": "bmm", "alpha": 0.5}], "gives alpha to .*SmoothQuant acts on inputs of linear layers"),
        ([{"match": INPUTS, "method": "mean"}], r"unknown rule method 'mean'.*Allowed: max, percentile, entropy, mse"),
        ([{"match": INPUTS, "method": "entropi"}], r"'entropi' \(did you mean 'entropy'\?\)"),
        ([{"match": INPUTS, "alpha": 1.5}], "rule alpha is 1.5; allowed: 0 to 1, 'search', or off for none"),
        ([{"match": INPUTS, "alpha": True}], "rule alpha is True; allowed"),
        ([{"match": INPUTS, "alpha": "serch"}], r"rule alpha 'serch' \(did you mean 'search'\?\)"),
        ([{"match": INPUTS, "percentile": 5}], "rule percentile is 5; allowed: above 50"),
        ([{"match": INPUTS, "method": "mse", "percentile": 99}], "only 'method: percentile' uses"),
        ([{"match": INPUTS, "percentile": 99}], "percentile, but its calibrator is max; add 'method: percentile'"),
        ([{"match": "*query" + INPUTS, "method": "mse"}],
         r"key.input_quantizer has method of the recipe, bert.*query.input_quantizer mse \(by no rule and \{match: "
         r"'\*query\*input_quantizer', method: mse\}\).*share one quantizer"),
        ([{"match": "*query" + INPUTS, "alpha": 0.5}, {"match": "*key" + INPUTS, "alpha": 0.6}],
         r"\(by \{match: '\*key\*input_quantizer', alpha: 0.6\} and \{match: '\*query\*input_quantizer', alpha: 0.5"),
    ],
)  # fmt: skip
def test_rules_that_cannot_be_followed_are_refused(rules, message):
    with pytest.raises(ValueError, match=message) as error:
        plan_sites(tiny_bert(), recipe_with(*rules))
    assert "\n" not in str(error.value)


def test_a_percentile_that_the_given_method_would_drop_is_refused_and_nothing_changes():
    recipe = recipe_with({"match": INPUTS, "percentile": 99.0}, calibrator={"method": "percentile"})
    model, _, statistics = prepared(recipe)
    apply_statistics(model, statistics)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="its calibrator is mse"):
        apply_statistics(model, statistics, "mse")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_off_is_written_as_yaml_has_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: int8_smoothquant\nrules:\n  - {match: '*layer.0*input_quantizer', alpha: off}\n")
    sites = plan_sites(tiny_bert(), load_recipe(path))
    assert {s.alpha for s in sites if s.reads_samples and "layer.0" in s.name} == {"off"}


def with_outliers():
    """Return a BERT whose residual stream has one channel far above the rest between two norms."""
    model = tiny_bert()
    first, second = model.bert.encoder.layer[0].attention.output.LayerNorm, model.bert.encoder.layer[0].output.LayerNorm
    with torch.no_grad():
        first.weight[0] *= 300
        second.weight[1:] *= 100
    return model


def test_a_residual_stream_with_outliers_stays_float_unless_it_is_named():
    site = "bert.encoder.layer.0.attention.output.LayerNorm.output_quantizer"
    full = load_recipe("int8_full")
    named = dataclasses.replace(full, rules=(*full.rules, Rule(match=site, enable=True)))
    batch = text_batch()
    errors = {}
    for recipe in (full, named):
        model = with_outliers()
        with torch.no_grad():
            target = model(**batch).logits
        planned = {each.name: each for each in insert_quantizers(model, recipe)}
        apply_statistics(model, collect(model, [batch], progress=False))
        with torch.no_grad():
            errors[recipe is full] = float((model(**batch).logits - target).abs().mean())
        assert planned[site].enabled == (recipe is named)
        if recipe is full:
            assert planned[site].why is Why.OUTLIERS and "fewer than three steps" in planned[site].reason
            reader = planned["bert.encoder.layer.0.intermediate.dense.input_quantizer"]
            assert reader.enabled and reader.consumers == ("bert.encoder.layer.0.intermediate.dense",)
    assert errors[True] < 0.5 * errors[False], errors
    assert not any(each.why is Why.OUTLIERS for each in insert_quantizers(tiny_bert(), full))
