"""The report's judgement and words, without a sweep: verdicts, ties, texts of both languages, figures as text."""

import re

import numpy as np
import pytest
import yaml

from eval.report.advice import has_fp8, verdict
from eval.report.page import render_page, without_plots
from eval.report.plots import Plot
from eval.report.writing import TEXTS, Texts, interval, milliseconds, points, small, table
from eval.results import ResultRow
from eval.sweep.run_folder import SweepRow
from eval.sweep.timing import is_tie, median_interval, time_systems


def test_both_languages_have_the_same_sentences_with_the_same_values():
    en, zh = (yaml.safe_load((TEXTS / f"{lang}.yaml").read_text(encoding="utf-8")) for lang in ("en", "zh"))
    assert en.keys() == zh.keys()
    for key in en:
        names = [set(re.findall(r"\{(\w+)\}", str(texts[key]))) for texts in (en, zh)]
        assert names[0] == names[1], key
    assert Texts("en")("h_use", text="x") == "What it is used for: x"


def test_ties_are_what_the_interval_of_the_ratio_says():
    rng = np.random.default_rng(0)
    base = rng.normal(10, 0.2, 12)
    assert is_tie(list(base), list(base * rng.normal(1, 0.01, 12)))
    assert not is_tie(list(base), list(base * 0.8))
    middle, low, high = median_interval(base)
    assert low < middle < high and middle == np.median(base)


def test_a_runner_that_fails_leaves_the_others_their_times(monkeypatch):
    monkeypatch.setattr("eval.latency.PAUSE_S", 0.0)

    class Runner:
        input_names = ()

        def __init__(self, error=None):
            self.error = error

        def __call__(self, feeds):
            if self.error:
                raise self.error

    timing = time_systems({"a": Runner(MemoryError("too large")), "b": Runner()}, {}, "a", 2)
    assert timing.errors == {"a": "too large"} and timing.baseline == "b" and timing.details("b")["speedup"] == 1


@pytest.mark.parametrize(("low", "high", "word"), [(1.1, 1.3, "faster"), (0.9, 1.1, "equal"), (0.5, 0.9, "slower")])
def test_verdicts(low, high, word):
    assert verdict(SweepRow(ResultRow(), "s", "1", {"speedup_low": low, "speedup_high": high})) == word


def test_fp8_is_named_only_where_the_gpu_has_it():
    assert has_fp8("NVIDIA H200") and has_fp8("NVIDIA L4") and has_fp8("NVIDIA GeForce RTX 4090")
    assert not has_fp8("NVIDIA A100-SXM4-80GB") and not has_fp8("AMD EPYC") and not has_fp8(None)


def test_figures_as_text():
    assert (milliseconds(0.12345), milliseconds(12.345), milliseconds(123.4)) == ("0.123", "12.35", "123")
    assert points(-0.00001) == "0.00" and small(0.0) == "0" and interval("1", "0.9", "1.1") == "1 (0.9-1.1)"
    assert table(["a", "b"], [["x|y", "1"]]) == ["| a | b |", "| --- | ---: |", "| x\\|y | 1 |", ""]


def test_the_page_holds_its_plots_links_its_rows_and_runs_no_html_of_others():
    tables = "| a |\n| --- |\n| #1 |\n\n| row |\n| --- |\n| #1 |\n"
    text = f"# <b>T</b>\n\n![cap *x*](plots/size.png)\n\nsee (#1)\n\n{tables}"
    page = render_page(text, {"size": Plot('<svg viewBox="0 0 1 1"><g id="a"/><use href="#a"/></svg>', b"")}, "en")
    assert "<b>T</b>" not in page and 'id="size-a"' in page and 'href="#size-a"' in page and "<img" not in page
    assert page.count('<a href="#row-1">1</a>') == 2 and page.count('id="row-1"') == 1
    assert "<svg" in page and "<svg" not in without_plots(page)
