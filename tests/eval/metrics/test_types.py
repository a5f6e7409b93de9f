"""Each metric's own range, direction and print; and rows of a version that knew none of these."""

import json

import numpy as np
import pytest

from eval.metrics import scores as metrics
from eval.metrics.types import METRICS, get_metric
from eval.results import ResultRow, append_row, read_rows


@pytest.mark.parametrize("num_present", [2, 3, 12, 20])
def test_perfect_predictions_have_f1_of_one_whatever_labels_occur(num_present):
    labels = np.arange(60) % num_present
    value = metrics.f1(labels, labels, 20)
    assert (value.value, value.low, value.high) == (1.0, 1.0, 1.0)
    assert metrics.f1(np.zeros(9, int), np.zeros(9, int), 2).value == 1.0  # no label 1, and none was predicted
    wrong = labels.copy()
    wrong[0] = 19 if num_present < 20 else 5  # a label that is predicted counts, though it never occurs
    assert metrics.f1(wrong, labels, 20).value < 1.0


def test_a_correlation_below_zero_stays_below_zero():
    y = np.arange(30.0)
    for correlation in (metrics.pearson, metrics.spearman):
        value = correlation(-y, y)
        assert (value.value, value.low, value.high) == pytest.approx((-1.0, -1.0, -1.0))
    assert metrics.pearson(np.ones(30), y).value == 0  # undefined
    ResultRow(metric_name="spearman", metric=-0.4, metric_low=-0.7, metric_high=0.1)


def test_perplexity_is_a_perplexity_and_less_is_better():
    value = metrics.perplexity(np.array([np.log(4.0) * 10, np.log(2.0) * 30]), np.array([10, 30]))
    assert value.value == pytest.approx(np.exp((10 * np.log(4) + 30 * np.log(2)) / 40))
    assert value.low <= value.value <= value.high and value.name == "perplexity"
    metric = METRICS["perplexity"]
    assert metric.loss(22.0, 20.0) == pytest.approx(0.1) and metric.loss(18.0, 20.0) == pytest.approx(-0.1)
    assert not metric.is_higher_better and metric.text(23.456) == "23.46" and metric.loss_text(0.1) == "10.00"
    ResultRow(metric_name="perplexity", metric=23.4, metric_low=22.0, metric_high=25.0)


def test_a_word_error_rate_above_one_fits_and_accuracy_above_one_does_not():
    row = ResultRow(metric_name="word_error_rate", metric=1.3, metric_low=1.1, metric_high=1.6)
    assert METRICS["word_error_rate"].loss(row.metric, 1.2) == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"metric 1.3 \(accuracy lies in \[0, 1\]\)"):
        ResultRow(metric_name="accuracy", metric=1.3)
    with pytest.raises(ValueError, match=r"metric -0.2 \(word_error_rate lies in \[0, inf\]\)"):
        ResultRow(metric_name="word_error_rate", metric=-0.2)


def test_an_unknown_metric_is_refused_with_near_matches():
    with pytest.raises(ValueError, match=r"no metric 'acuracy'.*did you mean accuracy\?.*a Metric in the task's file"):
        get_metric("acuracy")
    with pytest.raises(ValueError, match="no metric 'acuracy'"):
        ResultRow(metric_name="acuracy", metric=0.5)


def test_rows_of_an_older_version_are_read_filled_with_null_and_converted(tmp_path):
    path = tmp_path / "results.jsonl"
    append_row(path, ResultRow(task="perplexity"))
    values = json.loads(path.read_text())
    for name in ("mcnemar_p", "loss_low", "loss_high"):
        del values[name]
    values |= {"metric_name": "inverse_perplexity", "metric": 0.05, "metric_low": 0.04, "metric_high": 0.0625}
    path.write_text(json.dumps(values) + "\n")
    [row] = read_rows(path)
    assert (row.mcnemar_p, row.loss_low, row.loss_high) == (None, None, None)
    assert row.metric_name == "perplexity"
    assert (row.metric, row.metric_low, row.metric_high) == pytest.approx((20.0, 16.0, 25.0))
