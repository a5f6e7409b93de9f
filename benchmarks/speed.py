"""Speed: every system that has a runtime, against the fastest float ONNX Runtime session found, on the CPU.

    python -m benchmarks.speed --model DIR --data DIR --engine "int8kit, ORT=PATH" --engine "int8kit, OpenVINO=PATH"

Protocol: at each shape all systems take turns in blocks of at least 5 calls, in a new order every round, with a pause
of 100 ms (threads of the one before stop spinning) and 3 calls that are not timed before each block. A round gives one
ratio per system, to the float block of the same round; the table shows the median over rounds and its 95 % bootstrap
interval.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.accuracy.sst2 import Feeds, FloatModel, draw_sentences, full_feeds, load_float
from benchmarks.float_export import export_dynamo, export_fused
from benchmarks.peers import PEERS, float_onnx, get_peer
from benchmarks.rows import append_row, median_interval
from benchmarks.runtimes import Artifact, Run, engine_artifact, open_artifact
from engine.cli import CommandParser, UsageError, run_command

SHAPES = ("1x32", "8x64", "32x64", "8x128")
PAUSE_S, NUM_WARM, MIN_CALLS, MIN_BLOCK_S = 0.1, 3, 5, 0.1
TIMED_PEERS = ("ort-dynamic", "ort-minmax", "ort-linear", "nncf")
FLOAT = "float, ONNX Runtime (fastest)"
Blocks = dict[str, list[float]]  # system -> median ms of each of its blocks, in order of the rounds


def time_blocks(runs: dict[str, Run], feeds: Feeds, rounds: int, seed: int = 0) -> Blocks:
    """Return the median latency in ms of each block, `rounds` blocks for every run, in alternation."""
    blocks: Blocks = {name: [] for name in runs}
    generator = np.random.default_rng(seed)
    for _ in range(rounds):
        for name in generator.permutation(list(runs)):
            blocks[str(name)].append(_time_block(runs[str(name)], feeds))
    return blocks


def _time_block(run: Run, feeds: Feeds) -> float:
    time.sleep(PAUSE_S)
    for _ in range(NUM_WARM):
        run(feeds)
    latencies_s: list[float] = []
    while len(latencies_s) < MIN_CALLS or sum(latencies_s) < MIN_BLOCK_S:
        start = time.perf_counter()
        run(feeds)
        latencies_s.append(time.perf_counter() - start)
    return float(np.median(latencies_s)) * 1000


def float_sessions(loaded: FloatModel, folder: Path) -> dict[str, Artifact]:
    """Return the float ONNX Runtime sessions among which the fastest is sought, by name."""
    config = loaded.model.config
    size = (config.num_attention_heads, config.hidden_size)
    legacy = float_onnx(loaded, folder)
    files = {
        "legacy exporter": legacy,
        "dynamo exporter": export_dynamo(loaded.folder, folder / "dynamo.onnx"),
        "transformers optimizer": export_fused(legacy, folder / "fused.onnx", *size),
        "transformers optimizer without SkipLayerNorm": export_fused(
            legacy, folder / "fused_no_skip.onnx", *size, skip_layer_norm=False
        ),
    }
    sessions = {name: Artifact("onnxruntime", path) for name, path in files.items()}
    for name, path in files.items():
        options = {"disabled": ("SkipLayerNormFusion",)}
        sessions[f"{name}, SkipLayerNormFusion off"] = Artifact("onnxruntime", path, session=options)
    sessions["legacy exporter, ORT_ENABLE_EXTENDED"] = Artifact(
        "onnxruntime", legacy, session={"level": "ORT_ENABLE_EXTENDED"}
    )
    return sessions


def find_fastest_float(
    sessions: dict[str, Artifact], shape: tuple[int, int], feeds: Feeds, options: argparse.Namespace
) -> str:
    """Return the name of the fastest float session at this shape, and append a row for each that was tried."""
    runs = {name: open_artifact(artifact, options.threads) for name, artifact in sessions.items()}
    blocks = time_blocks(runs, feeds, options.search_rounds)
    medians = {name: float(np.median(latencies)) for name, latencies in blocks.items()}
    fastest = min(medians, key=medians.__getitem__)
    for name, latency_ms in medians.items():
        append_row(
            options.out,
            "float-search",
            run=options.run,
            system=name,
            batch_size=shape[0],
            sequence_length=shape[1],
            latency_ms_p50=latency_ms,
            rounds=options.search_rounds,
            threads=options.threads,
            is_fastest=name == fastest,
        )
    print(f"{shape[0]}x{shape[1]}: fastest float session: {fastest}, {medians[fastest]:.2f} ms", flush=True)
    return fastest


def systems(loaded: FloatModel, folder: Path, options: argparse.Namespace) -> dict[str, Artifact]:
    """Return every system that is timed against the fastest float session, by name, without int8kit's engines."""
    sentences = draw_sentences(options.data, options.num_samples, options.seed)
    found = {"float, OpenVINO": Artifact("openvino", float_onnx(loaded, folder))}
    for key in options.peers:
        found[get_peer(key).name] = get_peer(key).prepare(loaded, sentences, folder)
    return found


