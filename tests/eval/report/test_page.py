"""The report's plots and its page."""

import numpy as np
import pytest

from eval.report.figure_style import NARROW, Canvas, ticks_where
from eval.report.page import render_page, without_plots
from eval.report.pareto_plot import error_front, pareto_plot, shown_errors
from eval.report.plots import PLOTS, Plot, draw_all
from tests.eval.report.test_report import FAST, loss, row, run_data, sweep_of


def test_the_page_holds_its_plots_links_its_rows_and_runs_no_html_of_others():
    tables = "| a |\n| --- |\n| #1 |\n\n| row |\n| --- |\n| #1 |\n"
    text = f"# <b>T</b>\n\n![cap *x*](plots/size.png)\n\nsee (#1)\n\n{tables}"
    page = render_page(text, {"size": Plot('<svg viewBox="0 0 1 1"><g id="a"/><use href="#a"/></svg>', b"")}, "en")
    assert "<b>T</b>" not in page
    assert 'id="size-wide-a"' in page and 'href="#size-wide-a"' in page and "<img" not in page
    assert page.count('<a href="#row-1">#1</a>') == 2 and page.count('id="row-1"') == 1
    assert "<svg" in page and "<svg" not in without_plots(page)


def test_the_error_plot_leaves_out_float_rounding_and_clips_nothing():
    data = run_data([
        row("fp32-fastest onnxruntime", "2x8", 8.0, 1e-6), row("fp32 onnxruntime", "2x8", 9.0, 0.0),
        row("max int8_linear onnxruntime", "2x8", 4.0, 0.05), row("mse int8_linear onnxruntime", "2x8", 5.0, 0.9),
    ], methods=("fp32", "max", "mse"), batch_sizes=(2,))  # fmt: skip
    assert list(shown_errors(data).values()) == [0.05, 0.9]
    low, high = pareto_plot(Canvas(data)).axes[1].get_ylim()
    assert low < 0.05 / 1.2 and high > 0.9 * 1.2
    assert error_front([(5.0, 0.9), (4.0, 0.05), (6.0, 0.01)]) == [(4.0, 0.05), (6.0, 0.01)]


def test_without_int8_the_error_plot_shows_float_and_without_errors_says_so():
    float_rows = [row("fp32-fastest onnxruntime", "2x8", 8.0, 1e-6), row("fp32 onnxruntime", "2x8", 9.0, 0.0)]
    assert list(shown_errors(run_data(float_rows, batch_sizes=(2,))).values()) == [1e-6]
    figure = pareto_plot(Canvas(run_data(float_rows[1:], batch_sizes=(2,))))
    assert [text.get_text() for text in figure.axes[1].texts] == ["no output differs"]


def test_every_system_has_one_look_in_all_plots_and_the_recommended_one_is_labelled():
    data = sweep_of((4.0, 0.2, loss(-0.001, 0.004)), (6.0, 0.1, loss(-0.001, 0.004)))
    looks = [tuple(Canvas(data).style(system).values()) for system in data.systems]
    assert len(set(looks)) == len(looks) == len({color for color, _ in looks})
    drawn = draw_all(data, 0.01)
    assert {"pareto", "batch"} <= drawn.keys()
    for name in ("pareto", "batch"):
        for svg in (drawn[name].svg, drawn[name].narrow_svg):
            assert "recommended" in svg and "max int8_linear" in svg, name
    figure = PLOTS["pareto"](Canvas(data, data.system_named(FAST), is_narrow=True))
    assert figure.get_figwidth() == NARROW
    assert [text.get_text().split(":")[0] for text in figure.axes[0].texts] == ["recommended"]


@pytest.mark.parametrize(
    "points", [[22.8, 23.1, 24.4, 26.7, 27.3], [22.8, 24.4, 27.3, 60.9, 84.0], [0.18, 0.45, 2.3], [3.0, 900.0], [5.0]]
)
def test_ticks_stand_where_the_points_are(points):
    low, high = min(points) / 1.15, max(points) * 1.15
    ticks = ticks_where(points, low, high, 9)
    assert all(low <= tick <= high for tick in ticks) and 2 <= len(ticks) <= 12
    for value in points:
        assert min(abs(np.log(tick / value)) for tick in ticks) < 0.26  # at most 30 % from a number on the axis


def test_the_page_shows_a_narrow_plot_on_a_phone():
    plot = Plot("<svg id='w'></svg>", b"", "<svg id='n'></svg>")
    page = render_page("# T\n\n![c](plots/size.png)\n", {"size": plot}, "en")
    assert '<div class="on-wide"><svg' in page and '<div class="on-narrow"><svg' in page
    assert ".on-narrow { display: none; }" in page and "min-width: 36rem" not in page
