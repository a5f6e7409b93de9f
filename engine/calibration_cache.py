"""TensorRT's calibration cache, for implicit quantization (8.x to 10.x): one line a tensor, `name: hex of a float32`.

The number is the scale amax / 127, its bits in big-endian hexadecimal; the first line names version and calibrator.
TensorRT 11 knows no such cache: there Q/DQ files are all there is.
"""

from __future__ import annotations

import argparse
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from engine.backends.onnxruntime.backend import plain_session
from engine.cli import CommandParser, UsageError, check_free, print_result, run_command, whole_output
from engine.run import read_feeds
from engine.shapes import graph_inputs
from engine.source import read_onnx

ALGORITHMS = ("EntropyCalibration2", "EntropyCalibration", "MinMaxCalibration", "LegacyCalibration")
HEADER = re.compile(r"TRT-(\d+)-(\w+)")
FEEDS_BATCH = 8
LARGEST_CODE = int(np.iinfo(np.int8).max)  # implicit quantization knows INT8 alone
TENSORS_A_PASS = 64  # intermediate tensors fetched in one pass: bounds the memory


@dataclass(frozen=True)
class CalibrationCache:
    """The content of a cache: scale = amax / 127 by tensor name, 0 for a tensor that saw only zeros."""

    version: int  # TensorRT's own number, 8503 for 8.5.3, 101401 for 10.14.1
    algorithm: str
    scales: Mapping[str, float]


def version_number(text: str) -> int:
    """Return TensorRT's number for a version: 8.5.3 is 8503, 10.14.1 is 101401.

    Raises: UsageError: if it is no version with an implicit quantization (7 to 10).
    """
    parts = text.split(".")
    if len(parts) < 3 or not all(part.isdigit() for part in parts) or not 7 <= int(parts[0]) <= 10:
        raise UsageError(f"--trt-version {text!r} is not like 8.5.3; implicit quantization exists in 7.x to 10.x")
    major, minor, patch = map(int, parts[:3])
    return major * (10000 if major >= 10 else 1000) + minor * 100 + patch


def write_cache(cache: CalibrationCache, path: str | Path) -> None:
    """Write a cache. Raises: ValueError: if a name holds a line break or a scale is negative or not finite."""
    lines = [f"TRT-{cache.version}-{cache.algorithm}"]
    for name, scale in cache.scales.items():
        if "\n" in name or not np.isfinite(scale) or scale < 0:
            raise ValueError(f"tensor {name!r} with scale {scale} cannot stand in a calibration cache")
        (bits,) = struct.unpack(">I", struct.pack(">f", scale))
        lines.append(f"{name}: {bits:x}")
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_cache(path: str | Path) -> CalibrationCache:
    """Return the content of a cache.

    Raises: FileNotFoundError: if it is missing; ValueError: naming the first line that is not of the format.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no calibration cache {path}; write one with --onnx MODEL --out {path}")
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text, so no calibration cache") from None
    header = HEADER.fullmatch(lines[0].strip()) if lines else None
    if header is None:
        raise ValueError(f"{path} is no calibration cache: its first line is not like TRT-8503-EntropyCalibration2")
    scales: dict[str, float] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        name, colon, word = line.rpartition(": ")
        if not colon or not re.fullmatch(r"[0-9a-fA-F]{1,8}", word.strip()):
            raise ValueError(f"{path}, line {number}: {line[:60]!r} is not 'tensor: hexadecimal scale'")
        (scales[name],) = struct.unpack(">f", struct.pack(">I", int(word, 16)))
    return CalibrationCache(int(header[1]), header[2], scales)


def fill_scales(
    model: onnx.ModelProto, known: Mapping[str, float], feeds: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Return a scale for every float tensor of a float graph: the known ones, the others by max |x| over the feeds.

    TensorRT falls back to float for a layer that produces or reads a tensor without a scale, and Q/DQ name only what
    the products read.
    """
    missing = [each.name for each in graph_inputs(model) if each.name not in feeds]
    if missing:
        raise ValueError(f"--feeds lack {', '.join(missing)}; make them with 'python -m eval.feeds'")
    inferred = onnx.shape_inference.infer_shapes(model)
    floats = [
        info.name
        for info in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
        if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and info.name not in known
    ]
    scales = dict(known)
    for start in range(0, len(floats), TENSORS_A_PASS):
        names = floats[start : start + TENSORS_A_PASS]
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        fed = {each.name for each in probe.graph.input}
        wanted = [name for name in names if name not in fed]
        del probe.graph.output[:]
        probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        amax = {name: float(np.abs(feeds[name]).max()) for name in names if name in fed}
        if wanted:
            session = plain_session(probe.SerializeToString())
            for batch in _batches(feeds, [each.name for each in session.get_inputs()]):
                for name, x in zip(wanted, session.run(wanted, batch), strict=True):
                    amax[name] = max(amax.get(name, 0.0), float(np.abs(x).max(initial=0.0)))
        scales.update({name: value / LARGEST_CODE for name, value in amax.items()})
    return scales


