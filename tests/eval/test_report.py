"""The report's judgement and words, without a sweep: verdicts, ties, texts of both languages, figures as text."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from sweeps import sweep_options

from eval.report.advice import advise, dominated_recipes, has_fp8, verdict
from eval.report.page import render_page, without_plots
from eval.report.pareto_plot import error_front, pareto_plot, shown_errors
from eval.report.plots import Plot
from eval.report.run_data import RunData, label
from eval.report.sections import Context, sizes, summary, where_not
from eval.report.writing import TEXTS, Texts, interval, milliseconds, points, small, table
from eval.reproduce import Reproduction
from eval.results import ResultRow
from eval.sweep.run_folder import RunFolder, SweepRow
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


@pytest.mark.parametrize(
    ("speedup", "ties", "word"),
    [(1.2, (), "faster"), (1.2, ("b",), "equal"), (0.9, ("b",), "equal"), (0.9, (), "slower")],
)
def test_verdicts(speedup, ties, word):
    assert verdict(row("a", "1", 1.0, 0.1, speedup, ties), row("b", "1", 1.0, 0.1, 1.0)) == word


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
    assert page.count('<a href="#row-1">#1</a>') == 2 and page.count('id="row-1"') == 1
    assert "<svg" in page and "<svg" not in without_plots(page)


def row(system, shape, latency, error, speedup, ties=(), metric=0.9):
    details = {"latency_ms_low": 0.9 * latency, "latency_ms_high": 1.1 * latency, "speedup": speedup,
               "speedup_low": 0.9 * speedup, "speedup_high": 1.1 * speedup, "ties": list(ties)}  # fmt: skip
    values = ResultRow(status="ok", latency_ms_p50=latency, error_abs_mean=error, metric=metric, metric_name="accuracy")
    return SweepRow(values, system, shape, details, 1)


def run_data(rows, **changes):
    manifest = {"options": sweep_options("m", "d", references=("onnxruntime-fastest",), **changes).as_dict()}
    return RunData(RunFolder(Path("run")), manifest, tuple(rows))


def test_the_error_plot_leaves_out_float_rounding_and_clips_nothing():
    data = run_data([
        row("fp32-fastest onnxruntime", "2x8", 8.0, 1e-6, 1), row("fp32 onnxruntime", "2x8", 9.0, 0.0, 0.9),
        row("max int8_linear onnxruntime", "2x8", 4.0, 0.05, 2),
        row("mse int8_linear onnxruntime", "2x8", 5.0, 0.9, 1.6),
    ], methods=("fp32", "max", "mse"), batch_sizes=(2,))  # fmt: skip
    assert list(shown_errors(data).values()) == [0.05, 0.9]
    low, high = pareto_plot(data).axes[1].get_ylim()
    assert low < 0.05 / 1.2 and high > 0.9 * 1.2
    assert error_front([(5.0, 0.9), (4.0, 0.05), (6.0, 0.01)]) == [(4.0, 0.05), (6.0, 0.01)]


def test_without_int8_the_error_plot_shows_float_and_without_errors_says_so():
    float_rows = [row("fp32-fastest onnxruntime", "2x8", 8.0, 1e-6, 1), row("fp32 onnxruntime", "2x8", 9.0, 0.0, 0.9)]
    assert list(shown_errors(run_data(float_rows, batch_sizes=(2,))).values()) == [1e-6]
    figure = pareto_plot(run_data(float_rows[1:], batch_sizes=(2,)))
    assert [text.get_text() for text in figure.axes[1].texts] == ["no output differs"]


def test_a_recipe_is_called_worse_only_where_it_is_surely_faster_at_no_shape():
    linear, full = "max int8_linear onnxruntime", "max int8_full onnxruntime"
    rows = [row(linear, "1x8", 4.0, 0.1, 2.0), row(full, "1x8", 3.0, 0.2, 2.6),
            row(linear, "2x8", 8.0, 0.1, 2.0, [full]), row(full, "2x8", 7.9, 0.2, 2.1, [linear])]  # fmt: skip
    recipes = ("int8_linear", "int8_full")
    assert dominated_recipes(run_data(rows, recipes=recipes)) == []
    tied = [rows[0], row(full, "1x8", 3.9, 0.2, 2.1, [linear]), *rows[2:]]
    assert [(a.name, b.name) for a, b in dominated_recipes(run_data(tied, recipes=recipes))] == [(full, linear)]
    texts = "\n".join(where_not(Context(run_data(tied, recipes=recipes), Texts("en"), 0.01, {})))
    assert f"- {label(dominated_recipes(run_data(tied, recipes=recipes))[0][0])} changes the outputs more" in texts


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_int8_is_not_recommended_where_half_precision_is_faster(lang):
    full, half = "max int8_full tensorrt", "fp16 tensorrt"
    rows = [row("fp32 pytorch", "1x8", 2.0, 0.0, 1.0), row(half, "1x8", 0.4, 0.001, 5.0),
            row(full, "1x8", 0.5, 0.2, 4.0)]  # fmt: skip
    options = {"methods": ("fp16", "max"), "recipes": ("int8_full",), "backends": ("pytorch", "tensorrt"),
               "batch_sizes": (1,)}  # fmt: skip
    advice = advise(run_data(rows, **options), 0.01)
    assert advice.chosen is None and advice.rival is not None and advice.rival.name == half
    context = Context(run_data(rows, **options), Texts(lang), 0.01, {})
    text = "\n".join([*summary(context), *where_not(context)])
    assert "fp16, TensorRT" in text and "0.400" in text and "0.500" in text and "1.25" in text
    ahead = [rows[0], rows[1], row(full, "1x8", 0.3, 0.2, 6.0)]
    assert advise(run_data(ahead, **options), 0.01).chosen is not None
    tied = [rows[0], rows[1], row(full, "1x8", 0.39, 0.2, 5.1, [half])]
    assert advise(run_data(tied, **options), 0.01).chosen is None


def test_products_of_tensorrt_are_called_a_plan():
    engine = row("max int8_full tensorrt", "1x8", 0.5, 0.2, 4.0)
    engine.details["products"] = {"int8": ["a"], "float": [], "attention_int8": [], "attention_float": []}
    options = {"methods": ("max",), "recipes": ("int8_full",), "backends": ("tensorrt",), "batch_sizes": (1,)}
    text = "\n".join(sizes(Context(run_data([engine], **options), Texts("en"), 0.01, {})))
    assert "1 / 1 (planned)" in text and "does not say" in text and "runtime's own graph" not in text


def test_a_reproduction_without_the_runs_checkpoint_says_what_can_be_said():
    unknown = ("num_scales_equal", "is_onnx_equal", "metric", "metric_before", "latency_ms", "latency_ms_before")
    values = {"row": 1, "system": "s", "shape": "1", "num_scales": 5, "is_latency_like": None, "differs": (),
              **dict.fromkeys(unknown)}  # fmt: skip
    assert "all 5 scales and weights equal" in str(Reproduction(is_source_equal=True, **values))
    text = str(Reproduction(is_source_equal=False, **values))
    assert "not all as they were" in text and "None" not in text
