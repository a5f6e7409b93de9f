"""An evaluation as a result row, and in words: one line for the result, a few for the details on stderr."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from eval.evaluate import Evaluation
from eval.metrics.scores import MetricValue
from eval.results import ResultRow, provenance
from eval.subject import Subject

logger = logging.getLogger(__name__)


def summary_line(model: str, row: ResultRow, evaluation: Evaluation) -> str:
    """Return one line: the metrics with their intervals, the reference's, errors, flips, latency and size."""
    scores = evaluation.scores
    parts = [", ".join(str(metric) for metric in scores.metrics)]
    if evaluation.reference_scores is not None:
        parts.append(_loss_in_words(scores.metrics[0], evaluation))
    if evaluation.error is not None:
        parts.append(f"|error| mean {evaluation.error.abs_mean:.3g}, max {evaluation.error.abs_max:.3g}")
    if evaluation.num_flips is not None:
        assert scores.predictions is not None
        p = "" if evaluation.mcnemar_p is None else f" (McNemar p {evaluation.mcnemar_p:.2g})"
        parts.append(f"{evaluation.num_flips} of {len(scores.predictions)} predictions differ{p}")
    if evaluation.latency is not None:
        shape = f"{row.batch_size}" + (f"x{row.sequence_length}" if row.sequence_length else "")
        parts.append(f"p50 {evaluation.latency.latency_ms_p50:.2f} ms at {shape}")
    if row.size_bytes:
        parts.append(f"{row.size_bytes / 1e6:.1f} MB")
    return f"{model} on {row.task}/{row.split} ({scores.num_examples} samples): " + "; ".join(parts)


def _loss_in_words(value: MetricValue, evaluation: Evaluation) -> str:
    """Return the reference's metric, and the loss with its interval."""
    assert evaluation.reference_scores is not None
    metric, reference = value.metric, evaluation.reference_scores.metrics[0].value
    words = f"reference {reference:.4f}"
    if evaluation.loss_interval is None:
        return words
    low, high = (metric.loss_text(end) for end in evaluation.loss_interval)
    unit = {"points": " points", "relative": " %", "plain": ""}[metric.loss_key]
    return f"{words}, loss {metric.loss_text(metric.loss(value.value, reference))} [{low}, {high}]{unit}"


def log_details(evaluation: Evaluation) -> None:
    """Log the errors of each output and the tail latencies."""
    for name, error in evaluation.errors.items():
        cosine = "-" if error.cosine is None else f"{error.cosine:.6f}"
        sqnr = "equal" if error.sqnr_db is None else f"{error.sqnr_db:.1f} dB"
        logger.info(
            f"{name}: absolute max {error.abs_max:.4g}, mean {error.abs_mean:.4g}, median {error.abs_median:.4g}, p99 "
            f"{error.abs_p99:.4g}; relative max {error.rel_max:.4g}, mean {error.rel_mean:.4g}, median "
            f"{error.rel_median:.4g}, "
            f"p99 {error.rel_p99:.4g}; cosine {cosine}, SQNR {sqnr}"
        )
    if evaluation.latency is not None:
        latency = evaluation.latency
        logger.info(
            f"latency p50 {latency.latency_ms_p50:.3f} ms, p90 {latency.latency_ms_p90:.3f} ms, p99 "
            f"{latency.latency_ms_p99:.3f} ms "
            f"over {latency.iterations} calls"
        )


def result_row(subject: Subject, evaluation: Evaluation, arguments: argparse.Namespace, command: str) -> ResultRow:
    """Return the row of one evaluation: what was measured, of what, with which options."""
    metric, error, latency = evaluation.scores.metrics[0], evaluation.error, evaluation.latency
    values: dict[str, Any] = {}
    if error is not None:
        names = ("abs_max", "abs_mean", "abs_median", "rel_max", "rel_mean", "rel_median")
        values |= {f"error_{name}": getattr(error, name) for name in names}
        values |= {"cosine": error.cosine, "sqnr_db": error.sqnr_db}
    if latency is not None:
        times = ("latency_ms_p50", "latency_ms_p90", "latency_ms_p99", "iterations")
        values |= {name: getattr(latency, name) for name in times}
        values["throughput_per_s"] = latency.throughput_per_s(arguments.batch_size)
    facts = (
        "model",
        "backend",
        "precision",
        "size_bytes",
        "recipe",
        "recipe_digest",
        "calibrator",
        "training",
        "threads",
    )
    values |= {name: getattr(subject, name) for name in facts}
    for name in ("split", "seed", "batch_size", "padding"):
        values[name] = getattr(arguments, name)
    return ResultRow(
        command=command,
        task=evaluation.task,
        num_samples=evaluation.scores.num_examples,
        sequence_length=evaluation.sequence_length,
        metric_name=metric.name,
        metric_type=metric.metric,
        metric=metric.value,
        metric_low=metric.low,
        metric_high=metric.high,
        mcnemar_p=evaluation.mcnemar_p,
        loss_low=evaluation.loss_interval[0] if evaluation.loss_interval else None,
        loss_high=evaluation.loss_interval[1] if evaluation.loss_interval else None,
        num_flips=evaluation.num_flips,
        **values,
        **provenance(arguments.device),
    )