def _batches(feeds: Mapping[str, np.ndarray], names: list[str]) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(feeds[names[0]]), FEEDS_BATCH):
        yield {name: feeds[name][start : start + FEEDS_BATCH] for name in names}


def run(arguments: argparse.Namespace) -> None:
    """Write a cache from a Q/DQ file, or print one."""
    if (arguments.read is None) == (arguments.onnx is None):
        raise UsageError("give either --onnx MODEL --out CACHE to write a cache, or --read CACHE to print one")
    if arguments.read is not None:
        _print_cache(read_cache(arguments.read), arguments)
        return
    if arguments.out is None:
        raise UsageError("--onnx needs --out, the cache to write")
    if arguments.feeds is not None and arguments.float_onnx is None:
        raise UsageError("--feeds fills in the tensors of the float graph: say with --float-onnx where to write that")
    version = version_number(arguments.trt_version)
    for path in filter(None, (arguments.out, arguments.float_onnx)):
        check_free(path, arguments.force)
    from engine.passes.float_graph import activation_scales, without_quantization  # onnx_ir: no help waits for it

    model = read_onnx(arguments.onnx)
    scales = activation_scales(model)
    if not scales:
        raise ValueError(f"{arguments.onnx} quantizes no activation; give a Q/DQ file, such as export.py writes")
    if arguments.float_onnx is not None:
        float_model = without_quantization(model)
        onnx.checker.check_model(float_model)
        if arguments.feeds is not None:
            scales = fill_scales(float_model, scales, read_feeds(arguments.feeds)[0])
        with whole_output(arguments.float_onnx, arguments.force) as partial:
            onnx.save(float_model, partial)
    cache = CalibrationCache(version, arguments.algorithm, scales)
    with whole_output(arguments.out, arguments.force) as partial:
        write_cache(cache, partial)
    row = {"out": arguments.out, "float_onnx": arguments.float_onnx, "tensors": len(scales), "version": version}
    print_result(row, f"{arguments.out}: {len(scales)} tensors for TensorRT {arguments.trt_version}", arguments.json)


def _print_cache(cache: CalibrationCache, arguments: argparse.Namespace) -> None:
    row = {"version": cache.version, "algorithm": cache.algorithm, "scales": dict(cache.scales)}
    lines = [
        f"TensorRT {cache.version}, {cache.algorithm}, {len(cache.scales)} tensors",
        f"{'scale':>12} {'amax':>10}  tensor",
    ]
    lines += [f"{scale:12.6g} {scale * LARGEST_CODE:10.5g}  {name}" for name, scale in cache.scales.items()]
    print_result(row, "\n".join(lines), arguments.json)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = CommandParser(
        "python -m engine.calibration_cache",
        "Write TensorRT's calibration cache from the activation scales of a Q/DQ file, or print one.",
    )
    parser.add_argument("--onnx", help="the Q/DQ file with the scales")
    parser.add_argument("--out", help="the cache to write")
    parser.add_argument("--float-onnx", help="also write the file without Q/DQ, with the tensor names of the cache")
    parser.add_argument(
        "--feeds", help="npz of samples: gives every other tensor of --float-onnx its scale, by maximum"
    )
    parser.add_argument("--trt-version", default="8.5.3", help="the TensorRT that will read it; another one refuses it")
    parser.add_argument(
        "--algorithm", default=ALGORITHMS[0], choices=ALGORITHMS, help="the calibrator that will read it"
    )
    parser.add_argument("--read", help="a cache to print as a table")
    parser.add_argument("--force", action="store_true", help="replace --out and --float-onnx")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    run_command(parser, run, argv)


if __name__ == "__main__":
    main()
