"""The answer's sentence, on rows made for it."""

from types import SimpleNamespace

import pytest

from engine.inspect.expect import Difference
from eval.report.advice import advise
from eval.results import ResultRow
from eval.search.answer import answer_of, chosen_of
from eval.sweep.run_folder import SweepRow
from tests.eval.report.test_report import FAST, FLOAT, loss, row, run_data, sweep_of

SURE = loss(-0.001, 0.004, num_samples=100, num_flips=3)
UNSURE = loss(-0.004, 0.020, 0.892, num_samples=100)  # 0.8 points lost by the value, perhaps two


def answer(data, max_loss=0.01, max_error=None, gate=None):
    asked = SimpleNamespace(model="my bert", task="sst2", recipes=("int8_linear",), data=None)
    options = SimpleNamespace(max_loss=max_loss, max_error=max_error, sweep=asked)
    advice = advise(data, max_loss)
    chosen = chosen_of(data, advice, options)
    return answer_of(SimpleNamespace(proof=data, advice=advice, options=options, chosen=chosen, num_left=0, gate=gate))


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


def test_a_gain_within_three_percent_goes_to_the_smaller_error_and_no_more():
    noisy = {**SURE, "spread": 0.2}
    near = answer(sweep_of((4.0, 0.2, noisy), (4.05, 0.1, noisy)))
    far = answer(sweep_of((4.0, 0.2, noisy), (4.3, 0.1, noisy)))
    assert "(mse int8_linear, ONNX Runtime" in near and "(max int8_linear, ONNX Runtime" in far


def test_a_proven_plan_that_errs_too_much_hides_none_that_keeps_the_loss_by_its_value():
    found = answer(sweep_of((4.0, 0.2, SURE), (6.0, 0.1, UNSURE)), max_error=0.15)
    assert found.startswith("INT8 pays here: ") and "by the value alone: 100 samples do not prove the loss" in found


def test_where_so_few_samples_cannot_tell_it_is_said_with_how_many_could():
    lost = loss(0.002, 0.06, 0.88, num_samples=100)
    found = answer(sweep_of((4.0, 0.2, lost), (6.0, 0.1, lost)))
    assert "loses 2.00 %, which 100 samples cannot tell from what is asked (about " in found
    assert "Train: python train_qat.py --model 'my bert' --task sst2 --recipe int8_linear --out RUN" in found
    sure = loss(0.015, 0.06, 0.88, num_samples=100)
    assert "cannot tell" not in answer(sweep_of((4.0, 0.2, sure), (6.0, 0.1, sure)))


def test_plans_that_failed_are_no_plans_that_lose_too_much():
    failed = SweepRow(ResultRow(status="failed", error="no memory"), FAST, "1x8")
    found = answer(run_data([row(FLOAT, "1x8", 8.0, 0.0), failed], methods=("max",), batch_sizes=(1,)))
    assert found == "not known: no plan could be measured (1 failed; max int8_linear, ONNX Runtime: failed: no memory)"


def test_layers_that_do_not_run_as_planned_are_said():
    gate = Difference(("a", "b"), (), 3)
    found = answer(sweep_of((4.0, 0.2, SURE), (6.0, 0.1, SURE)), gate=gate)
    assert "; 2 layers planned in INT8 do not run so there" in found
