"""The report's judgement and words, without a sweep: verdicts, ties, texts of both languages, figures as text."""

import dataclasses
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml

from engine.manifest import Products
from eval.report.advice import advise, dominated_recipes, has_fp8, smallest
from eval.report.context import Context
from eval.report.document.markdown import block_lines
from eval.report.figure_style import Canvas
from eval.report.pareto_plot import pareto_plot
from eval.report.run_data import RunData, label
from eval.report.sections import sizes, where_not
from eval.report.speeds import mean_speedup, ratio_over, speedup_at, verdict
from eval.report.summary_section import machine, summary
from eval.report.writing import TEXTS, Texts, interval, milliseconds, small, table
from eval.reproduce import Reproduction
from eval.results import ResultRow
from eval.sweep.run_folder import RunFolder, SweepRow
from eval.timing.in_turn import time_systems
from eval.timing.point_details import Details
from tests.eval.sweep.sweeps import sweep_options


def test_both_languages_have_the_same_sentences_with_the_same_values():
    en, zh = (yaml.safe_load((TEXTS / f"{lang}.yaml").read_text(encoding="utf-8")) for lang in ("en", "zh"))
    assert en.keys() == zh.keys()
    for key in en:
        names = [set(re.findall(r"\{(\w+)\}", str(texts[key]))) for texts in (en, zh)]
        assert names[0] == names[1], key
    assert Texts("en")("h_use", text="x") == "What it is used for: x"


def test_a_runner_that_fails_leaves_the_others_their_times(monkeypatch):
    monkeypatch.setattr("eval.timing.latency.PAUSE_S", 0.0)

    class Runner:
        input_names = ()

        def __init__(self, error=None):
            self.error = error

        def __call__(self, feeds):
            if self.error:
                raise self.error

    timing = time_systems({"a": Runner(MemoryError("too large")), "b": Runner()}, {}, "a", 2)
    assert timing.errors == {"a": "too large"} and timing.baseline == "b"
    assert timing.add_to(Details(), "b").speedup == 1


def test_fp8_is_named_only_where_the_gpu_has_it():
    assert has_fp8("NVIDIA H200") and has_fp8("NVIDIA L4") and has_fp8("NVIDIA GeForce RTX 4090")
    assert not has_fp8("NVIDIA A100-SXM4-80GB") and not has_fp8("AMD EPYC") and not has_fp8(None)


def test_figures_as_text():
    assert (milliseconds(0.12345), milliseconds(12.345), milliseconds(123.4)) == ("0.123", "12.35", "123")
    assert small(0.0) == "0" and interval("1", "0.9", "1.1") == "1 (0.9-1.1)"
    assert table(["a", "b"], [["x|y", "1"]]) == ["| a | b |", "| --- | ---: |", "| x\\|y | 1 |", ""]


def row(system, shape, latency, error, spread=0.01, metric=0.9, number=1, **values):
    """Return a row of a system that takes so many ms, its blocks scattered by `spread` in a way of its own."""
    scatter = np.random.default_rng(zlib.crc32(f"{system} {shape}".encode())).normal(0, spread, 12)
    base_ms = tuple(8.0 * np.exp(np.linspace(-0.01, 0.01, 12))) if system != "fp32-fastest onnxruntime" else None
    blocks = tuple(latency * np.exp(scatter - scatter.mean()))
    details = Details(block_ms=blocks, baseline="fp32-fastest onnxruntime", baseline_ms=base_ms)
    found = ResultRow(status="ok", latency_ms_p50=latency, error_abs_mean=error, metric=metric,
                      metric_name=values.pop("metric_name", "accuracy"), **values)  # fmt: skip
    return SweepRow(found, system, shape, details, number)


def text_of(*blocks):
    """Return blocks as Markdown."""
    return "\n".join(block_lines(blocks))


def run_data(rows, **changes):
    manifest = {"options": sweep_options("m", "d", references=("onnxruntime-fastest",), **changes).as_dict()}
    return RunData(RunFolder(Path("run")), manifest, tuple(rows))


