"""Recipes: every shipped one loads, and every mistake is answered with what is allowed."""

import pytest

from quant.recipe import Rule, load_recipe, recipe_from_dict, shipped_recipes

OFF = {"match": "*", "enable": False}


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads_and_survives_its_dictionary(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe_from_dict(recipe.to_dict()) == recipe
    assert all(rule.optional for rule in recipe.rules if "pooler" in rule.match or "head" in rule.match)


def test_extends_appends_rules_and_replaces_options():
    linear, smooth = load_recipe("int8_linear"), load_recipe("int8_smoothquant")
    assert smooth.rules == linear.rules
    assert linear.smoothquant.alpha is None and smooth.smoothquant.alpha == "search"
    assert linear.digest != smooth.digest
    attention = load_recipe("int8_attention")
    assert attention.rules[: len(linear.rules)] == linear.rules and attention.rules[-1].kind == "softmax"


def test_rule_matches_by_pattern_and_kind():
    rule = Rule(match="*layer.0.*input_quantizer", kind="linear")
    assert rule.matches("bert.layer.0.query.input_quantizer", "linear")
    assert not rule.matches("bert.layer.1.query.input_quantizer", "linear")
    assert not rule.matches("bert.layer.0.query.input_quantizer", "conv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "r", "rules": [OFF], "calibrater": {}}, r"recipe key 'calibrater' \(did you mean 'calibrator'"),
        ({"name": "r", "rules": [{"match": "*", "enabled": False}]}, r"rule key 'enabled' \(did you mean 'enable'"),
        ({"name": "r", "rules": [OFF, {"kind": "liner"}]}, r"unknown rule kind 'liner' \(did you mean 'linear'"),
        ({"name": "r", "rules": [OFF], "calibrator": {"method": "maxx"}}, r"unknown calibrator method 'maxx'.*'max'"),
        ({"name": "r", "rules": [OFF], "calibrator": {"percentile": 5}}, "percentile is 5; allowed: above 50"),
        ({"name": "r", "rules": [OFF], "smoothquant": {"alpha": 2}}, "alpha is 2; allowed: 0 to 1"),
        ({"name": "r", "rules": [OFF], "smoothquant": {"alpha": "serch"}}, r"alpha 'serch' \(did you mean 'search'"),
        ({"name": "r", "rules": [{"kind": "linear"}]}, "the first rule must switch all off"),
        ({"name": "r", "rules": []}, "the first rule must switch all off"),
    ],
)  # fmt: skip
def test_mistakes_are_named(content, message):
    with pytest.raises(ValueError, match=message):
        recipe_from_dict(content)


def test_unknown_recipe_lists_the_shipped_ones():
    with pytest.raises(FileNotFoundError, match=r"no recipe 'int8_linaer'; did you mean int8_linear.*Shipped: "):
        load_recipe("int8_linaer")


def test_broken_yaml_names_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("rules: [")
    with pytest.raises(ValueError, match=r"mine\.yaml is not valid YAML"):
        load_recipe(path)
    path.write_text("just text")
    with pytest.raises(ValueError, match="holds no recipe"):
        load_recipe(path)
