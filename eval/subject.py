"""What is evaluated, behind one form.

An engine, a checkpoint, a float model, or outputs that another machine computed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.cli import UsageError
from engine.manifest import Manifest, read_manifest
from engine.run import read_feeds
from eval.evaluate import ReplayRunner, Runner
from eval.pytorch_runner import PyTorchRunner
from eval.results import QAT, split_method
from quant.checkpoint import is_checkpoint, load_checkpoint, read_description
from quant.models.pretrained import LoadedModel, load_float_model
from quant.recipe import recipe_from_dict
from quant.sites.formats import format_names
from quant.sites.settings import method_names
from quant.sites.stored import sites_from_dicts
from quant.tensor_quantizer import named_quantizers

META_KEY = "_eval"


@dataclass(frozen=True)
class Subject:
    """A runner with what its result row says about it.

    Attributes:
        runner: what computes the outputs.
        loaded: the PyTorch model, None for an engine or stored outputs.
        model: what the user named.
        backend, precision, size_bytes, recipe, recipe_digest, calibrator, training, threads: as in the result row; None
            where unknown.
        meta: what `eval.feeds` noted, for stored outputs.
    """

    runner: Runner
    model: str
    loaded: LoadedModel | None = None
    backend: str | None = None
    precision: str | None = None
    size_bytes: int | None = None
    recipe: str | None = None
    recipe_digest: str | None = None
    calibrator: str | None = None
    training: str | None = None
    threads: int | None = None
    meta: dict[str, Any] | None = None


def precision_of_model(model: Any, dtype: str = "fp32") -> str:
    """Return the precision of a model in PyTorch: the formats of its sites that are on, simulated, else its type."""
    is_quantized = any(quantizer.enabled for _, quantizer in named_quantizers(model))
    return f"{format_names(model)} (simulated)" if is_quantized else dtype


def precision_of_engine(manifest: Manifest) -> str:
    """Return the precision of an engine: the number formats of its file's sites, else what it computes in.

    Older files bear a recipe and do not say their formats: int8 was the only one.
    """
    return manifest.metadata.get("int8kit.formats") or ("int8" if manifest.recipe_digest else manifest.precision)


def ranges_from(description: dict[str, Any]) -> dict[str, Any]:
    """Return by which calibrator and training a checkpoint has its ranges, from its quantization.json."""
    provenance = description.get("provenance") or {}
    if "imported_from" in provenance:
        return {"calibrator": None, "training": None}
    recipe = recipe_from_dict(description["recipe"])
    calibrator = method_names(sites_from_dicts(description["sites"], recipe), recipe)  # rules may give sites their own
    return {"calibrator": calibrator, "training": QAT if "trained_by" in provenance else None}


def load_model(name: str, device: str = "cpu", trust_remote_code: bool = False) -> LoadedModel:
    """Return the quantized model of a checkpoint folder, or else the float model of that name."""
    loaded = (
        load_checkpoint(name) if is_checkpoint(name) else load_float_model(name, trust_remote_code=trust_remote_code)
    )
    loaded.model.to(device)  # type: ignore[arg-type]
    return loaded


def open_model(name: str, device: str = "cpu", trust_remote_code: bool = False) -> Subject:
    """Return a model run by PyTorch: a checkpoint, or a float model."""
    import torch

    loaded = load_model(name, device, trust_remote_code)
    size_bytes = sum(path.stat().st_size for path in Path(name).glob("*.safetensors")) if Path(name).is_dir() else 0
    facts: dict[str, Any] = {}
    if is_checkpoint(name):
        description = read_description(name)
        recipe = {"recipe": description["recipe"].get("name"), "recipe_digest": description.get("recipe_digest")}
        facts = {**recipe, **ranges_from(description)}
    return Subject(
        runner=PyTorchRunner(loaded, device),
        model=str(name),
        loaded=loaded,
        backend="pytorch",
        precision=precision_of_model(loaded.model),
        size_bytes=size_bytes or sum(p.numel() * p.element_size() for p in loaded.model.parameters()),
        threads=torch.get_num_threads() if device == "cpu" else None,
        **facts,
    )


@contextmanager
def open_engine(path: str, threads: int | None = None) -> Iterator[Subject]:
    """Yield an engine behind its backend; its manifest says what it is."""
    from engine.backend import check_threads, get_backend

    manifest = read_manifest(path)
    backend = get_backend(manifest.backend)
    check_threads(backend, threads)
    calibrator, training = split_method(manifest.metadata.get("int8kit.method"))
    with backend.load(path, threads) as runner:
        yield Subject(
            runner=runner,
            model=str(path),
            backend=manifest.backend,
            precision=precision_of_engine(manifest),
            size_bytes=manifest.size_bytes,
            recipe=manifest.metadata.get("int8kit.recipe"),
            recipe_digest=manifest.recipe_digest,
            calibrator=calibrator,
            training=training,
            threads=threads or manifest.threads,
        )


def open_outputs(path: str) -> Subject:
    """Return outputs that `engine.run` wrote from a file of `eval.feeds`.

    Raises: ValueError: if the file is no such npz; FileNotFoundError: if it is missing.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no outputs file {path}; make one with 'python -m engine.run --out {path}'")
    outputs, extras = read_feeds(path)
    return Subject(runner=ReplayRunner(outputs, path), model=str(path), meta=read_meta(extras, path))


def read_meta(extras: dict[str, np.ndarray], path: str) -> dict[str, Any]:
    """Return what `eval.feeds` noted about the samples. Raises: ValueError: if the note is missing or damaged."""
    try:
        return json.loads(str(extras[META_KEY]))
    except (KeyError, json.JSONDecodeError):
        raise ValueError(
            f"{path} does not say which samples it is of (no key {META_KEY}); make the feeds with 'python -m "
            "eval.feeds' and the "
            "outputs with 'python -m engine.run'"
        ) from None


def check_meta(meta: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise UsageError naming every option that differs from those the feeds were made with; None asks nothing."""
    wrong = [
        f"{name} is {value}, the feeds have {meta.get(name)}"
        for name, value in asked.items()
        if value is not None and value != meta.get(name)
    ]
    if wrong:
        raise UsageError(
            f"--outputs were computed from other feeds: {'; '.join(wrong)}; leave these options out, or make new feeds"
        )
