"""The linter's word on small files is what ONNX Runtime, OpenVINO and TensorRT-RTX do with them: they are asked.

They choose the same kernels with and without VNNI; only the sums differ, which is why the files keep theirs small.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.lint import consumers as lint_consumers
from benchmarks.lint.agreement import KNOWN, Agreement, compare
from benchmarks.lint.consumers import CONSUMERS, Consumers, Layer, Seen
from benchmarks.lint.table import table
from benchmarks.lint.tools import FILES, ort_files, our_files
from benchmarks.rows import read_rows
from engine.backend import BuildOptions, get_backend
from engine.lint.report import judge_model, lint
from engine.products import find_products

ROWS = Path(__file__).parents[3] / "benchmarks" / "results" / "lint_agreement.jsonl"
# TensorRT-RTX builds take a fifth of a second each: one file for each of its rules and forms stands here, all the
# rest in the slow test.
TENSORRT_FILES = (
    "int8 x int8, MatMul", "int8 x int4, MatMul", "fp8 x fp8, MatMul", "int8 x fp8, MatMul", "int16 x int8, MatMul",
    "uint8 x int8, MatMul", "uint8 x int8, zero point 0", "int8 x uint8, MatMul", "float x int8, weight alone",
    "int8 x int8, zero point 3", "int8 x int8, scale zero", "int8 x int8, scale is computed", "int8 x int8, fp16",
    "int8 x int8, activation per channel", "int8 x int8, weight scales along the inputs", "int8 x int8, Conv",
    "int8 x int8, Gemm, int32 bias", "int8 x int8, Concat behind DQ", "int8 x int8, Relu behind DQ",
    "int8 x int8, Gather between Q and DQ", "int8 x int8, dequantized number", "table, Gather of codes",
    "int8 attention", "int8 attention, float softmax", "int8 Attention of opset 23", "int8 x int8, Einsum",
    "int8 x int8, If branch", "uint8 x int8, Scan body", "int8 x int8, local function", "dynamic, MatMulInteger",
    "QLinearMatMul", "an unknown operator",
)  # fmt: skip


@pytest.fixture(scope="module")
def consumers():
    with Consumers() as asked:
        yield asked


def disagreements(consumers: Consumers, consumer: str, files: dict) -> list[str]:
    """Return what the linter said otherwise than a consumer did."""
    found: list[Agreement] = []
    for name, make in files.items():
        if (consumer, name) not in KNOWN:
            model = make()
            found.append(compare(name, model, consumer, consumers.ask(consumer, model)))
    return [f"{each.file}: {each.verdicts}" for each in found if not each.is_right]


def needs_tensorrt(consumer: str) -> None:
    if consumer == "tensorrt":
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: requirements-tensorrt.txt")


def test_there_are_enough_files_and_every_group_of_them():
    files = {**FILES, **our_files(), **ort_files()}
    assert len(files) > 200 and {name.split(",")[0] for name in files} >= {"ours", "ONNX Runtime", "QLinearMatMul"}


def test_onnxruntime_does_what_the_linter_says(consumers):
    assert not disagreements(consumers, "onnxruntime", {**FILES, **our_files(), **ort_files()})


def test_openvino_does_what_the_linter_says(consumers):
    assert not disagreements(consumers, "openvino", FILES)


def test_tensorrt_does_what_the_linter_says(consumers):
    needs_tensorrt("tensorrt")
    assert not disagreements(consumers, "tensorrt", {name: FILES[name] for name in TENSORRT_FILES})


@pytest.mark.slow
@pytest.mark.parametrize("consumer", ["openvino", "tensorrt"])
def test_the_other_consumers_do_what_the_linter_says_of_all_files(consumers, consumer):
    needs_tensorrt(consumer)
    assert not disagreements(consumers, consumer, {**FILES, **our_files(), **ort_files()})


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_lint_and_build_do_not_contradict_each_other(tmp_path, backend):
    """What the linter says runs in INT8 is INT8 in the manifest too; ONNX Runtime's passes of ours may fuse more."""
    import onnx

    names = [n for n in FILES if n.startswith("uint8 x int8") and "behind DQ" in n] + ["int8 x int8, MatMul"]
    checked = 0
    for name in names:
        model = FILES[name]()
        judgement = judge_model(model, backend)
        if judgement.is_refused:
            continue
        onnx.save(model, tmp_path / "model.onnx")
        options = BuildOptions(force=True, saturation="allow")  # else OpenVINO multiplies floats on a CPU without VNNI
        built = get_backend(backend).build(tmp_path / "model.onnx", tmp_path / "engine", options)
        said = {product.name for product in judgement.products if judgement.runs_in_int8(product)}
        assert said <= set(built.manifest.products.int8), name
        checked += len(said)
    assert checked >= 6


def test_a_wrong_word_is_found():
    model = FILES["int8 x int8, MatMul"]()
    (product,) = find_products(model)
    ran_float = Seen(layers=(Layer(product.aliases, False),), are_numbers_right=True)
    assert compare("a", model, "openvino", ran_float).verdicts == (("(in INT8)", "missed"),)
    assert compare("a", model, "openvino", Seen("no")).verdicts == (("(refused)", "missed"),)
    wrong = FILES["int8 x int8, scale NaN"]()
    assert ("scale", "false alarm") in compare("b", wrong, "openvino", Seen(are_numbers_right=True)).verdicts


def test_a_consumer_that_crashes_counts_as_one_that_refuses(monkeypatch):
    with Consumers() as asked:
        assert asked.ask("onnxruntime", FILES["float x float"]()).refused is None
        asked._process.kill()
        asked._process.join()
        assert asked.ask("onnxruntime", FILES["float x float"]()).refused == "it crashed"
        assert asked.ask("onnxruntime", FILES["float x float"]()).refused is None


def test_the_committed_table_is_that_of_its_rows_and_holds_every_file():
    rows = read_rows(ROWS)
    assert table(rows, KNOWN) == ROWS.with_suffix(".md").read_text(encoding="utf-8")
    assert {row["file"] for row in rows} >= {*FILES, *our_files(), *ort_files()}
    assert {row["consumer"] for row in rows} == set(CONSUMERS)
    assert {(row["consumer"], row["file"]) for row in rows if not row["is_right"]} == set(KNOWN)
    assert {name.split(",")[0] for name in (row["file"] for row in rows)} >= {"ModelOpt", "NNCF"}


def test_numbers_that_do_not_depend_on_the_input_are_lost():
    model = FILES["int8 x int8, scale zero"]()
    assert lint_consumers.ask_onnxruntime(model).are_numbers_right is False
    assert lint_consumers.ask_onnxruntime(FILES["int8 x int8, MatMul"]()).are_numbers_right is True
    assert lint(model, "onnxruntime").count("error") == 1