def engines(words: list[str], shape: tuple[int, int]) -> dict[str, Artifact]:
    """Return the artifacts of `LABEL=PATH[@RUNTIME]`; `{batch}` and `{tokens}` in PATH choose an engine by shape."""
    found = {}
    for word in words:
        label, equals, place = word.partition("=")
        if not equals:
            raise UsageError(f"--engine {word!r} must be LABEL=PATH or LABEL=PATH@RUNTIME")
        path, _, runtime = place.partition("@")
        found[label] = engine_artifact(path.format(batch=shape[0], tokens=shape[1]), runtime or None)
    return found


def time_shape(
    shape: tuple[int, int],
    artifacts: dict[str, Artifact],
    sessions: dict[str, Artifact],
    vocabulary: int,
    options: argparse.Namespace,
) -> None:
    """Time all systems at one shape and append a row for each."""
    feeds = full_feeds(*shape, vocabulary)
    fastest = find_fastest_float(sessions, shape, feeds, options)
    artifacts = {FLOAT: replace(sessions[fastest]), **artifacts, **engines(options.engine, shape)}
    static = None if options.dynamic else shape
    runs = {name: open_artifact(artifact, options.threads, static) for name, artifact in artifacts.items()}
    blocks = time_blocks(runs, feeds, options.rounds)
    for name, latencies_ms in blocks.items():
        ratio, low, high = median_interval([base / own for base, own in zip(blocks[FLOAT], latencies_ms, strict=True)])
        append_row(
            options.out,
            "speed",
            run=options.run,
            system=name,
            runtime=artifacts[name].runtime,
            batch_size=shape[0],
            sequence_length=shape[1],
            latency_ms_p50=float(np.median(latencies_ms)),
            ratio=ratio,
            ratio_low=low,
            ratio_high=high,
            float_session=fastest,
            rounds=options.rounds,
            threads=options.threads,
            openvino_shapes="dynamic" if options.dynamic else "static",
            seed=options.seed,
            blocks_ms=[round(value, 4) for value in latencies_ms],
        )
        print(
            f"{shape[0]}x{shape[1]} {name}: {np.median(latencies_ms):.2f} ms, {ratio:.2f} ({low:.2f} to {high:.2f})",
            flush=True,
        )


def run(options: argparse.Namespace) -> None:
    """Prepare the systems once, then time them at every shape."""
    options.run = int(time.time())
    shapes = [_parse_shape(word) for word in options.shapes]
    for shape in shapes:
        engines(options.engine, shape)  # a missing engine is said before an hour of timing
    loaded = load_float(options.model)
    with TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        artifacts, sessions = systems(loaded, folder, options), float_sessions(loaded, folder)
        for shape in shapes:
            time_shape(shape, artifacts, sessions, loaded.model.config.vocab_size, options)


def _parse_shape(word: str) -> tuple[int, int]:
    batch, _, tokens = word.partition("x")
    if not (batch.isdigit() and tokens.isdigit() and int(batch) * int(tokens)):
        raise UsageError(f"--shapes {word!r} must be BATCHxTOKENS, such as 8x64")
    return int(batch), int(tokens)


def parser() -> CommandParser:
    """Return the command's parser."""
    command = CommandParser("python -m benchmarks.speed", __doc__ or "")
    command.add_argument("--model", required=True, help="folder of the float classifier")
    command.add_argument("--data", required=True, help="folder with train.parquet, from which the peers are calibrated")
    command.add_argument(
        "--engine",
        action="append",
        default=[],
        metavar="LABEL=PATH[@RUNTIME]",
        help="an engine to time; repeat for more",
    )
    command.add_argument("--out", default="benchmarks/results/speed.jsonl", help="rows are appended here")
    command.add_argument(
        "--peers",
        nargs="*",
        choices=TIMED_PEERS,
        default=list(TIMED_PEERS),
        help=f"of {', '.join(PEERS)} those with a runtime",
    )
    command.add_argument(
        "--shapes", nargs="+", default=list(SHAPES), metavar="BATCHxTOKENS", help="full-length inputs, no padding"
    )
    command.add_argument("--rounds", type=int, default=30, help="blocks of every system at a shape")
    command.add_argument(
        "--search-rounds", type=int, default=7, help="blocks of every float session in the search for the fastest"
    )
    command.add_argument("--threads", type=int, default=2, help="threads of every runtime")
    command.add_argument("--num-samples", type=int, default=256, help="calibration sentences of the peers")
    command.add_argument("--seed", type=int, default=0, help="calibration draw of the peers")
    command.add_argument(
        "--dynamic", action="store_true", help="leave OpenVINO models dynamic (default: reshaped to the shape timed)"
    )
    command.add_argument("--keep", help="folder that keeps the files made (default: a temporary one, removed)")
    return command


if __name__ == "__main__":
    run_command(parser(), run)