def test_a_recipe_is_called_worse_only_where_it_is_surely_faster_at_no_shape():
    linear, full = "max int8_linear onnxruntime", "max int8_full onnxruntime"
    rows = [row(linear, "1x8", 4.0, 0.1), row(full, "1x8", 3.0, 0.2), row(linear, "2x8", 8.0, 0.1),
            row(full, "2x8", 9.0, 0.2)]  # fmt: skip
    recipes = ("int8_linear", "int8_full")
    assert dominated_recipes(run_data(rows, recipes=recipes)) == []
    tied = [rows[0], row(full, "1x8", 3.99, 0.2, 0.05), *rows[2:]]
    assert [(a.name, b.name) for a, b in dominated_recipes(run_data(tied, recipes=recipes))] == [(full, linear)]
    texts = text_of(where_not(Context(run_data(tied, recipes=recipes), Texts("en"), 0.01, {})))
    assert f"- {label(dominated_recipes(run_data(tied, recipes=recipes))[0][0])} changes the outputs more" in texts


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_int8_is_not_recommended_where_half_precision_is_faster(lang):
    full, half = "max int8_full tensorrt", "fp16 tensorrt"
    rows = [row("fp32 pytorch", "1x8", 2.0, 0.0), row(half, "1x8", 0.4, 0.001), row(full, "1x8", 0.5, 0.2)]
    options = {"methods": ("fp16", "max"), "recipes": ("int8_full",), "backends": ("pytorch", "tensorrt"),
               "batch_sizes": (1,)}  # fmt: skip
    advice = advise(run_data(rows, **options), 0.01)
    assert advice.chosen is None and advice.rival is not None and advice.rival.name == half
    context = Context(run_data(rows, **options), Texts(lang), 0.01, {})
    text = text_of(summary(context), where_not(context))
    assert "fp16, TensorRT" in text and "0.400" in text and "0.500" in text and "1.25" in text
    ahead = [rows[0], rows[1], row(full, "1x8", 0.3, 0.2)]
    assert advise(run_data(ahead, **options), 0.01).chosen is not None
    tied = [rows[0], rows[1], row(full, "1x8", 0.398, 0.2, 0.05)]
    assert advise(run_data(tied, **options), 0.01).chosen is None


FLOAT, FAST, EXACT = "fp32-fastest onnxruntime", "max int8_linear onnxruntime", "mse int8_linear onnxruntime"


def sweep_of(fast, exact, shapes=("1x8", "2x8"), **options):
    """Return a run of the float baseline (8 ms) and two INT8 systems, given as (ms, error, values of the row)."""
    rows = []
    for shape in shapes:
        rows += [row(FLOAT, shape, 8.0, 0.0, number=1, num_flips=0)]
        for number, (name, (latency, error, values)) in enumerate(((FAST, fast), (EXACT, exact)), 2):
            rows.append(row(name, shape, latency, error, number=number, **values))
    return run_data(rows, methods=("max", "mse"), batch_sizes=(1, 2), **options)


def loss(low, high, metric=0.9, **values):
    return {"loss_low": low, "loss_high": high, "metric": metric, **values}


def test_of_systems_that_cannot_be_told_apart_the_more_exact_is_taken_and_else_the_faster():
    sure = loss(-0.001, 0.004)
    equal = advise(sweep_of((4.0, 0.2, sure), (4.01, 0.1, sure)), 0.01)
    assert equal.chosen is not None and equal.chosen.name == EXACT and equal.is_proven
    faster = advise(sweep_of((4.0, 0.2, sure), (4.6, 0.1, sure)), 0.01)
    assert faster.chosen is not None and faster.chosen.name == FAST


def test_a_ratio_over_all_shapes_decides_where_no_single_shape_does():
    shapes = tuple(f"{batch}x{length}" for batch in (1, 2) for length in (8, 16, 32))
    data = sweep_of((7.6, 0.1, {"spread": 0.03}), (8.0, 0.1, {"spread": 0.03}), shapes, seq_lengths=(8, 16, 32))
    fast, base = (data.system_named(name) for name in (FAST, FLOAT))
    assert [verdict(data, fast, base, shape) for shape in data.shapes].count("faster") < len(shapes)
    assert verdict(data, fast, base) == "faster" and verdict(data, base, fast) == "slower"
    singles = [speedup_at(data, fast, shape).value for shape in data.shapes]
    pooled = ratio_over(data, fast, base)
    assert mean_speedup(data, fast).value == pytest.approx(float(np.exp(np.mean(np.log(singles)))))
    assert pooled.low < 8.0 / 7.6 < pooled.high


