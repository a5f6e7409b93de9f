"""The three cards: what is used, what it costs, how much faster it is; float's own where INT8 does not pay."""

import pytest

from eval.report.cards import cards
from eval.report.context import Context
from eval.report.speeds import mean_speedup, ratio_of
from eval.report.writing import Texts
from tests.eval.report.test_report import FAST, FLOAT, loss, row, run_data, sweep_of

SURE = loss(-0.001, 0.004, num_samples=100, num_flips=3)


def cards_of(data, max_loss=0.01, lang="en"):
    return cards(Context(data, Texts(lang), max_loss, {}))


def test_the_cards_name_the_choice_its_loss_with_interval_and_its_speed_against_the_fastest_float():
    data = sweep_of((4.0, 0.2, SURE), (6.0, 0.1, SURE))
    use, cost, speed = cards_of(data)
    assert use.answer == "max int8_linear, ONNX Runtime" and use.tone == cost.tone == speed.tone == "good"
    assert "at most 1.00 points" in " ".join(use.lines)
    assert cost.answer == "0.00 points of accuracy" and "-0.10 to 0.40, paired, 100 samples" in cost.lines[0]
    assert "3 of 100 predictions differ; an output changes by 0.2 on average." in cost.lines
    fast, base = data.system_named(FAST), data.system_named(FLOAT)
    found = ratio_of(data, fast, base)
    assert found.value == pytest.approx(mean_speedup(data, fast).value, rel=0.01)
    assert speed.answer == f"{found.value:.2f} times" and f"{found.low:.2f} to {found.high:.2f}" in speed.lines[0]
    assert "shapes (2)" in speed.lines[0] and "fastest float ONNX Runtime" in speed.lines[1]


def test_a_loss_that_is_not_proven_is_no_good_card():
    unsure = loss(-0.004, 0.013, 0.8955)
    use, cost, _ = cards_of(sweep_of((4.0, 0.2, unsure), (6.0, 0.3, unsure)))
    assert use.tone == cost.tone == "unsure" and "not proven" in use.lines[-1] and "may be chance" in cost.lines[-1]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_where_int8_does_not_pay_the_cards_are_of_float(lang):
    data = sweep_of((9.0, 0.2, SURE), (10.0, 0.1, SURE))
    use, cost, speed = cards_of(data, lang=lang)
    assert use.tone == "bad" and speed.tone == "unsure"
    assert use.answer == "fastest float ONNX Runtime" and ("不划算" if lang == "zh" else "does not pay") in use.lines[0]
    assert "0.00" in cost.answer and "max int8_linear, ONNX Runtime" in speed.lines[1] and "1.1" in speed.answer


def test_where_none_keeps_the_loss_the_card_says_which_comes_closest():
    lost = loss(0.05, 0.09, 0.83)
    use, _, speed = cards_of(sweep_of((4.0, 0.2, lost), (6.0, 0.1, loss(0.02, 0.06, 0.86))))
    assert use.answer == "fastest float ONNX Runtime" and "closest, mse int8_linear, ONNX Runtime" in use.lines[0]
    assert float(speed.answer.split()[0]) < 1  # float is slower than what loses too much


def test_what_was_not_measured_is_not_made_up():
    use, cost, speed = cards_of(run_data([row(FLOAT, "1x8", 8.0, 0.0)], methods=("max",), batch_sizes=(1,)))
    assert "No INT8 configuration" in use.lines[0] and speed.answer == "-" and cost.answer == "0.00 points of accuracy"
    unscored = {"metric": None, "metric_name": None}
    rows = [row(FLOAT, "1x8", 8.0, 0.0, **unscored), row(FAST, "1x8", 4.0, 0.1, **unscored)]
    use, cost, _ = cards_of(run_data(rows, methods=("max",), batch_sizes=(1,)))
    assert "not scored" in use.lines[0] and cost.answer == "-"
