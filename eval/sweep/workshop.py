"""From a system to what runs it: statistics, checkpoint, ONNX file, engine, each made once in the artifact store."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib.metadata
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
import torch

from calib.apply import apply_statistics
from calib.collect import collect
from calib.rounding import refine_as_told
from calib.samples import Samples, load_samples
from calib.statistics import FORMAT, Statistics
from engine.backend import Backend, BuildOptions, get_backend, saturation_of
from engine.backends.info import OwnOptions
from engine.backends.own_options import own_from_words
from engine.gpu import find_gpu
from engine.hardware import cpu_flags
from engine.manifest import sha256_of
from engine.passes.qdq import prepare_for_target
from engine.passes.targets import takes_dtype
from engine.shapes import ShapeRange
from eval.graphs.skeleton import graph_of
from eval.sweep.grid import BUILD_ARGUMENTS, FLOAT_METHODS, QAT, SMOOTHQUANT, Shape, SweepOptions, System
from eval.sweep.scripts import from_anywhere, run_script, training_words
from eval.sweep.store import ArtifactStore, digest_of
from eval.tasks import get_task
from eval.tasks.parts.samples import task_reader
from quant.checkpoint import load_checkpoint, read_description, save_checkpoint
from quant.insert import insert_quantizers
from quant.models.example_inputs import example_inputs
from quant.models.pretrained import LoadedModel, load_float_model
from quant.onnx_export import export_onnx
from quant.recipe import Recipe, SmoothQuantOptions, load_recipe
from quant.sites.plan import plan_sites
from quant.sites.stored import identity

STATISTICS_FILE, ONNX_FILE, ENGINE_FILE = "statistics.safetensors", "model.onnx", "engine"


class Workshop:
    """Makes artifacts of one sweep; the float model is loaded once and never changed."""

    def __init__(self, options: SweepOptions, store: ArtifactStore) -> None:
        self.options, self.store = options, store
        torch.set_num_threads(options.threads)

    @cached_property
    def loaded(self) -> LoadedModel:
        """The float model."""
        return load_float_model(self.options.model)

    @cached_property
    def model_digest(self) -> str:
        """sha256 over the float model's configuration and weights, 16 digits."""
        digest = hashlib.sha256(self.loaded.model.config.to_json_string().encode())
        for name, tensor in self.loaded.model.state_dict().items():
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def samples(self) -> Samples:
        """The calibration samples."""
        return self.draw(self.options.seed)

    def draw(self, seed: int, after: int = 0) -> Samples:
        """Return calibration samples of another draw; `after`: behind so many of this seed's."""
        lengths = [n for n in self.options.seq_lengths if n is not None]
        task, columns, length = get_task(self.options.task), self.options.columns, max(lengths) if lengths else None
        return load_samples(
            self.options.samples, self.loaded, columns=columns, seed=seed, after=after,
            num_samples=self.options.num_calibration, max_length=length,
            reader=task_reader(task, self.options.samples, self.loaded.processor, columns, length),
        )  # fmt: skip

    def backend(self, name: str) -> Backend:
        """Return a backend; one that can live in the interpreter of --tensorrt-python does, where one is named."""
        if name not in self._backends:
            here, python = get_backend(name), self.options.tensorrt_python
            self._backends[name] = (here.in_interpreter(python) if python else None) or here
        return self._backends[name]

    @cached_property
    def _backends(self) -> dict[str, Backend]:
        return {}

    def fresh_model(self) -> LoadedModel:
        """Return a copy of the float model that may be changed."""
        return dataclasses.replace(self.loaded, model=copy.deepcopy(self.loaded.model))

    def recipe(self, system: System) -> Recipe:
        """Return the resolved recipe of a quantized system: `smoothquant` adds SmoothQuant, a calibrator its method."""
        assert system.recipe is not None
        recipe = load_recipe(system.recipe)
        if system.method == SMOOTHQUANT:
            return dataclasses.replace(recipe, smoothquant=SmoothQuantOptions(alpha="search"))
        return recipe if system.method == QAT else recipe.with_options(method=system.method)

    def statistics(self, recipe: Recipe) -> Path:
        """Return the statistics of every site that the recipe needs; recipes with the same sites share them."""
        sites = plan_sites(copy.deepcopy(self.loaded.model), recipe)
        needed = sorted(s.name for s in sites if s.reads_samples)
        inputs = {"model": self.model_digest, "samples": self.samples.digest, "sites": needed, "format": FORMAT,
                  "seed": self.options.seed, "max_length": list(self.options.seq_lengths)}  # fmt: skip

        def build(folder: Path) -> None:
            model = self.fresh_model().model.to(self.options.device)  # type: ignore[arg-type]
            insert_quantizers(model, recipe)
            collect(model, self.samples, seed=self.options.seed, progress=False).save(folder / STATISTICS_FILE)

        return self.store.make("statistics", inputs, build, f"statistics of {len(needed)} sites")

    def checkpoint(self, system: System) -> Path:
        """Return the checkpoint folder of a quantized system."""
        recipe = self.recipe(system)
        if system.method == QAT:
            return self._trained(system, recipe)
        statistics = self.statistics(recipe)
        provenance: dict[str, Any] = {
            "model": self.options.model, "samples": self.samples.source, "samples_digest": self.samples.digest,
            "num_samples": self.samples.num_samples, "seed": self.options.seed, "method": recipe.calibrator.method,
        }  # fmt: skip

        def build(folder: Path) -> None:
            loaded = self.fresh_model()
            model = loaded.model.to(self.options.device)  # type: ignore[arg-type]
            insert_quantizers(model, recipe)
            apply_statistics(model, Statistics.load(statistics / STATISTICS_FILE))
            refined = refine_as_told(model, recipe, self.samples, self.options.seed)
            provenance.update((name, each.to_dict()) for name, each in refined.items())
            save_checkpoint(model.cpu(), folder, processor=loaded.processor, provenance=provenance)

        inputs = {"statistics": statistics.name, "recipe": recipe.to_dict(), "model": self.model_digest,
                  "bias_correction": recipe.calibrator.bias_correction}  # fmt: skip
        return self.store.make("checkpoint", inputs, build, f"{system.method} {system.recipe}: amax, checkpoint")

    def _trained(self, system: System, recipe: Recipe) -> Path:
        """Return the checkpoint of a QAT run: train_qat.py itself, whose run folder goes on after a kill."""
        words = training_words(self.options, system)
        inputs = {"model": self.model_digest, "recipe": recipe.to_dict(), "arguments": words}

        def build(folder: Path) -> None:
            work = self.store.folder / f".qat-{digest_of(inputs)}.run"  # stays after a kill, so that training resumes
            run_script("train_qat.py", *from_anywhere(words), "--out", str(work.resolve()))
            for path in work.iterdir():
                if path.is_file():
                    shutil.copy2(path, folder / path.name)
            shutil.rmtree(work)

        return self.store.make("checkpoint", inputs, build, f"{system.method} {system.recipe}: training")

    def model_of(self, system: System) -> LoadedModel:
        """Return the model a system runs, as PyTorch: the float model, or its checkpoint."""
        return load_checkpoint(self.checkpoint(system)) if system.recipe else self.loaded

    def source_digest(self, system: System) -> str:
        """Return the digest of the weights, ranges and sites that a system runs."""
        if system.recipe is None:
            return self.model_digest
        description = read_description(self.checkpoint(system))
        sites = [identity(site) for site in description["sites"]]
        return digest_of({"files": description["digests"], "sites": sites})

    def onnx(self, system: System) -> Path:
        """Return the ONNX file of a system, made for its backend."""
        backend = self.backend(system.backend)
        target = backend.target()
        inputs = {"source": self.source_digest(system), "target": target, "onnx": onnx.__version__}
        if backend.info.uses_gpu:  # export.py decides opset, type and mask; files for CPUs are made here in memory
            inputs["dtype"] = system.method if system.method in FLOAT_METHODS else "fp16"
            inputs["version"] = backend.version() or ""  # a program holds calls of our ops, as torch wrote them
            return self.store.make("onnx", inputs, lambda folder: self._run_export(system, target, folder), _label(
                system, f"ONNX for {target}")) / ONNX_FILE  # fmt: skip
        exported = self._exported(system)

        def build(folder: Path) -> None:
            metadata = {"int8kit.source": Path(self.options.model).name}
            if system.recipe is not None:
                recipe = self.recipe(system)
                metadata |= {"int8kit.recipe": recipe.name, "int8kit.recipe_digest": recipe.digest,
                             "int8kit.method": system.method}  # fmt: skip
            onnx.save(prepare_for_target(onnx.load(exported), target, metadata), folder / ONNX_FILE)

        return self.store.make("onnx", inputs, build, _label(system, f"graph for {target}")) / ONNX_FILE

    def _exported(self, system: System) -> Path:
        """Return the graph as the exporter gives it, from which every backend's file is made."""
        inputs = {"source": self.source_digest(system), "torch": torch.__version__}

        def build(folder: Path) -> None:
            loaded = self.model_of(system)
            if system.recipe is not None and (graph := graph_of(loaded, self.model_digest, self.store)) is not None:
                onnx.save(graph, folder / ONNX_FILE)
            else:
                export_onnx(loaded.model, folder / ONNX_FILE, processor=loaded.processor)

        label = _label(dataclasses.replace(system, backend=""), "exported graph")
        return self.store.make("exported", inputs, build, label) / ONNX_FILE

    def _run_export(self, system: System, target: str, folder: Path) -> None:
        source = str(self.checkpoint(system)) if system.recipe else self.options.model
        words = ["--checkpoint", source, "--target", target, "--out", str((folder / ONNX_FILE).resolve())]
        dtype = system.method if system.method in FLOAT_METHODS else "fp16"
        run_script("export.py", *from_anywhere(words), *(["--dtype", dtype] if takes_dtype(target) else []))

    def engine(self, system: System, shape: Shape, onnx_path: Path | None = None) -> Path:
        """Return the engine of a system; one for all shapes, or a static one for this shape (see --shapes)."""
        path = onnx_path or self.onnx(system)
        backend, ranges = self.backend(system.backend), self._engine_ranges(system, shape)
        inputs = self.engine_inputs(system, shape, path)
        options = BuildOptions(ranges, self.options.threads, precision=inputs["precision"],
                               own=self._own_options(system.backend))  # fmt: skip

        def build(folder: Path) -> None:
            backend.build(path, folder / ENGINE_FILE, options)

        label = _label(system, f"engine {shape.name}" if ranges else "engine")
        return self.store.make("engine", inputs, build, label) / ENGINE_FILE

    def engine_inputs(self, system: System, shape: Shape, onnx_path: Path) -> dict[str, Any]:
        """Return all that decides what an engine is."""
        backend, ranges = self.backend(system.backend), self._engine_ranges(system, shape)
        versions = {system.backend: backend.version(), "onnx-ir": importlib.metadata.version("onnx-ir")}
        inputs = {"onnx": sha256_of(onnx_path), "backend": system.backend, "precision": precision_of(system, backend),
                  "shapes": {name: str(each) for name, each in ranges.items()}, "threads": self.options.threads,
                  "versions": versions, "cpu_flags": list(cpu_flags())}  # fmt: skip
        if (saturation := saturation_of(backend, BuildOptions())) == "avoided":  # older engines of such a CPU saturate
            inputs["saturation"] = saturation
        if backend.info.uses_gpu and (gpu := find_gpu()) is not None:  # which an engine is bound to
            inputs["gpu"] = str(gpu)
        own = self._own_options(system.backend)
        if own is not None and own != type(own)():
            inputs["options"] = dataclasses.asdict(own)
        return inputs

    def _engine_ranges(self, system: System, shape: Shape) -> dict[str, ShapeRange]:
        return self.ranges(shape) if self.is_static(system.backend) else {}

    def _own_options(self, backend: str) -> OwnOptions | None:
        return own_from_words(BUILD_ARGUMENTS, self.options.build_arguments, backend)

    def ranges(self, shape: Shape) -> dict[str, ShapeRange]:
        """Return the static shape of every input."""
        return {name: ShapeRange(*(tuple(x.shape),) * 3) for name, x in self.inputs(shape).items()}

    def inputs(self, shape: Shape) -> dict[str, torch.Tensor]:
        """Return full-length random inputs of a shape, for timing."""
        return example_inputs(self.loaded.model, batch_size=shape.batch_size, seq_length=shape.sequence_length or 8,
                              processor=self.loaded.processor)  # fmt: skip

    def is_static(self, backend: str) -> bool:
        """Whether engines of this backend are built for one shape each."""
        shapes, is_better = self.options.shapes, self.backend(backend).info.wants_static_shapes
        return shapes == "static" or (shapes == "auto" and is_better)


def precision_of(system: System, backend: Backend) -> str:
    """Return what an engine computes in outside INT8. Raises: ValueError: a float type that the backend lacks."""
    precisions = backend.info.precisions
    if system.method in FLOAT_METHODS and system.method not in precisions:
        raise ValueError(f"{system.backend} does not compute in {system.method}; it takes {', '.join(precisions)}")
    if system.method in FLOAT_METHODS:
        return system.method
    return "fp16" if backend.info.uses_gpu and "fp16" in precisions else precisions[0]


def _label(system: System, what: str) -> str:
    return f"{' '.join(part for part in (system.method, system.recipe) if part)}: {what}"
