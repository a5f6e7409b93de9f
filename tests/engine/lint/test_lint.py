"""Each rule of the linter has a graph that breaks it alone; clean graphs and this project's own exports break none."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import pytest

from benchmarks.lint.tools import FILES
from engine.lint.__main__ import as_text, main
from engine.lint.report import RULES, lint
from engine.passes.qdq import prepare_for_target
from engine.products import find_products
from tests.engine.graphs import LAYER_WIDTH as WIDTH
from tests.engine.graphs import LENGTH, Graph, linear_model
from tests.engine.lint.broken_graphs import BREAKS, clean, uint8

# What a graph cannot break alone: a float sum beside a float product, and the like.
ALSO_NOTED = {
    "residual": {"float-product"},
    "table-dequantized": {"not-seen"},
    "scan": {"integer-type"},
    "attention-operator": {"one-sided"},
    "block-size": {"one-sided"},
}


def broken(model: onnx.ModelProto, consumer: str) -> set[str]:
    return {finding.rule for finding in lint(model, consumer).findings}


@pytest.mark.parametrize("rule", sorted(BREAKS))
def test_a_graph_that_breaks_one_rule_is_found_by_that_rule_alone(rule):
    make, consumer = BREAKS[rule]
    report = lint(make(), consumer)
    assert {f.rule for f in report.findings} - ALSO_NOTED.get(rule, set()) == {rule}
    finding = next(f for f in report.findings if f.rule == rule)
    assert finding.nodes and len(finding.nodes) == len(finding.names) and finding.reason and finding.mend


def test_every_rule_has_its_breaking_graph():
    assert set(BREAKS) == set(RULES)


@pytest.mark.parametrize(("consumer", "opset"), [("tensorrt", 20), ("tensorrt8", 17), ("openvino", 20)])
def test_a_clean_attention_breaks_nothing(consumer, opset):
    report = lint(clean(opset), consumer)
    assert report.findings == () and (report.linears_int8, report.attention_products_int8) == (4, 2)


@pytest.mark.parametrize("consumer", ["onnxruntime", "openvino"])
def test_a_file_of_this_project_is_judged_for_its_own_target_and_clean(consumer):
    report = lint(prepare_for_target(linear_model(num_siblings=3, smooth=True), consumer))
    assert report.consumer == consumer and report.linears == 3
    # plain ONNX Runtime makes Gemms of matrices and a bias, in float; `build_engine.py` fuses them itself
    assert report.linears_int8 == (0 if consumer == "onnxruntime" else 3)
    assert all(finding.level == "note" for finding in report.findings)


def test_a_zero_scale_is_an_error_and_a_zero_point_left_out_a_warning():
    g = Graph()
    assert "scale" in {f.rule for f in lint(g.model(g.linear(g.qdq("x", scale=0))), "tensorrt").findings}
    g = Graph()
    scale = g.constant(np.float32(0.1))
    codes = g.op("QuantizeLinear", "x", scale)
    model = g.model(g.linear(g.op("DequantizeLinear", codes, scale)))
    (finding,) = [f for f in lint(model, "tensorrt").findings if f.rule == "integer-type"]
    assert finding.level == "warning" and "no zero point" in finding.reason


def test_a_weight_behind_q_dq_of_float_numbers_counts_as_int8():
    g = Graph()
    weight = g.qdq(g.float_weight(), np.full(WIDTH, 0.01), np.zeros(WIDTH, np.int8), axis=1)
    report = lint(g.model(g.linear(g.qdq("x"), weight)), "tensorrt")
    assert report.findings == () and report.linears_int8 == 1


def test_a_float_head_that_reads_a_shared_int8_tensor_is_a_note():
    g = Graph()
    x = g.qdq("x")
    model = g.model(g.op("Mul", g.linear(x), g.linear(x, g.float_weight())))
    assert broken(model, "tensorrt") == {"float-product"}


def test_a_residual_is_a_note_where_it_is_float_by_design_and_nothing_where_it_is_int8():
    for is_int8, expected in ((False, {"residual"}), (True, set())):
        g = Graph()
        skip = g.op("Relu", "x")
        model = g.model(g.op("Add", g.linear(g.qdq("x")), g.qdq(skip, 0.1) if is_int8 else skip))
        report = lint(model, "tensorrt")
        assert {f.rule for f in report.findings} == expected
        assert all(f.level == "note" for f in report.findings)
    g = Graph()
    model = g.model(g.op("Add", g.qdq(g.linear(g.qdq("x")), 0.2), g.op("Relu", "x")))
    (finding,) = lint(model, "tensorrt").findings
    assert (finding.rule, finding.level) == ("residual", "warning")


def test_an_int8_convolution_with_a_float_output_is_found_for_onnxruntime_alone():
    g = Graph()
    image = g.op("Reshape", "x", g.constant(np.array([2, 1, LENGTH, WIDTH], np.int64)))
    weight = g.constant(g.random.integers(-127, 128, (16, 1, 4, 4)).astype(np.int8), "patch.weight")
    x = g.qdq(image, zero=np.uint8(128))
    model = g.model(g.op("Conv", x, g.dq(weight, np.full(16, 0.01), np.zeros(16, np.int8), 0), strides=[4, 4]), rank=3)
    (finding,) = lint(model, "onnxruntime").findings
    assert (finding.rule, finding.names) == ("float-output", ("patch.weight_1",)) and "OpenVINO" in finding.mend
    assert lint(model, "openvino").findings == ()


@pytest.mark.parametrize("name", ["int16 x int8, MatMul", "int8 x int4, MatMul", "fp8 x fp8, MatMul"])
def test_other_types_than_int8_are_not_counted_as_int8(name):
    (product,) = find_products(FILES[name]())
    assert product.is_quantized and not product.is_int8
    report = lint(FILES[name](), "openvino")
    assert (report.linears, report.linears_int8, report.count("error")) == (1, 0, 1)


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("uint8 x int8, function in a function", ["uint8 x int8"]),
        ("uint8 x int8, If branch", ["uint8 x int8"]),
        ("uint8 x int8, Loop body", ["uint8 x int8"]),
        ("uint8 x int8, Einsum", ["uint8 x int8"]),
        ("int8 Attention of opset 23", ["int8 x int8", "float x int8"]),
        ("dynamic, MatMulInteger", ["uint8 x int8"]),
        ("QLinearMatMul", ["uint8 x int8"]),
        ("com.microsoft QGemm", ["uint8 x int8"]),
        ("com.microsoft MatMulNBits", ["float x uint4"]),
        ("LSTM with quantized weights", ["float x int8"]),
    ],
)
def test_a_product_is_seen_wherever_and_however_it_is_written(name, types):
    assert [product.types for product in find_products(FILES[name]())] == types
    report = lint(FILES[name](), "onnxruntime")
    assert report.linears + report.attention_products == len(types)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("an unknown operator", "SecretProduct is an operator of the domain acme"),
        ("com.microsoft Attention", "Attention of com.microsoft holds several products"),
        ("Einsum of three", "Einsum multiplies 3 factors"),
        ("no product", "no product was found"),
    ],
)
def test_what_cannot_be_seen_is_an_error_that_names_it(name, named):
    report = lint(FILES[name](), "openvino")
    (finding,) = [each for each in report.findings if each.rule == "not-seen"]
    assert finding.level == "error" and named in finding.reason
    assert report.summary().startswith("no product was seen in the file, so nothing was judged; 1 error")


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    return int(stopped.value.code or 0)


def test_the_command_prints_rules_json_and_fails_on_errors_only_when_strict(tmp_path, capsys):
    path = tmp_path / "model.onnx"
    onnx.save(uint8(), path)
    assert call(path) == 0 and "error   integer-type" in capsys.readouterr().out
    assert call(path, "--strict", "--json") == 1
    row = json.loads(capsys.readouterr().out)
    assert (row["for"], row["errors"], row["findings"][0]["rule"]) == ("tensorrt", 1, "integer-type")
    assert call(path, "--strict", "--for", "openvino") == 0
    capsys.readouterr()
    assert call("--rules") == 0 and len(capsys.readouterr().out.splitlines()) == len(RULES)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.onnx"], 1, "no ONNX file missing.onnx"),
        (["broken.onnx"], 1, "is not a whole ONNX file"),
        (["model.onnx", "--for", "tensort"], 2, "--for 'tensort' is none of .*did you mean tensorrt"),
        ([], 2, "name the ONNX file"),
        (["model.onnx", "--strikt"], 2, "did you mean --strict"),
    ],
)
def test_wrong_usage_and_bad_files_end_in_one_line(tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.onnx").write_bytes(clean().SerializeToString()[:900])
    assert call(*arguments) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error)


def test_the_text_keeps_to_its_columns():
    model = uint8()
    model.graph.node[0].name = "a/very/long/scope/" * 5 + "quantize"
    text = as_text(lint(model, "tensorrt"), 60, show_all=False)
    assert "scope/quantize" in text
    assert max(map(len, text.splitlines())) <= 60
