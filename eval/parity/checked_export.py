"""What `export.py` runs once its flags are right: one ONNX file of a checkpoint, kept only if it computes the same."""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.cli import check_free, print_result, whole_output
from engine.graph_file import data_path, save_graph
from engine.passes.qdq import prepare_graph
from engine.passes.targets import PROGRAM_TARGET
from eval.parity.check import check_parity
from eval.parity.program import check_program
from quant.checkpoint import is_checkpoint, load_checkpoint, read_description
from quant.int8_program.export import export_program, save_program
from quant.models.encoder_decoder import PARTS, is_encoder_decoder, model_part, part_of
from quant.models.pretrained import LoadedModel, load_float_model
from quant.onnx_export import export_graph
from quant.tensor_quantizer import HALF_TYPES, rounded_scales


def export_checked(arguments: argparse.Namespace, dtype: str | None) -> None:
    """Export, run the target's passes, check parity, keep the file; print one summary line for each file.

    Args:
        arguments: of `export.py`, their target and --out found right. dtype: of what is not INT8, None for fp32.
    """
    loaded, metadata = _load(arguments.checkpoint)
    files = _files(arguments.out, loaded)
    for out in files:
        check_free(out, arguments.force)
    rows = []
    # both files of an encoder-decoder are kept, or none
    with _scales_of(loaded, dtype, arguments.target), ExitStack() as outputs:
        for out, part in files.items():
            path = outputs.enter_context(whole_output(out, arguments.force))
            rows.append(_write(path, part, arguments.target, metadata, dtype) | {"onnx": out})
    for row in rows:
        summary = f"{row['onnx']}: {arguments.target}, {row['size_bytes'] / 1e6:.1f} MB; {row.pop('summary')}"
        print_result(row, summary, arguments.json)


def _write(path: Path, loaded: LoadedModel, target: str, metadata: dict[str, str], dtype: str | None) -> dict[str, Any]:
    """Write one checked file; return its result row, with the parity check's own words under "summary"."""
    part = part_of(loaded.model)
    if part is not None:
        metadata = {**metadata, "int8kit.part": part}
    print(f"export {'' if part is None else f'the {part} '}to {target} ...", file=sys.stderr)
    if target == PROGRAM_TARGET:
        return _write_program(path, loaded, metadata, dtype or "fp16")
    graph = export_graph(loaded.model, processor=loaded.processor)
    prepare_graph(graph, target, metadata, dtype)
    size = save_graph(graph, path, full_check=dtype is not None)
    del graph  # a large model's INT8 weights
    print("check parity ...", file=sys.stderr)
    is_done = data_path(path).exists() and part is None  # a large model's weights are not needed beside the engine's
    report = check_parity(path, loaded, backend=target, release=is_done)
    return {"onnx": "", "target": target, "size_bytes": size, **metadata, **vars(report), "summary": str(report)}


def _write_program(path: Path, loaded: LoadedModel, metadata: dict[str, str], dtype: str) -> dict[str, Any]:
    """Write one checked INT8 program; return its result row as `_write` does."""
    origin = {**metadata, "int8kit.target": PROGRAM_TARGET}
    program, description = export_program(loaded.model, dtype, processor=loaded.processor, metadata=origin)
    save_program(program, description, path)
    del program  # a large model's INT8 weights
    print("check parity ...", file=sys.stderr)
    report = check_program(path, loaded, dtype)
    row = {"onnx": "", "target": PROGRAM_TARGET, "size_bytes": path.stat().st_size, **metadata, **vars(report)}
    return {**row, "unfused": description.unfused, "summary": str(report)}


def _files(out: str, loaded: LoadedModel) -> dict[str, LoadedModel]:
    """Return what goes into which file: an encoder-decoder becomes OUT with .encoder and .decoder before its suffix."""
    if not is_encoder_decoder(loaded.model):
        return {out: loaded}
    return {
        str(Path(out).with_suffix(f".{part}{Path(out).suffix}")): replace(loaded, model=model_part(loaded.model, part))
        for part in PARTS
    }


def _scales_of(loaded: LoadedModel, dtype: str | None, target: str) -> AbstractContextManager[None]:
    """Return the block in which the model's scales are the ones that a file of `dtype` can hold."""
    if dtype is None or target == PROGRAM_TARGET:  # whose scales are float32
        return nullcontext()
    return rounded_scales(loaded.model, HALF_TYPES[dtype])


def _load(name: str) -> tuple[LoadedModel, dict[str, str]]:
    """Return the checkpoint, or a float model, and what the ONNX file says of its origin."""
    if not is_checkpoint(name):
        return load_float_model(name), {"int8kit.source": Path(name).name}
    description = read_description(name)
    names = {"int8kit.recipe": description["recipe"]["name"], "int8kit.recipe_digest": description["recipe_digest"]}
    return load_checkpoint(name), {"int8kit.source": Path(name).name, **names}
