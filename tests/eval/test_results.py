import json

import pytest

from eval.results import FIELD_NAMES, ResultRow, append_row, provenance, read_rows

CONTRACT = """schema status error command commit dirty versions device driver model task split num_samples recipe
recipe_digest calibrator training seed backend precision batch_size sequence_length metric_name metric metric_low
metric_high error_abs_max error_abs_mean error_abs_median error_rel_max error_rel_mean
error_rel_median cosine sqnr_db latency_ms_p50 latency_ms_p90 latency_ms_p99 iterations
throughput_per_s size_bytes num_flips threads padding metric_type mcnemar_p loss_low loss_high"""


def test_the_fields_are_those_of_the_contract():
    assert set(FIELD_NAMES) == set(CONTRACT.split())


def test_rows_survive_the_file_and_unmeasured_is_null(tmp_path):
    rows = [
        ResultRow(task="sst2", metric_name="accuracy", metric=0.5, num_flips=0, **provenance()),
        ResultRow(status="failed", error="out of memory"),
    ]
    path = tmp_path / "run" / "results.jsonl"
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows
    assert json.loads(path.read_text().splitlines()[0])["latency_ms_p50"] is None
    assert rows[0].versions and rows[0].device and rows[0].driver is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"status": "fine"}, "status 'fine'"),
        ({"metric_name": "accuracy", "metric": 89.79}, r"metric 89.79 \(accuracy lies in \[0, 1\]\)"),
        ({"metric": 0.5}, r"metric 0.5 without metric_name \(known: accuracy, "),
        ({"status": "failed"}, "failed without an error text"),
        ({"error_abs_max": float("nan")}, "use null"),
    ],
)
def test_impossible_rows_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ResultRow(**values)


def test_broken_files_are_named_with_their_line(tmp_path):
    path = tmp_path / "results.jsonl"
    with pytest.raises(FileNotFoundError, match="no results file"):
        read_rows(path)
    append_row(path, ResultRow())
    good = path.read_text()
    for line, message in (
        ('{"schema"', "line 2: not a JSON object"),
        ('{"schema": 0}', "line 2: schema 0, this version reads 1"),
        (good.replace('"task"', '"tusk"').strip(), "line 2: unknown fields tusk; the row is of a newer version"),
    ):
        path.write_text(good + line + "\n")
        with pytest.raises(ValueError, match=message):
            read_rows(path)
