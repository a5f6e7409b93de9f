"""The gate: what a plan says, what ran, and where they differ."""

import json

import pytest

from engine.cli import UsageError
from engine.inspect.expect import Plan, compare_plan, read_plan
from engine.inspect.layers import Inspection, Layer


def inspection(*layers):
    made = tuple(Layer(name, "product", "MatMul", precision, sources=(name,)) for name, precision in layers)
    return Inspection("e", "onnxruntime", None, "", made)


def plan(*names):
    return Plan(tuple((f"{name}.weight_quantizer", True) for name in names), frozenset(names))


def test_layers_are_known_by_their_weights_names():
    found = inspection(("model.bert.0.query.weight_int8_transposed_s8_2_u8", "int8"), ("node_MatMul_3", "fp32"),
                       ("bert.0.key.weight", "int8"), ("node_matmul", "int8"))  # fmt: skip
    done = compare_plan(found, plan("bert.0.query", "bert.0.key"))
    assert (done.missing, done.unplanned, done.num_met) == ((), (), 2) and str(done).startswith("as planned: 2 layers")
    done = compare_plan(found, plan("bert.0.query", "bert.1.query"))
    assert done.missing == ("bert.1.query",) and done.unplanned == ("bert.0.key",) and done.num_met == 1
    assert "  not in INT8: bert.1.query" in str(done)


def test_a_shared_weight_that_runs_in_float_once_is_missing():
    found = inspection(("albert.ffn.weight", "int8"), ("albert.ffn.weight", "fp32"))
    assert compare_plan(found, plan("albert.ffn")).missing == ("albert.ffn",)


def test_a_plan_by_patterns_speaks_of_the_layers_that_the_manifest_names():
    patterns = Plan((("*", False), ("*query*", True)), frozenset())
    found = inspection(("a.query.weight", "int8"), ("a.key.weight", "int8"))
    done = compare_plan(found, patterns, ("a.query", "a.key", "b.query"))
    assert done.missing == ("b.query",) and done.unplanned == ("a.key",)
    with pytest.raises(UsageError, match="names no layer one by one"):
        compare_plan(found, patterns)


def test_files(tmp_path):
    recipe = tmp_path / "plan.yaml"
    recipe.write_text("rules:\n- {match: '*', enable: false}\n- {match: a.weight_quantizer}\n"
                      "- {match: '*', method: mse}\n- {match: b.weight_quantizer, format: int8}\n")  # fmt: skip
    found = read_plan(recipe)
    assert found.is_int8("a") and not found.is_int8("b") and found.named == {"a"}
    for text, error in (("extends: int8_full\nrules: []\n", "checkpoint's folder"),
                        ("rules:\n- {match: '*', enable: false}\n- {kind: linear}\n", "kinds of layers")):  # fmt: skip
        recipe.write_text(text)
        with pytest.raises(UsageError, match=error):
            read_plan(recipe)
    sites = [{"module": "a[0]", "role": "weight_quantizer", "kind": "linear", "enabled": True},
             {"module": "b", "role": "weight_quantizer", "kind": "linear", "enabled": False},
             {"module": "e", "role": "weight_quantizer", "kind": "embedding", "enabled": True}]  # fmt: skip
    (tmp_path / "quantization.json").write_text(json.dumps({"sites": sites}))
    found = read_plan(tmp_path)
    assert found.named == {"a[0]"} and found.is_int8("a[0]") and not found.is_int8("b")
    with pytest.raises(FileNotFoundError, match="--expect takes"):
        read_plan(tmp_path / "absent.yaml")
    recipe.write_text("a: 1\n")
    with pytest.raises(ValueError, match="holds no recipe"):
        read_plan(recipe)


def test_one_kernel_may_compute_several_products():
    both = Layer("a.query + a.key", "product", "linear", "int8", products=("a.query", "a.key"))
    nameless = Layer("some_int8_gemm", "product", "kernel", "int8", products=())
    found = Inspection("e", "any", None, "", (both, nameless))
    done = compare_plan(found, plan("a.query", "a.key"))
    assert (done.missing, done.unplanned, done.num_met) == ((), (), 2)


def test_what_the_runtime_hides_is_neither_met_nor_missing():
    hidden = Layer("{ForeignNode}", "myelin", "Myelin", "unknown", products=("a.query.weight", "a.key.weight"))
    found = Inspection("e", "tensorrt", None, "", (hidden, *inspection(("b.query.weight", "int8")).layers))
    done = compare_plan(found, plan("a.query", "b.query", "b.key"))
    assert (done.missing, done.unknown, done.num_met, done.is_met) == (("b.key",), ("a.query",), 1, False)
    assert "  not known:   a.query" in str(done) and "of 1 more" in str(done)