def later(row):
    """Return a row as measured in a second session, when everything took twice the time."""
    blocks, base = tuple(2 * ms for ms in row.details.block_ms), tuple(16 * np.exp(np.linspace(-0.01, 0.01, 12)))
    return dataclasses.replace(
        row, details=dataclasses.replace(row.details, timing=1, block_ms=blocks, baseline_ms=base)
    )


def test_rows_of_another_session_are_compared_over_their_own_baselines():
    data = sweep_of((4.0, 0.1, {}), (4.0, 0.1, {}))
    data = dataclasses.replace(data, rows=tuple(later(each) if each.system == EXACT else each for each in data.rows))
    fast, exact = (data.system_named(name) for name in (FAST, EXACT))
    assert verdict(data, fast, exact) == "equal"
    assert ratio_over(data, fast, exact).value == pytest.approx(1.0, rel=0.01)


def test_the_loss_that_may_be_lost_is_judged_by_its_interval():
    sure, unsure, lost = loss(-0.002, 0.008, 0.897), loss(-0.004, 0.013, 0.8955), loss(0.012, 0.04, 0.874)
    assert advise(sweep_of((4.0, 0.2, unsure), (5.0, 0.1, sure)), 0.01).chosen.name == EXACT  # slower, but proven
    both = sweep_of((4.0, 0.2, unsure), (5.0, 0.1, lost))
    advice = advise(both, 0.01)
    assert advice.chosen.name == FAST and not advice.is_proven
    text = text_of(summary(Context(both, Texts("en"), 0.01, {})))
    assert "**That is not proven:**" in text and "may be as much as 1.30 points of accuracy" in text
    none = advise(sweep_of((4.0, 0.2, lost), (5.0, 0.1, lost)), 0.01)
    assert none.chosen is None and none.closest is not None


def test_a_loss_that_the_exact_test_confirms_is_not_called_noise():
    real = loss(0.003, 0.040, 0.8761, mcnemar_p=0.020, num_flips=61, num_samples=872)
    text = text_of(summary(Context(sweep_of((4.0, 0.5, real), (6.0, 0.6, real)), Texts("en"), 0.03, {})))
    assert "exact McNemar p = 0.02" in text and "95 % interval of the loss 0.30 to 4.00" in text
    assert "may be chance" not in text
    chance = {**real, "loss_low": -0.004, "mcnemar_p": 0.21}
    assert "may be chance" in text_of(
        summary(Context(sweep_of((4.0, 0.5, chance), (6.0, 0.6, chance)), Texts("en"), 0.03, {})))  # fmt: skip
    old = {name: value for name, value in real.items() if name not in ("loss_low", "loss_high", "mcnemar_p")}
    text = text_of(summary(Context(sweep_of((4.0, 0.5, old), (6.0, 0.6, old)), Texts("en"), 0.03, {})))
    assert "hold no interval of the loss" in text and "may be chance" not in text


def test_the_best_by_error_and_by_size_are_named_too():
    small_file = {**loss(-0.001, 0.004), "size_bytes": 23_100_000, "num_flips": 15}
    large = {**loss(-0.001, 0.004), "size_bytes": 59_200_000}
    data = sweep_of((4.0, 0.2, large), (6.0, 0.1, small_file))
    assert [system.name for system in smallest(data)] == [EXACT, EXACT]
    text = text_of(summary(Context(data, Texts("en"), 0.01, {})))
    assert "smallest file: mse int8_linear, ONNX Runtime: 0.1 on average, 15 predictions differ" in text
    assert "23.1 MB. (#3)" in text
    exact = sweep_of((4.0, 0.1, small_file), (6.0, 0.2, large))
    assert "also changes the outputs least and has the smallest file" in text_of(
        summary(Context(exact, Texts("en"), 0.01, {})))  # fmt: skip


