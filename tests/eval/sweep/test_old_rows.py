"""Rows outlive versions: those committed today, and a run folder that the code of commit e235b19 wrote, are read."""

import json
from pathlib import Path

import pytest

from eval.report.__main__ import build
from eval.report.run_data import read_run
from eval.results import FIELD_NAMES, ResultRow, parse_row
from eval.sweep.grid import SMOOTHQUANT
from eval.sweep.run_folder import RunFolder, SweepRow
from eval.timing.point_details import Details, details_from_dict
from quant.recipe import METHODS

ROOT = Path(__file__).parents[3]
OLD = ROOT / "tests" / "fixtures" / "sweep_e235b19"  # fp32, max, mse, smoothquant, qat (failed) and dynamic
COMMITTED = sorted(path.parent for path in (ROOT / "benchmarks" / "reports").glob("*/results.jsonl"))
WITH_METHOD = [folder for folder in COMMITTED if '"method":' in (folder / "results.jsonl").read_text()]


@pytest.mark.parametrize("folder", [each for each in COMMITTED if each not in WITH_METHOD], ids=lambda path: path.name)
def test_committed_rows_are_read_whole(folder):
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    rows = RunFolder(folder).rows()
    assert len(rows) == len(lines) > 0
    for row, values in zip(rows, lines, strict=True):
        values.pop("sweep")
        assert {name: row.row.as_dict()[name] for name in values} == values


@pytest.mark.parametrize("folder", [*WITH_METHOD, OLD], ids=lambda path: path.name)
def test_old_rows_are_read_whole_and_what_they_lack_is_null(folder):
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    rows = RunFolder(folder).rows()
    assert len(rows) == len(lines) > 0
    for row, values in zip(rows, lines, strict=True):
        sweep, read = values.pop("sweep"), row.row.as_dict()
        method = values.pop("method")
        assert {name: read[name] for name in values} == values
        assert (row.row.calibrator, row.row.training) == (
            method if method in METHODS else None, "qat" if method == "qat" else None
        )  # fmt: skip
        lacking = set(FIELD_NAMES) - set(values) - {"calibrator", "training"}
        assert {"mcnemar_p", "loss_low", "metric_type"} <= lacking and all(read[name] is None for name in lacking)
        assert row.row.metric is None or row.row.scored_by.name == "accuracy"
        assert json.loads(row.as_line())["sweep"] == sweep  # also "ties", which no version writes any more
        assert list(row.details.block_ms) == sweep.get("block_ms", [])


@pytest.mark.parametrize(("template", "lang"), [("plain", "en"), ("hackathon", "zh")])
def test_an_old_run_folder_is_reported(template, lang):
    data = read_run(OLD)
    text, _ = build(data, {}, template, lang, 0.05)
    fast = next(row for row in data.rows if row.system == "max int8_linear onnxruntime")
    assert f"{fast.row.error_abs_mean:.2g}"[:5] in text and fast.details.digests.onnx[:16] in text
    assert data.task == "sst2" and "No such file or directory" in text  # the reason of the failed points
    smooth = next(row.row for row in data.rows if row.system.startswith(SMOOTHQUANT))
    assert (smooth.precision, smooth.calibrator, smooth.recipe) == ("int8", None, "int8_linear")


def test_of_a_float_point_that_failed_the_old_method_is_the_precision():
    old = ResultRow(status="failed", error="no memory").as_dict()
    old = {name: x for name, x in old.items() if name not in ("calibrator", "training")}
    assert parse_row({**old, "method": "fp16"}, "here").precision == "fp16"
    assert parse_row({**old, "method": "fp16", "precision": "fp32"}, "here").precision == "fp32"
    assert parse_row({"schema": 1}, "here") == ResultRow()


def test_details_of_a_newer_version_are_kept_and_of_an_older_one_have_defaults():
    values = {"block_ms": [1.5, 2.0], "graph": None, "products": {"int8": ["a"], "of_experts": ["b"]},
              "watts": {"mean": 3.0}, "digests": {"onnx": "ab", "plan": "cd"}}  # fmt: skip
    details = details_from_dict(values)
    assert details.block_ms == (1.5, 2.0) and details.products.int8 == ("a",) and details.digests.onnx == "ab"
    assert (details.timing, details.timed_as, details.graph, details.cpu_flags) == (0, None, None, None)
    written = details.as_dict()
    assert written["watts"] == {"mean": 3.0} and written["block_ms"] == [1.5, 2.0] and "graph" not in written
    assert details_from_dict(written) == details and details_from_dict({}) == Details()


def test_a_line_with_details_of_another_kind_or_without_its_point_is_named(tmp_path):
    run = RunFolder(tmp_path)
    run.append(SweepRow(ResultRow(), "max", "1"))
    good = json.loads(run.rows_path.read_text())
    for changes, message in (({"products": 3}, "line 1: products is a int"), ({"system": None}, None)):
        values = json.loads(json.dumps(good))
        values["sweep"] |= changes
        if message is None:
            del values["sweep"]["system"]
            message = "line 1: its sweep names no system; delete the broken line"
        run.rows_path.write_text(json.dumps(values) + "\n")
        with pytest.raises(ValueError, match=message):
            run.rows()
