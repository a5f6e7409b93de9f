"""The choice and the costs: exact against brute force, fits that give back what made them."""

import json
from itertools import chain, combinations, pairwise

import numpy as np
import pytest

from eval.metrics.types import METRICS
from eval.search.answer import loss_in_words, samples_needed
from eval.search.cost import MOST_PARTS, costs_from_dict, fit, parts_of, plans_to_time, sure_pairs
from eval.search.fixes import worth_fixing
from eval.search.measure import AS_IT_IS, best_of
from eval.search.sensitivity import Errors, Unit, predict_from
from eval.search.solve import distinct, fastest_within


def units(blocks=3, parts=("qkv", "out", "ffn"), weights=(30, 10, 40)):
    return [Unit(str(b), part, (f"{b}.{part}.input",), (f"{b}.{part}",), w) for b in range(blocks)
            for part, w in zip(parts, weights, strict=True)]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_no_set_within_the_budget_saves_more(seed):
    rng = np.random.default_rng(seed)
    names = [f"u{i}" for i in range(9)]
    gains = dict(zip(names, rng.normal(0.5, 0.6, 9).tolist(), strict=True))
    squares = dict(zip(names, (rng.random(9) * 1e-6).tolist(), strict=True))  # as small as real squares are
    budget = 0.4 * sum(squares.values())
    every = chain.from_iterable(combinations(names, n) for n in range(10))
    best = max(sum(gains[n] for n in s) for s in every if sum(squares[n] for n in s) <= budget)
    found = fastest_within(gains, squares, budget)
    assert sum(squares[n] for n in found) <= budget * (1 + 1e-6)
    assert sum(gains[n] for n in found) == pytest.approx(best) and all(gains[n] > 0 for n in found)


@pytest.mark.parametrize("seed", range(6))
def test_no_set_saves_more_where_neighbours_save_together(seed):
    rng = np.random.default_rng(seed)
    names = [f"u{i}" for i in range(8)]
    gains = dict(zip(names, rng.normal(0.1, 0.5, 8).tolist(), strict=True))
    squares = dict(zip(names, (rng.random(8) * 1e-6).tolist(), strict=True))
    pairs = [(a, b, float(rng.normal(0, 0.6))) for a, b in pairwise(names)]
    budget = 0.5 * sum(squares.values())

    def saved(chosen):
        return sum(gains[n] for n in chosen) + sum(ms for a, b, ms in pairs if a in chosen and b in chosen)

    every = chain.from_iterable(combinations(names, n) for n in range(9))
    best = max(saved(s) for s in every if sum(squares[n] for n in s) <= budget)
    found = fastest_within(gains, squares, budget, pairs)
    assert sum(squares[n] for n in found) <= budget * (1 + 1e-6) and saved(found) == pytest.approx(best)


def test_nothing_is_chosen_where_nothing_pays_or_nothing_may_be_lost():
    assert fastest_within({"a": -1.0, "b": 0.0}, {"a": 1.0, "b": 1.0}, 9.0) == frozenset()
    assert fastest_within({"a": 1.0}, {"a": 1.0}, 0.0) == frozenset()
    plans = [frozenset("a"), frozenset(), frozenset("a"), frozenset("ab"), frozenset("b")]
    assert distinct(plans, 2) == [frozenset("a"), frozenset("ab")]


def test_linear_times_are_given_back_and_checked_on_plans_that_were_not_fitted():
    own = units()
    true = {unit.name: {"qkv": 0.3, "out": -0.1, "ffn": 0.8}[unit.part] for unit in own}
    plans, checks = plans_to_time(own, seed=1)
    times = {name: 10 - sum(true[u] for u in plan) for name, plan in plans.items()} | {"float": 10.0}
    found = fit(own, plans, times, checks, "8x64")
    assert found.float_ms == pytest.approx(10) and found.error < 1e-9 and len(found.checks) == 2
    assert found.gains == pytest.approx(true)
    times[checks[0]] *= 1.2
    assert fit(own, plans, times, checks, "8x64").error == pytest.approx(1 - 1 / 1.2)


