"""The recommendation over several shapes: which system, at which row, and where none."""

import pytest

from eval.report.advice import advise
from tests.eval.report.test_report import row, run_data

LINEAR, FULL, FLOAT = "max int8_linear onnxruntime", "max int8_full onnxruntime", "fp32 onnxruntime"
OPTIONS = {"methods": ("fp32", "max"), "recipes": ("int8_linear", "int8_full")}
QUIET, BUSY = 0.01, 1.0  # the scatter of a block's time: 1 %, and e-fold


def advice(linear, full, spread=QUIET, metrics=(0.9, 0.9), errors=(0.1, 0.2), max_loss=0.01):
    """Return the advice on two recipes that are so many times as fast as float, at one and at two samples."""
    rows = []
    for i, shape in enumerate(("1x8", "2x8")):
        speeds = {FLOAT: 1.0, LINEAR: linear[i], FULL: full[i]}
        quality = {FLOAT: (0.0, 0.9), LINEAR: (errors[0], metrics[0]), FULL: (errors[1], metrics[1])}
        for name, speed in speeds.items():
            error, metric = quality[name]
            rows.append(row(name, shape, 10 / speed, error, spread, metric))
    data = run_data(rows, **OPTIONS)
    assert {shape.name for shape in data.shapes} == {"1x8", "2x8"}
    return data, advise(data, max_loss)


def test_the_fastest_over_all_shapes_is_taken_not_the_fastest_at_one():
    data, result = advice(linear=(3.0, 1.1), full=(2.0, 2.0))  # means 1.82 and 2.00
    assert result.chosen.name == FULL and [s.name for s in result.within] == [FULL, LINEAR]
    assert result.row.system == FULL and result.row.shape == data.primary.name and result.rival.name == FLOAT
    _, result = advice(linear=(3.0, 1.5), full=(2.0, 2.0))  # 2.12
    assert result.chosen.name == LINEAR


def test_a_larger_loss_than_allowed_rules_the_fastest_out_and_all_of_them_leave_the_closest():
    _, result = advice(linear=(1.5, 1.5), full=(2.0, 2.0), metrics=(0.895, 0.88))
    assert result.chosen.name == LINEAR and [s.name for s in result.within] == [LINEAR] and result.closest is None
    _, result = advice(linear=(1.5, 1.5), full=(2.0, 2.0), metrics=(0.87, 0.88))
    assert result.chosen is None and result.row is None and result.within == () and result.closest.name == FULL
    _, result = advice(linear=(1.5, 1.5), full=(2.0, 2.0), metrics=(0.87, 0.88), max_loss=0.025)
    assert result.chosen.name == FULL and [s.name for s in result.within] == [FULL]


@pytest.mark.parametrize(("spread", "name"), [(0.2, LINEAR), (QUIET, FULL)], ids=["not told apart", "told apart"])
def test_of_two_that_all_shapes_do_not_tell_apart_the_smaller_error_is_taken(spread, name):
    _, result = advice(linear=(5.7, 5.7), full=(6.0, 6.0), spread=spread)
    assert result.chosen.name == name


def test_int8_must_be_surely_ahead_over_all_shapes():
    ahead = ((1.3, 0.9), (1.3, 0.9))  # means 1.08
    assert advice(*ahead)[1].chosen is not None
    assert advice(*ahead, spread=BUSY)[1].chosen is None  # ahead, but not surely
    behind = advice((1.2, 0.8), (1.2, 0.8))[1]  # ahead at one shape, means 0.98
    assert behind.chosen is None and len(behind.within) == 2 and behind.closest is None
