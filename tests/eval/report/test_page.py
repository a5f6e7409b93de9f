"""The report as a document, its page, and its plots."""

import re
from pathlib import Path

import numpy as np
import pytest

from eval.report.__main__ import check
from eval.report.document.blocks import Card, Cell, Document, Figure, Items, Prose, Section, Table, row_cell
from eval.report.document.markdown import demoted, to_markdown
from eval.report.document.page import plain, render_page, without_plots
from eval.report.document.svg import inline_svg
from eval.report.figure_style import NARROW, Canvas, ticks_where
from eval.report.labels import place
from eval.report.pareto_plot import error_front, pareto_plot, shown_errors, wrapped
from eval.report.plots import PLOTS, Plot, draw_all
from eval.search.page import build as build_search
from eval.search.saved import read_search
from tests.eval.report.test_report import FAST, loss, row, run_data, sweep_of

REPORTS = Path(__file__).parents[3] / "benchmarks" / "reports"
SVG = '<svg width="9pt" viewBox="0 0 1 1"><g id="a" style="fill: #1a1c1f; stroke: url(#h)"/><use href="#a"/></svg>'
ROW_LIST = Section("rows", "Rows", (Table(("row",), ((row_cell(1),),), is_row_list=True),), is_folded=True)


def document(*blocks, title="T", cards=()):
    return Document(title, (), (Section("s", "S", blocks), ROW_LIST), cards)


def test_a_document_is_written_as_markdown_in_the_order_of_its_blocks():
    table = Table(("a", "b"), ((Cell("x|y"), Cell("1", 1.0)),))
    inner = Section("i", "Inner", (Items((Prose("one", (1,)), Prose("two"))),))
    text = to_markdown(document(Prose("p", (1, 2)), table, inner, Figure("size", "c")))
    assert text == ("# T\n\n## S\n\np (#1, #2)\n\n| a | b |\n| --- | ---: |\n| x\\|y | 1 |\n\n### Inner\n\n- one (#1)\n"
                    "- two\n\n![c](plots/size.png)\n\n## Rows\n\n| row |\n| --- |\n| #1 |\n")  # fmt: skip
    assert demoted("# a\n```\n# no heading\n```\n## b", 2) == "### a\n```\n# no heading\n```\n#### b"


def test_the_page_holds_its_plots_links_its_rows_and_runs_no_html_of_others():
    evil = "<b>T</b><script>alert(1)</script>"
    table = Table(("a", evil), ((Cell(evil), row_cell(1)), (Cell("<i>"), Cell("2", 2.0))))
    cards = (Card("Use this", f"**x** {evil}", (evil,)),)
    page = render_page(document(Prose(f"see {evil}", (1,)), table, Figure("size", f"cap *x* {evil}"), title=f"*{evil}*",
                                cards=cards), {"size": Plot(SVG, b"", SVG)})  # fmt: skip
    assert "<b>" not in page and "<i>" not in page and page.count("<script>") == 1
    assert 'id="size-wide-a"' in page and 'href="#size-narrow-a"' in page and "<img" not in page
    assert page.count('<a href="#row-1">#1</a>') == 2 and page.count('id="row-1"') == 1
    assert "<svg" in page and "<svg" not in without_plots(page)
    assert "style=" not in page and "http://" not in page and "https://" not in page
    assert plain("*a* `b` **c**") == "a b c"


def test_the_policy_names_the_pages_own_style_and_script():
    import base64
    import hashlib

    page = render_page(document(), {})
    for kind, pattern in (("style", r"<style>(.*?)</style>"), ("script", r"<script>(.*?)</script>")):
        (text,) = re.findall(pattern, page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src &#39;sha256-{digest}&#39;" in page
    assert "default-src &#39;none&#39;" in page


def test_a_plot_has_the_pages_ink_ids_of_its_own_and_no_style():
    svg = inline_svg(SVG, "size", 'says "it"', {"#1a1c1f": "var(--ink)"})
    assert 'fill="var(--ink)"' in svg and 'stroke="url(#size-h)"' in svg and 'href="#size-a"' in svg
    assert "style=" not in svg and "width" not in svg and 'aria-label="says &quot;it&quot;"' in svg
    assert inline_svg("", "size", "", {}) == "<svg></svg>"


@pytest.mark.parametrize("name", ["minilm", "minilm-h200"])
def test_committed_reports_are_what_their_rows_say(name):
    check(REPORTS / name)


def test_the_committed_search_is_what_its_rows_say():
    folder = REPORTS / "search-minilm"
    plots = {name: Plot("", b"") for name in ("map", "plans")}
    text, page = build_search(read_search(folder, folder), plots)
    assert text == (folder / "search.md").read_text(encoding="utf-8")
    assert without_plots(page) == without_plots((folder / "search.html").read_text(encoding="utf-8"))
    with pytest.raises(FileNotFoundError, match=r"holds no search\.json"):
        read_search(REPORTS, folder)


def boxes_of(points, sizes, panel, **more):
    centers = place(points, sizes, panel, [False] * len(sizes), **more)
    return [None if c is None else (*(c - s / 2), *(c + s / 2)) for c, s in zip(centers, sizes, strict=True)]


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@pytest.mark.parametrize("seed", range(3))
def test_labels_lie_over_no_other_no_point_and_inside_the_panel(seed):
    random = np.random.default_rng(seed)
    points = np.concatenate([random.normal((120, 150), 6, (8, 2)), random.uniform((20, 20), (280, 280), (5, 2))])
    sizes = [np.array([random.uniform(30, 70), 18.0]) for _ in range(11)]  # two points have no label
    found = boxes_of(points, sizes, np.array([0, 0, 300, 300]))
    assert all(box is not None for box in found)
    for i, box in enumerate(found):
        assert min(box) >= 0 and max(box) <= 300
        assert not any(overlap(box, other) for other in found[i + 1 :])
        assert not any(box[0] < x < box[2] and box[1] < y < box[3] for x, y in points)


def test_a_label_without_room_is_left_out_and_a_strong_one_first_served():
    points, sizes, panel = (
        np.array([[30.0, 16.0], [34.0, 16.0]]),
        [np.array([40.0, 12.0])] * 2,
        np.array([0, 0, 64, 44]),
    )
    first, second = place(points, sizes, panel, [False, True])
    assert first is None and second is not None
    first, second = place(points, sizes, panel, [True, False])
    assert first is not None and second is None
    assert place(points, [np.array([100.0, 12.0])] * 2, panel, [False, False]) == [None, None]
    assert wrapped("percentile int8_smoothquant") == "percentile\nint8_smoothquant" and wrapped("a b") == "a b"


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
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert len(shown) == len(data.systems) and sum("recommended" in text for text in shown) == 1


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
    page = render_page(document(Figure("size", "c")), {"size": Plot(SVG, b"", SVG)})
    assert '<div class="on-wide"><svg' in page and '<div class="on-narrow"><svg' in page
    assert ".on-narrow { display: none;" in page
