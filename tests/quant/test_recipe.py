"""Recipes: every shipped one loads, and every mistake is answered with what is allowed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


# As 0.1.0 computed them: checkpoints, engines and rows bear them.
DIGESTS = {
    "int8_attention": "c69daf87560a616b",
    "int8_full": "765f6c5a7bfaf46e",
    "int8_linear": "d1d0ee27728e9e8f",
    "int8_smoothquant": "435c2f42ea8ef7cf",
}


def test_digests_of_the_shipped_recipes_stay():
    assert {name: load_recipe(name).digest for name in DIGESTS} == DIGESTS


def write(tmp_path, text, name="mine.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_extends_changes_the_options_that_are_given_and_no_others(tmp_path):
    smooth = load_recipe(write(tmp_path, "extends: int8_smoothquant\nsmoothquant: {match: '*layer.0*'}"))
    assert smooth.smoothquant.alpha == "search" and smooth.smoothquant.match == "*layer.0*"
    path = write(tmp_path, "extends: int8_full\nqat: {dropout: true, temperature: 2.0}", "first.yaml")
    again = load_recipe(write(tmp_path, f"extends: {path}\nqat: {{temperature: 3}}"))
    assert again.qat.dropout and again.qat.temperature == 3
    assert load_recipe(write(tmp_path, f"extends: {path}\nqat: null")).qat == load_recipe("int8_full").qat
    off = load_recipe(write(tmp_path, "extends: int8_smoothquant\nsmoothquant: {alpha: null}"))
    assert off.smoothquant.alpha is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: 5", "rules is 5; expected a list"),
        ("extends: int8_linear\nrules: 5", "rules is 5; expected a list"),
        ("rules: [5]", "rule is 5; expected a mapping"),
        ("extends: 5", "extends is 5; expected the name"),
        ("extends: mine.yaml", "extends 'mine.yaml' comes back to itself"),
        ("extends: int8_linear\nname: 5", "recipe name is 5; expected a text"),
        ("extends: int8_linear\nqat: 5", "qat is 5; expected a mapping"),
        ("extends: int8_linear\nqat: {dropout: 1}", "qat dropout is 1; expected true or false"),
        ("extends: int8_linear\nqat: {temperature: .nan}", "qat temperature is nan; expected a number"),
        ("extends: int8_linear\nqat: {temperature: [1]}", r"qat temperature is \[1\]; expected a number"),
        ("extends: int8_linear\nqat: {distil_logits: 1}", r"unknown qat key 'distil_logits' \(did you mean 'distill_l"),
        ("extends: int8_linear\nsmoothquant: {alpha: true}", "alpha is True; expected a number or a text or null"),
        ("extends: int8_linear\nrules: [{match: 5}]", "rule match is 5; expected a text"),
        ("extends: int8_linear\nrules: [{enable: 'no'}]", "rule enable is 'no'; expected true or false"),
        ("when: 2024-13-45", "is not valid YAML: month must be in"),
        ("a: !!timestamp b", "is not valid YAML"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file_are_one_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"mine\.yaml.*{message}") as raised:
        load_recipe(write(tmp_path, text).name)
    assert len(str(raised.value).splitlines()) == 1


KEYS = st.sampled_from(
    ["rules", "name", "calibrator", "smoothquant", "qat", "match", "kind", "enable", "optional", "method", "percentile",
     "alpha", "dropout", "temperature", "weight_ranges", "scale_learning_rate", "line\nbreak"]
) | st.text(max_size=3)  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates()
    | st.sampled_from(["linear", "max", "search", "learned", "*", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
SECTION = st.dictionaries(KEYS, ANYTHING, max_size=3)


@settings(max_examples=400, deadline=None)
@given(
    content=st.fixed_dictionaries(
        {
            "name": st.just("r") | ANYTHING,
            "rules": st.lists(SECTION, max_size=2).map(lambda more: [OFF, *more]) | ANYTHING,
        },
        optional={"calibrator": SECTION, "smoothquant": SECTION, "qat": SECTION, "x": ANYTHING},
    )
)
def test_whatever_a_file_holds_the_answer_is_a_recipe_or_one_line(content):
    try:
        recipe = recipe_from_dict(content)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert recipe_from_dict(recipe.to_dict()) == recipe and len(recipe.digest) == 16


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60) | st.text(alphabet="{}[]:-&*!|>'\"%#,? \n\tabc019.~", max_size=60).map(str.encode))
def test_whatever_the_bytes_of_a_file_are_the_answer_is_one_line(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(data)
    with pytest.raises(ValueError) as raised:  # no such short file is a recipe
        load_recipe(path)
    assert len(str(raised.value).splitlines()) == 1


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
