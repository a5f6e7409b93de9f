"""One Markdown file for an upstream issue: environment, model, reproduction, expected and actual behaviour, errors."""

from __future__ import annotations

import argparse
import base64
import gzip
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx

from engine.backend import BuildOptions, get_backend
from engine.backends.onnxruntime.backend import plain_session
from engine.bug_report.environment import environment
from engine.bug_report.errors import ErrorRow, error_rows
from engine.bug_report.reproduction import FaultCase
from engine.graph_file import weight_files
from engine.lint.report import lint
from engine.made_feeds import batch_of, fit_feeds, in_words, make_feeds
from engine.manifest import sha256_of
from engine.run import read_feeds
from engine.shapes import ShapeRange, check_shapes, graph_inputs, parse_shapes, spread
from engine.source import read_onnx

# GitHub takes 65,536 characters a text: a model that is larger than this in base64 must be attached.
EMBEDDED_CHARACTERS = 40_000
LOG_LINES = 200
LOADED_FEEDS = 'feeds = dict(np.load("feeds.npz"))  # attach it'


def run_both(
    onnx_path: str, backend: str, shapes: dict[str, ShapeRange], feeds: dict[str, np.ndarray] | None
) -> tuple[dict[str, np.ndarray], list[ErrorRow], str | None]:
    """Return (the feeds, the errors against ONNX Runtime without optimization, what failed or None)."""
    with tempfile.TemporaryDirectory() as folder:
        engine = Path(folder) / "engine"
        try:
            plain = plain_session(onnx_path)
        except Exception as error:  # its errors derive from Exception alone
            raise ValueError(f"onnxruntime refuses {onnx_path}, so nothing is expected of it: {error}") from None
        types = {each.name: each for each in graph_inputs(read_onnx(onnx_path))}
        inputs = {
            name: (
                np.dtype(onnx.helper.tensor_dtype_to_np_dtype(each.type.tensor_type.elem_type)),
                tuple(dim.dim_value or None for dim in each.type.tensor_type.shape.dim),
            )
            for name, each in types.items()
        }
        fed = fit_feeds(feeds, inputs, batch_of(shapes)) if feeds else make_feeds(inputs, shapes)
        names = [each.name for each in plain.get_outputs()]
        expected = dict(zip(names, plain.run(None, fed), strict=True))
        try:
            chosen = get_backend(backend)
            chosen.build(onnx_path, engine, BuildOptions(shapes))
            with chosen.load(engine) as runner:
                actual = runner(fed)
        except (RuntimeError, ValueError, OSError) as error:
            return fed, [], " ".join(str(error).split())
        return fed, error_rows(actual, expected), None


