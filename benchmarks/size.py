"""Size: the bytes of each ONNX file or engine over those of the float ONNX file.

python -m benchmarks.size --model DIR --file "int8kit, ONNX=PATH" --file "int8kit, INT8 embedding table=PATH"
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.float_export import export_legacy
from benchmarks.rows import append_row
from benchmarks.runtimes import stored_bytes
from engine.cli import CommandParser, UsageError, run_command


def run(options: argparse.Namespace) -> None:
    """Append a row for each file, the float one first."""
    with TemporaryDirectory() as temporary:
        path = Path(options.float) if options.float else export_legacy(options.model, Path(temporary) / "float.onnx")
        files = {"float, ONNX": path, **dict(_labelled(word) for word in options.file)}
        sizes = {label: stored_bytes(path) for label, path in files.items()}
    for label, size_bytes in sizes.items():
        ratio = size_bytes / sizes["float, ONNX"]
        append_row(options.out, "size", system=label, size_bytes=size_bytes, ratio=ratio)
        print(f"{label}: {size_bytes / 1e6:.2f} MB, {ratio:.3f}")


def _labelled(word: str) -> tuple[str, Path]:
    label, equals, path = word.partition("=")
    if not equals or not Path(path).exists():
        raise UsageError(f"--file {word!r} must be LABEL=PATH of a file that exists")
    return label, Path(path)


def parser() -> CommandParser:
    """Return the command's parser."""
    command = CommandParser("python -m benchmarks.size", __doc__ or "")
    command.add_argument(
        "--model", required=True, help="folder of the float model, exported where --float is not given"
    )
    command.add_argument("--float", help="its float ONNX file, if there is one")
    command.add_argument(
        "--file", action="append", default=[], metavar="LABEL=PATH", help="a file to weigh; repeat for more"
    )
    command.add_argument("--out", default="benchmarks/results/size.jsonl", help="rows are appended here")
    return command


if __name__ == "__main__":
    run_command(parser(), run)
