"""The answer's sentence, on rows made for it."""

from types import SimpleNamespace

import pytest

from eval.report.advice import advise
from eval.search.result import answer_of, chosen_of
from tests.eval.report.test_report import loss, sweep_of

SURE = loss(-0.001, 0.004, num_samples=100, num_flips=3)
UNSURE = loss(-0.004, 0.020, 0.892, num_samples=100)  # 0.8 points lost by the value, perhaps two


def answer(data, max_loss=0.01, max_error=None):
    options = SimpleNamespace(max_loss=max_loss, max_error=max_error)
    advice = advise(data, max_loss)
    chosen = chosen_of(data, advice, options)
    return answer_of(SimpleNamespace(proof=data, advice=advice, options=options, chosen=chosen, num_left=0))


def test_what_is_faster_and_only_lacks_samples_is_named():
    found = answer(sweep_of((4.0, 0.2, UNSURE), (6.0, 0.1, SURE)))
    assert found.startswith("INT8 pays here: ") and "mse int8_linear, ONNX Runtime: loss" in found
    assert "; max int8_linear, ONNX Runtime is " in found and "but 100 samples do not prove the loss, about " in found


LOST = loss(0.02, 0.04, 0.87)


@pytest.mark.parametrize(
    ("first", "max_error"),
    [((4.0, 0.2, SURE), None), ((4.0, 0.2, UNSURE), 0.15), ((9.0, 0.2, UNSURE), None), ((4.0, 0.2, LOST), None)],
)
def test_what_is_sure_errs_too_much_is_slower_or_loses_more_is_not(first, max_error):
    assert "do not prove" not in answer(sweep_of(first, (6.0, 0.1, SURE)), max_error=max_error)


def test_where_what_is_proven_gains_nothing_a_gain_that_lacks_samples_is_named():
    found = answer(sweep_of((4.0, 0.2, UNSURE), (8.0, 0.1, SURE)))
    assert found.startswith("INT8 does not pay here, because the best plan within the loss is 1.00 times")
    assert "; max int8_linear, ONNX Runtime is 2.0" in found and "100 samples do not prove the loss, about " in found