def what_stops_the_build(onnx_path: str, backend: str, shapes: dict[str, ShapeRange]) -> str | None:
    """Return the error of a build in a temporary folder, None if it succeeds. Raises: UsageError: a missing shape."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            get_backend(backend).build(onnx_path, Path(folder) / "engine", BuildOptions(shapes))
        except (RuntimeError, OSError) as error:
            return " ".join(str(error).split())
    return None


def model_section(path: str, model: onnx.ModelProto, embed: bool) -> list[str]:
    """Return what the model is, and the model itself where it is small enough."""
    opsets = ", ".join(f"{each.domain or 'ai.onnx'} {each.version}" for each in model.opset_import)
    counts = Counter(node.op_type for node in model.graph.node).most_common(12)
    lines = [
        f"- opset {opsets}; IR {model.ir_version}; producer {model.producer_name or '?'} {model.producer_version}"
    ]
    for word, values in (("inputs", graph_inputs(model)), ("outputs", model.graph.output)):
        lines.append(f"- {word}: {', '.join(_value(each) for each in values)}")
    lines.append(f"- operators: {', '.join(f'{count} {name}' for name, count in counts)}")
    lines.append(f"- INT8: {lint(model).summary()}")
    beside = weight_files(path)
    text = base64.b64encode(gzip.compress(Path(path).read_bytes(), mtime=0)).decode()
    if embed and not beside and len(text) <= EMBEDDED_CHARACTERS:
        name = Path(path).name
        wrapped = "\n".join(text[i : i + 120] for i in range(0, len(text), 120))
        command = f"`base64 -d model.txt | gunzip > {name}`"
        lines += ["", f"<details><summary>the model: save the text as model.txt, then {command}</summary>", ""]
        lines += ["```", wrapped, "```", "</details>"]
    else:
        names = ", ".join(f"`{each.name}`" for each in (Path(path), *beside))
        lines.append(f"- too large for this text: attach {names}, or name where it can be had")
    return lines


def _file_line(path: str) -> str:
    return f"- file: `{Path(path).name}`, {Path(path).stat().st_size} bytes, sha256 `{sha256_of(path)}`"


def _value(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    sizes = "x".join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim) or "scalar"
    return f"`{value.name}` {onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} {sizes}"


def reproduction(
    arguments: argparse.Namespace, shapes: dict[str, ShapeRange], fed: dict[str, np.ndarray] | None
) -> list[str]:
    """Return the commands given, or the shortest ones that need nothing but the runtime."""
    if arguments.command:
        return ["```bash", *arguments.command, "```"]
    feeds_code = LOADED_FEEDS if arguments.feeds or fed is None else made_feeds_code(fed)
    made = get_backend(arguments.backend).reproduction(FaultCase(arguments.onnx, shapes, feeds_code))
    return [f"```{made.language}", made.text, "```"]


def made_feeds_code(fed: dict[str, np.ndarray]) -> str:
    """Return Python that makes the same numbers as `make_feeds` did."""
    lines = ["rng = np.random.default_rng(0)", "feeds = {}"]
    for name, x in fed.items():
        if x.dtype.kind == "f":
            lines.append(f'feeds["{name}"] = rng.normal(size={x.shape}).astype("{x.dtype}")')
        else:
            lines.append(f'feeds["{name}"] = np.full({x.shape}, {int(x.flat[0])}, "{x.dtype}")')
    return "\n".join(lines)


def write_report(arguments: argparse.Namespace) -> tuple[str, list[ErrorRow], str | None]:
    """Return the Markdown, the errors, and what failed (None if nothing did)."""
    shapes, fed = parse_shapes(arguments.shapes), None
    given = get_backend(arguments.backend).reported_file(arguments.onnx, shapes)
    if given is not None:
        shapes, section = given.shapes, given.section
        fed = None if arguments.feeds else given.feeds
    else:
        model = read_onnx(arguments.onnx)
        check_shapes(model, shapes)
        shapes = spread(model, shapes)
        section = model_section(arguments.onnx, model, not arguments.no_model)
    feeds = read_feeds(arguments.feeds)[0] if arguments.feeds else None
    rows: list[ErrorRow] = []
    failure, built = None, False
    if arguments.outputs:
        rows = error_rows(read_feeds(arguments.outputs)[0], read_feeds(arguments.reference)[0])
    elif not get_backend(arguments.backend).info.uses_gpu:
        fed, rows, failure = run_both(arguments.onnx, arguments.backend, shapes, feeds)
    elif get_backend(arguments.backend).check_build() is None:
        built = True
        failure = what_stops_the_build(arguments.onnx, arguments.backend, shapes)
    title = arguments.title or f"{arguments.backend}: wrong or unexpected result of {Path(arguments.onnx).name}"
    lines = [f"# {title}", "", "## Environment", "", "| | |", "|---|---|"]
    lines += [f"| {word} | {value.replace('|', '/')} |" for word, value in environment().items()]
    lines += ["", "## Model", "", _file_line(arguments.onnx), *section]
    lines += ["", "## How to reproduce", "", *reproduction(arguments, shapes, fed)]
    if fed is not None:
        lines.append(f"Shapes: {in_words(fed)}.")
    expected = (
        arguments.expected
        or (given.expected if given else None)
        or "The outputs of the ONNX file as its operators are defined (ONNX Runtime without any optimization)."
    )
    lines += ["", "## Expected behaviour", "", expected, "", "## Actual behaviour", ""]
    unseen = f"It {'builds' if built else 'was not built'} where this was written, and was not run there."
    found = f"It fails: `{failure}`" if failure else "The outputs differ as below." if rows else unseen
    lines.append(arguments.actual or found)
    if rows:
        lines += [
            "",
            "| output | shape | max abs | mean abs | median abs | max rel | mean rel | median rel | not finite |",
        ]
        lines.append("|---|---|---|---|---|---|---|---|---|")
        for row in rows:
            numbers = (row.abs_max, row.abs_mean, row.abs_median, row.rel_max, row.rel_mean, row.rel_median)
            shape = "x".join(map(str, row.shape))
            lines.append(
                f"| {row.output} | {shape} | {' | '.join(f'{x:.3g}' for x in numbers)} | {row.num_not_finite} |"
            )
        lines += ["", "Relative errors are |x - ref| / max(|ref|, 0.001)."]
    if arguments.log:
        lines += ["", "## Log", "", *_log(arguments.log)]
    return "\n".join(lines).replace(str(Path.home()), "~") + "\n", rows, failure


def _log(path: str) -> list[str]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no log {path}; write the command's output there first")
    text = Path(path).read_text(errors="replace").splitlines()
    cut = [f"(the last {LOG_LINES} of {len(text)} lines)"] if len(text) > LOG_LINES else []
    return [*cut, "```", *(line.replace("```", "'''") for line in text[-LOG_LINES:]), "```"]