def test_what_neighbours_save_together_is_given_back_and_none_is_made_up():
    own = units()
    true = {unit.name: {"qkv": 0.3, "out": -0.1, "ffn": 0.8}[unit.part] for unit in own}
    plans, checks = plans_to_time(own, seed=1)

    def time(plan, extra):
        together = sum(extra for b in range(3) if {f"{b} out", f"{b} ffn"} <= plan)
        return 10 - sum(true[u] for u in plan) - together

    times = {name: time(plan, 0.4) for name, plan in plans.items()} | {"float": 10.0}
    found = fit(own, plans, times, checks, "8x64", [("out", "ffn")])
    assert found.error < 1e-9 and found.gains == pytest.approx(true)
    assert {each[:2] for each in found.pairs} == {(f"{b} out", f"{b} ffn") for b in range(3)}
    assert [ms for _, _, ms in found.pairs] == pytest.approx([0.4] * 3)
    assert found.saved_by(["0 out"]) == pytest.approx(0.3)  # -0.1, and what the FFN gains by it
    assert costs_from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(("extra", "found"), [(0.4, [("out", "ffn")]), (-0.4, [("out", "ffn")]), (0.0, [])])
def test_a_pair_counts_where_rounds_tell_it_from_none_however_much_the_machine_drifts(extra, found):
    own = units()
    plans, _ = plans_to_time(own, seed=1)
    rng = np.random.default_rng(3)
    drift = 1 + 0.3 * rng.random(16)

    def blocks(plan):
        together = sum(extra for b in range(3) if {f"{b} out", f"{b} ffn"} <= plan)
        return (10 - 0.5 * len(plan) - together) * drift * (1 + 0.01 * rng.standard_normal(16))

    times = {name: blocks(plan) for name, plan in plans.items()} | {"float": blocks(frozenset())}
    assert sure_pairs(own, times) == found


def test_many_small_parts_share_one():
    own = units(2, tuple(f"p{i}" for i in range(12)), tuple(range(12, 0, -1)))
    parts = parts_of(own)
    assert len(parts) == MOST_PARTS + 1 and sum(map(len, parts.values())) == len(own)
    assert [unit.part for unit in parts["others"]] == ["p8", "p8", "p9", "p9", "p10", "p10", "p11", "p11"]


def test_errors_add_in_squares_and_bend_to_what_the_whole_model_shows():
    alone = {"a": Errors(0.1, 0.3), "b": Errors(0.1, 0.4)}
    found = predict_from(alone, Errors(0.2, 0.6))
    assert found.error(["a", "b"]) == pytest.approx(0.6) and found.bend == pytest.approx(0.36 / 0.25 - 1)
    assert 0.3 < found.error(["a"]) < 0.3 * 1.2 and found.error([]) == 0
    for error in (0.1, 0.35, 0.6):
        part = found.budget(error)
        assert (part * (1 + found.bend * part / found.total)) ** 0.5 == pytest.approx(error)
    flat = predict_from(alone, Errors(0.2, 0.5))
    assert flat.budget(0.3) == pytest.approx(0.09)
    assert predict_from({"a": Errors(0, 0)}, Errors(0, 0)).error(["a"]) == 0


@pytest.mark.parametrize(
    ("mse", "chosen"), [((0.5, 0.5), "mse"), ((0.5, 0.99), AS_IT_IS), ((0.97, 0.5), AS_IT_IS), ((1.2, None), AS_IT_IS)]
)
def test_a_fix_is_taken_where_both_halves_of_the_samples_say_so(mse, chosen):
    assert best_of({AS_IT_IS: (1.0, 1.0), "mse": mse}) == chosen


def test_the_fewest_units_that_hold_nearly_all_of_the_error_are_worth_a_fix():
    assert worth_fixing({"a": 0.02, "b": 0.5, "c": 0.38, "d": 0.07, "e": 0.03}) == {"b", "c", "d"}
    assert worth_fixing({"a": 0.0}) == frozenset() == worth_fixing({})


@pytest.mark.parametrize(
    ("metric", "said"), [("accuracy", "1.23 %"), ("perplexity", "1.23 %"), ("spearman", "0.0123"), (None, "0.0123")]
)
def test_a_loss_is_said_in_what_its_metric_counts_it(metric, said):
    assert loss_in_words(METRICS[metric] if metric else None, 0.0123) == said


def test_the_samples_that_prove_a_loss_grow_with_the_square_of_the_interval_over_the_room():
    assert samples_needed(872, 0.001, 0.009, 0.005) == 3500  # twice the width: four times as many, of two digits
    assert samples_needed(872, 0.001, 0.004, 0.005) == 500  # fewer than there are
    assert samples_needed(872, 0.005, 0.009, 0.005) is None and samples_needed(872, 0.1, 0.2, 0.005) is None
