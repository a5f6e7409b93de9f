"""The recommendation over several shapes: which system, at which row, and where none."""

import pytest
from test_report import row, run_data

from eval.report.advice import advise

LINEAR, FULL, FLOAT = "max int8_linear onnxruntime", "max int8_full onnxruntime", "fp32 onnxruntime"
OPTIONS = {"methods": ("fp32", "max"), "recipes": ("int8_linear", "int8_full")}


def advice(linear, full, ties=((), ()), metrics=(0.9, 0.9), errors=(0.1, 0.2), max_loss=0.01):
    """Return the advice on two recipes with these speed-ups at one and at two samples; float is the measure of both.

    Args: ties: at each shape, the pairs of systems that cannot be told apart there.
    """
    rows = []
    for i, shape in enumerate(("1x8", "2x8")):
        speeds = {FLOAT: 1.0, LINEAR: linear[i], FULL: full[i]}
        quality = {FLOAT: (0.0, 0.9), LINEAR: (errors[0], metrics[0]), FULL: (errors[1], metrics[1])}
        for name, speed in speeds.items():
            equal = [other for pair in ties[i] if name in pair for other in pair if other != name]
            rows.append(row(name, shape, 10 / speed, quality[name][0], speed, equal, quality[name][1]))
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


@pytest.mark.parametrize(("tied_at", "name"), [((0, 1), LINEAR), ((0,), FULL), ((1,), FULL)])
def test_of_two_that_no_shape_tells_apart_the_smaller_error_is_taken(tied_at, name):
    ties = [[(LINEAR, FULL)] if i in tied_at else [] for i in (0, 1)]
    _, result = advice(linear=(1.9, 1.9), full=(2.0, 2.0), ties=ties)
    assert result.chosen.name == name


def test_int8_must_be_ahead_over_all_shapes_and_surely_at_one():
    tied, one = [(LINEAR, FLOAT), (FULL, FLOAT)], ((1.2, 0.9), (1.2, 0.9))  # means 1.04
    assert advice(*one)[1].chosen is not None
    assert advice(*one, ties=(tied, tied))[1].chosen is None  # surely ahead nowhere
    assert advice(*one, ties=([], tied))[1].chosen is not None
    behind = advice((1.2, 0.8), (1.2, 0.8))[1]  # surely ahead at one shape, means 0.98
    assert behind.chosen is None and len(behind.within) == 2 and behind.closest is None