def test_the_warning_of_noise_looks_at_every_row():
    calm = sweep_of((4.0, 0.2, {"spread": 0.01}), (5.0, 0.1, {"spread": 0.01}))
    assert "less certain" not in text_of(summary(Context(calm, Texts("en"), 0.01, {})))
    noisy = sweep_of((4.0, 0.2, {"spread": 0.01}), (5.0, 0.1, {"spread": 0.5}))
    text = text_of(summary(Context(noisy, Texts("en"), 0.01, {})))
    assert "2 of 4 speed-ups are less certain than 10 % (the widest: mse int8_linear" in text
    assert "2 of 6 times have an interval wider than 25 %" in text and "after 12 rounds, the limit" in text


def test_a_perplexity_is_printed_as_one_and_less_of_it_is_better():
    worse, better = ({"metric_name": "perplexity", "metric": each, "loss_low": low, "loss_high": low + 0.01}
                     for each, low in ((24.0, 0.195), (20.1, 0.0)))  # fmt: skip
    rows = [row(FLOAT, "1x8", 8.0, 0.0, metric=20.0, metric_name="perplexity"),
            row(FAST, "1x8", 4.0, 0.2, **worse), row(EXACT, "1x8", 5.0, 0.1, **better)]  # fmt: skip
    data = run_data(rows, methods=("max", "mse"), batch_sizes=(1,))
    assert data.loss(data.system_named(FAST)) == pytest.approx(0.2)
    assert advise(data, 0.01).chosen.name == EXACT
    text = text_of(summary(Context(data, Texts("en"), 0.01, {})))
    assert "0.50 % in perplexity (20.1 against 20 of the float model" in text
    low, high = pareto_plot(Canvas(data)).axes[0].get_ylim()
    assert low > high  # better is up


def test_the_machines_int8_instructions_stand_first_where_they_are_known():
    data = sweep_of((4.0, 0.2, {}), (5.0, 0.1, {}))
    assert machine(Context(data, Texts("en"), 0.01, {})) == []
    known = dataclasses.replace(data.rows[0].details, cpu_flags=("avx2",), machine="x86_64")
    data = dataclasses.replace(data, rows=(dataclasses.replace(data.rows[0], details=known), *data.rows[1:]))
    lines = [each.text for each in machine(Context(data, Texts("en"), 0.01, {}))]
    assert "no VNNI; INT8 products gain at most about 1.3 times" in lines[0]
    mended = [line for line in lines if line.startswith("No INT8 sum saturates")]
    assert len(mended) == len(data.options.backends) and "x64quantprecision" in " ".join(mended)
    known = dataclasses.replace(known, cpu_flags=("avx2", "avx_vnni"))
    data = dataclasses.replace(data, rows=(dataclasses.replace(data.rows[0], details=known), *data.rows[1:]))
    lines = [each.text for each in machine(Context(data, Texts("en"), 0.01, {}))]
    assert "with VNNI" in lines[0] and len(lines) == 1


def test_products_of_tensorrt_are_called_a_plan():
    engine = row("max int8_full tensorrt", "1x8", 0.5, 0.2)
    engine = dataclasses.replace(engine, details=dataclasses.replace(engine.details, products=Products(int8=("a",))))
    options = {"methods": ("max",), "recipes": ("int8_full",), "backends": ("tensorrt",), "batch_sizes": (1,)}
    text = text_of(sizes(Context(run_data([engine], **options), Texts("en"), 0.01, {})))
    assert "1 / 1 (planned)" in text and "does not say" in text and "runtime's own graph" not in text


def test_a_reproduction_without_the_runs_checkpoint_says_what_can_be_said():
    unknown = ("num_scales_equal", "is_onnx_equal", "metric", "metric_before", "latency_ms", "latency_ms_before")
    values = {"row": 1, "system": "s", "shape": "1", "num_scales": 5, "is_latency_like": None, "differs": (),
              **dict.fromkeys(unknown)}  # fmt: skip
    assert "all 5 scales and weights equal" in str(Reproduction(is_source_equal=True, **values))
    text = str(Reproduction(is_source_equal=False, **values))
    assert "not all as they were" in text and "None" not in text
