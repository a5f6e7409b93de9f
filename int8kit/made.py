"""The artifacts of a run without a task, each made once for what it depends on: checkpoint, exported files, engines."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from calib.apply import apply_statistics
from calib.collect import collect
from calib.rounding import refine_as_told
from calib.samples import Samples
from engine.backend import BuildOptions, get_backend
from engine.gpu import find_gpu
from engine.hardware import cpu_flags
from engine.manifest import sha256_of
from engine.manifest import weights_digest as data_digest
from engine.shapes import ShapeRange
from eval.parity.checked_export import export_checked
from eval.sweep.store import ArtifactStore
from quant.checkpoint import read_description, save_checkpoint
from quant.insert import insert_quantizers
from quant.models.pretrained import LoadedModel, load_float_model
from quant.recipe import Recipe
from quant.weights_digest import weights_digest

PROGRAM, GRAPH = "model.pt2", "model.onnx"
HALF_TARGETS = ("inductor", "tensorrt", "tensorrt8")


@dataclass(frozen=True)
class Maker:
    """Makes what is not there yet.

    Attributes:
        loaded: the float model, which stays as it is. length: tokens at which samples are cut; None is the model's own.
    """

    store: ArtifactStore
    loaded: LoadedModel
    source: str
    seed: int
    length: int | None
    threads: int | None

    def _origin(self) -> dict[str, Any]:
        return {"model": weights_digest(self.loaded.model), "config": self.loaded.model.config.to_json_string(),
                "torch": torch.__version__, "transformers": transformers.__version__}  # fmt: skip

    def checkpoint(self, samples: Samples, recipe: Recipe) -> Path:
        """Return the folder of the calibrated checkpoint."""
        inputs = {**self._origin(), "samples": samples.digest, "seed": self.seed, "recipe": recipe.to_dict(),
                  "max_length": self.length}  # fmt: skip

        def build(folder: Path) -> None:
            loaded = load_float_model(self.source)
            insert_quantizers(loaded.model, recipe)
            used = apply_statistics(loaded.model, collect(loaded.model, samples, seed=self.seed))
            provenance: dict[str, Any] = {"model": self.source, "seed": self.seed, "samples": samples.source,
                                          "samples_digest": samples.digest,
                                          "num_samples": samples.num_samples}  # fmt: skip
            refined = refine_as_told(loaded.model, used, samples, self.seed)
            provenance |= {name: each.to_dict() for name, each in refined.items()}
            if (correction := refined.get("bias_correction")) is not None:
                provenance["said"] = str(correction)
            save_checkpoint(loaded.model, folder, processor=loaded.processor, provenance=provenance)

        return self.store.make("checkpoint", inputs, build, "calibrate")

    def exported(self, source: str, digests: Any, backend: str) -> Path:
        """Return the file of a checkpoint, or of the float model, for a backend, checked against it.

        Args: digests: what says which checkpoint it is; None for the float model.
        """
        target = get_backend(backend).target()
        name = PROGRAM if target == "inductor" else GRAPH

        def build(folder: Path) -> None:
            words = argparse.Namespace(checkpoint=source, target=target, out=str(folder / name), force=True, json=False)
            with contextlib.redirect_stdout(sys.stderr):
                export_checked(words, "fp16" if target in HALF_TARGETS else None)

        inputs = {**self._origin(), "of": digests, "target": target}
        return self.store.make("exported", inputs, build, f"export for {backend}") / name

    def engine(self, file: Path, backend: str, shapes: dict[str, ShapeRange]) -> Path:
        """Return the engine of an exported file; a file's name says nothing, its content and this machine do."""
        chosen = get_backend(backend)
        inputs = {"file": sha256_of(file), "data": data_digest(file), "backend": backend, "threads": self.threads,
                  "version": chosen.version(), "shapes": {k: str(v) for k, v in shapes.items()},
                  "cpu_flags": list(cpu_flags())}  # fmt: skip

        if chosen.info.uses_gpu:  # which an engine is bound to
            inputs["gpu"] = str(find_gpu())

        def build(folder: Path) -> None:
            chosen.build(file, folder / "engine", BuildOptions(shapes, self.threads))

        return self.store.make("engine", inputs, build, f"build for {backend}") / "engine"


def told_by(checkpoint: Path) -> str:
    """Return what bias correction did to a checkpoint, in words."""
    return read_description(checkpoint)["provenance"].get("said", "")


def digests_of(checkpoint: Path) -> Any:
    """Return the digests of a checkpoint's files and its recipe."""
    content = read_description(checkpoint)
    return [content["digests"], content["recipe"]]
