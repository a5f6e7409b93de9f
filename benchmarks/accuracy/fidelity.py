"""Fidelity: how far each system's INT8 model lies from the float one on SST-2's validation sentences, over draws.

python -m benchmarks.accuracy.fidelity --model DIR --data DIR --draws 5 --out benchmarks/results/fidelity.jsonl
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from scipy.stats import binomtest

from benchmarks.accuracy.sst2 import Feeds, FloatModel, draw_sentences, load_float, read_split, tokenize
from benchmarks.peers import PEERS, float_onnx, get_peer
from benchmarks.rows import append_row
from benchmarks.runtimes import Artifact, engine_artifact, open_artifact, predict
from engine.cli import CommandParser, run_command

TARGETS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class Reference:
    """The float model in fp32 PyTorch: feeds of shape (rows, tokens), labels (rows,), logits (rows, classes)."""

    feeds: Feeds
    labels: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class Candidate:
    """One artifact to score, from which calibration draw, and how long it took to make; or why there is none."""

    system: str
    artifact: Artifact | None
    seed: int | None = None
    prepare_s: float | None = None
    recipe: str | None = None
    error: str | None = None


def score(logits: np.ndarray, reference: Reference) -> dict[str, float | int]:
    """Return accuracy, mean and largest |Δlogit|, flips, and the exact two-sided McNemar p of right answers."""
    right, float_right = (array.argmax(1) == reference.labels for array in (logits, reference.logits))
    lost, won = int((float_right & ~right).sum()), int((right & ~float_right).sum())
    change = np.abs(logits.astype(np.float64) - reference.logits)
    return {
        "accuracy": float(right.mean()),
        "float_accuracy": float(float_right.mean()),
        "mean_abs_logit_change": float(change.mean()),
        "max_abs_logit_change": float(change.max()),
        "num_flips": int((logits.argmax(1) != reference.logits.argmax(1)).sum()),
        "mcnemar_p": binomtest(lost, lost + won).pvalue if lost + won else 1.0,
        "num_samples": len(right),
    }


def float_candidates(loaded: FloatModel, folder: Path) -> Iterator[Candidate]:
    """Yield the float model in each runtime: what the runtimes alone change."""
    path = float_onnx(loaded, folder)
    yield Candidate("float, PyTorch", Artifact("pytorch", model=loaded.model))
    yield Candidate("float, ONNX Runtime", Artifact("onnxruntime", path))
    yield Candidate("float, OpenVINO", Artifact("openvino", path))


def peer_candidates(
    keys: list[str], loaded: FloatModel, options: argparse.Namespace, folder: Path
) -> Iterator[Candidate]:
    """Yield each peer once per draw, `--peer-draws` of them (one if its calibration does not depend on the draw)."""
    for key in keys:
        peer = get_peer(key)
        for seed in range(options.peer_draws if peer.is_calibrated else 1):
            sentences = draw_sentences(options.data, options.num_samples, seed)
            start = time.perf_counter()
            artifact = peer.prepare(loaded, sentences, folder)
            yield Candidate(peer.name, artifact, seed if peer.is_calibrated else None, time.perf_counter() - start)


def int8kit_candidates(options: argparse.Namespace, folder: Path) -> Iterator[Candidate]:
    """Yield int8kit's engines, made by its commands as a user types them, from the peers' sentences."""
    for seed in range(options.draws):
        work = folder / f"int8kit-{options.label}-{seed}"
        work.mkdir(exist_ok=True)
        samples = work / "samples.jsonl"
        lines = (json.dumps({"sentence": text}) for text in draw_sentences(options.data, options.num_samples, seed))
        samples.write_text("\n".join(lines) + "\n")
        start = time.perf_counter()
        checkpoint = work / "checkpoint"
        calibrate = f"-m calib --model {options.model} --samples {samples} --num-samples {options.num_samples}"
        _int8kit(options, f"{calibrate} --seed {seed} --out {checkpoint} {options.calib_options}")
        calib_s = time.perf_counter() - start
        for target in options.targets:
            system, recipe = (
                f"int8kit {options.label}, {TARGETS[target]}",
                f"{options.calib_options} {options.export_options}",
            )
            try:
                engine, seconds = _export_and_build(options, work, target)
            except RuntimeError as error:
                yield Candidate(system, None, seed, recipe=recipe.strip() or "default", error=str(error))
                continue
            yield Candidate(
                system, engine_artifact(engine, target), seed, calib_s + seconds, recipe.strip() or "default"
            )


def _export_and_build(options: argparse.Namespace, work: Path, target: str) -> tuple[Path, float]:
    """Return the engine made from the checkpoint in `work`, and the seconds it took."""
    start = time.perf_counter()
    onnx_path, engine = work / f"{target}.onnx", work / f"{target}.engine"
    export = f"export.py --checkpoint {work / 'checkpoint'} --target {target} --out {onnx_path}"
    _int8kit(options, f"{export} {options.export_options}")
    _int8kit(options, f"build_engine.py --onnx {onnx_path} --backend {target} --out {engine}")
    return engine, time.perf_counter() - start


def _int8kit(options: argparse.Namespace, words: str) -> None:
    result = subprocess.run(
        [options.int8kit_python, *shlex.split(words), "--force"], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise RuntimeError(
            f"'python {words}' ended with {result.returncode}: {result.stderr.strip().splitlines()[-1:]}"
        )


def run(options: argparse.Namespace) -> None:
    """Score every asked-for system and append a row for each draw."""
    loaded = load_float(options.model)
    sentences, labels = read_split(options.data, "validation")
    feeds = tokenize(loaded.tokenizer, sentences, options.length)
    logits = predict(open_artifact(Artifact("pytorch", model=loaded.model), options.threads), feeds)
    reference = Reference(feeds, labels, logits)
    with TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.systems is None or "float" in options.systems:
            _score_all(float_candidates(loaded, folder), reference, options)
        peers = [key for key in (options.systems or PEERS) if key not in ("float", "int8kit")]
        _score_all(peer_candidates(peers, loaded, options, folder), reference, options)
        if options.systems is None or "int8kit" in options.systems:
            _score_all(int8kit_candidates(options, folder), reference, options)


def _score_all(candidates: Iterator[Candidate], reference: Reference, options: argparse.Namespace) -> None:
    for candidate in candidates:
        values: dict[str, Any] = {"status": "ok", "error": None}
        if candidate.artifact is None:
            values = {"status": "failed", "error": candidate.error}
            print(f"{candidate.system} seed {candidate.seed}: {candidate.error}", file=sys.stderr, flush=True)
        else:
            logits = predict(open_artifact(candidate.artifact, options.threads), reference.feeds)
            values |= score(logits, reference)
            values |= {"runtime": candidate.artifact.runtime, "size_bytes": candidate.artifact.size_bytes}
            print(
                f"{candidate.system} seed {candidate.seed}: accuracy {values['accuracy']:.4f}, "
                f"mean |Δlogit| {values['mean_abs_logit_change']:.4f}, {values['num_flips']} flips, "
                f"p {values['mcnemar_p']:.3f}",
                flush=True,
            )
        append_row(
            options.out,
            "fidelity",
            system=candidate.system,
            seed=candidate.seed,
            recipe=candidate.recipe,
            **values,
            num_calibration=options.num_samples,
            length=options.length,
            threads=options.threads,
            prepare_s=candidate.prepare_s,
        )


def parser() -> CommandParser:
    """Return the command's parser."""
    command = CommandParser("python -m benchmarks.accuracy.fidelity", __doc__ or "")
    command.add_argument("--model", required=True, help="folder of the float classifier")
    command.add_argument(
        "--data", required=True, help="folder with train.parquet and validation.parquet (sentence, label)"
    )
    command.add_argument("--out", default="benchmarks/results/fidelity.jsonl", help="rows are appended here")
    command.add_argument("--systems", nargs="+", choices=["float", "int8kit", *PEERS], help="only these (default: all)")
    command.add_argument("--draws", type=int, default=5, help="calibration draws of int8kit, seeds 0 to draws - 1")
    command.add_argument("--peer-draws", type=int, default=1, help="calibration draws of each peer")
    command.add_argument("--num-samples", type=int, default=256, help="sentences in a draw")
    command.add_argument("--length", type=int, default=64, help="tokens that validation sentences are padded to")
    command.add_argument("--threads", type=int, default=2, help="threads of every runtime")
    command.add_argument(
        "--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS), help="targets of int8kit"
    )
    command.add_argument("--label", default="default", help="name of int8kit's configuration in the tables")
    command.add_argument(
        "--calib-options", default="", help="further words for 'python -m calib', such as '--recipe int8_full'"
    )
    command.add_argument("--export-options", default="", help="further words for export.py")
    command.add_argument("--int8kit-python", default=sys.executable, help="the Python that int8kit is installed for")
    command.add_argument("--keep", help="folder that keeps the files made (default: a temporary one, removed)")
    return command


if __name__ == "__main__":
    run_command(parser(), run)
