"""Opens a system at a shape and scores it: the runner, what it was made from, and the row without its latency."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from engine.graph_file import onnx_bytes
from engine.manifest import read_manifest, sha256_of
from eval.arguments import BatchOptions
from eval.batches import check_length
from eval.evaluate import evaluate
from eval.graphs.same_graph import graph_digest
from eval.metrics.types import metric_from_dict
from eval.pytorch_runner import PyTorchRunner
from eval.results import ResultRow, provenance, split_method
from eval.subject import Subject, precision_of_engine, precision_of_model, ranges_from
from eval.summary import result_row
from eval.sweep.grid import COMPILED, DYNAMIC, FASTEST, FLOAT_METHODS, PYTORCH, Shape, System
from eval.sweep.references import (
    SessionRunner,
    TorchRunner,
    dynamic_onnx,
    find_fastest,
    open_float_sessions,
)
from eval.sweep.store import digest_of
from eval.sweep.workshop import Workshop
from eval.tasks import get_task
from eval.tasks.base import Task
from eval.timing.latency import Feeds
from eval.timing.point_details import NO_DETAILS, Details, Digests
from quant.checkpoint import read_description

MAX_SCORE_BATCH = 32
SCORED = ("num_samples", "metric_name", "metric_type", "metric", "metric_low", "metric_high", "mcnemar_p", "loss_low",
          "loss_high", "num_flips", "cosine", "sqnr_db")  # fmt: skip
MAX_REMEMBERED_BYTES = 1 << 29


class Skipped(Exception):
    """A point that cannot be measured here, with the reason; not a failure."""


@dataclass(frozen=True)
class Opened:
    """A system that is ready to run.

    Attributes:
        identity: digests of what computes the outputs; equal identities have equal scores.
        is_timed: False for INT8 simulated in PyTorch, whose time says nothing.
        details: digests, products, session and graph for the row.
    """

    system: System
    runner: Any
    identity: dict[str, Any]
    precision: str
    size_bytes: int | None
    is_timed: bool = True
    is_scored: bool = True
    details: Details = NO_DETAILS

    @property
    def graph(self) -> str | None:
        """Digest of the graph it runs, its numbers left out: what has the same takes the same time. None: unknown."""
        return self.details.graph


class Remembered:
    """The float model as reference: computes each batch once and remembers the outputs."""

    def __init__(self, runner: PyTorchRunner) -> None:
        self._runner, self.model = runner, runner.model
        self.input_names, self.output_names = runner.input_names, runner.output_names
        self._outputs: dict[bytes, Feeds] = {}
        self._num_bytes = 0

    def __call__(self, feeds: Feeds) -> Feeds:
        """Return the outputs for one batch."""
        digest = hashlib.sha256()
        for name in self.input_names:
            digest.update(str(feeds[name].shape).encode() + np.ascontiguousarray(feeds[name]).tobytes())
        key = digest.digest()
        if key in self._outputs:
            return self._outputs[key]
        outputs = self._runner(feeds)
        self._num_bytes += sum(array.nbytes for array in outputs.values())
        if self._num_bytes <= MAX_REMEMBERED_BYTES:
            self._outputs[key] = outputs
        return outputs


class Bench:
    """Opens and scores the systems of one sweep.

    Args: threads: of the sessions it opens; None is what the sweep was asked for. A process that prepares beside
        others takes its share of the cores: it times nothing.
    """

    def __init__(self, workshop: Workshop, command: str, threads: int | None = None) -> None:
        self.workshop, self.options, self.command = workshop, workshop.options, command
        self.threads = threads or workshop.options.threads

    @cached_property
    def reference(self) -> Remembered:
        """The float model that errors and flips are held against."""
        return Remembered(PyTorchRunner(self.workshop.loaded, self.options.device))

    @cached_property
    def task(self) -> Task:
        """The task in its form for this model."""
        config: Any = self.workshop.loaded.model.config
        task = get_task(self.options.task).for_outputs(tuple(self.reference.output_names))
        return task.with_labels(getattr(config, "label2id", None))

    @property
    def task_digest(self) -> dict[str, str]:
        """What beside its name says which task a run has: the digest of the user's own file, nothing for ours."""
        digest = get_task(self.options.task).file_digest
        return {"task_digest": digest} if digest else {}

    @cached_property
    def dataset(self) -> Dataset:
        """The samples that are scored."""
        options = self.options
        return self.task.load(options.data, options.split, columns=options.columns, label_column=options.label_column)

    @cached_property
    def data_digest(self) -> str:
        """sha256 over the number of samples and up to 64 of them, 16 digits."""
        rows = np.unique(np.linspace(0, len(self.dataset) - 1, 64).astype(int))
        digest = hashlib.sha256(str(len(self.dataset)).encode())
        digest.update(repr([self.dataset[int(row)] for row in rows]).encode())
        return digest.hexdigest()[:16]

    def check_lengths(self) -> None:
        """Raise ValueError if a sequence length of the grid is over the model's maximum."""
        for length in self.options.seq_lengths:
            check_length(self.task, length, self.workshop.loaded.model.config, self.workshop.loaded.processor)

    def score_shape(self, shape: Shape) -> Shape:
        """Return the shape at which this length is scored: the largest batch size up to 32, else the smallest."""
        small = [size for size in self.options.batch_sizes if size <= MAX_SCORE_BATCH]
        return Shape(max(small) if small else min(self.options.batch_sizes), shape.sequence_length)

    def feeds(self, shape: Shape) -> Feeds:
        """Return full-length random inputs for timing."""
        return {name: x.cpu().numpy() for name, x in self.workshop.inputs(shape).items()}

    @contextmanager
    def open(self, system: System, shape: Shape) -> Iterator[Opened]:
        """Yield the system ready to run at a shape; what it needs is made if it is not there.

        Raises: Skipped: its backend is not here, or has no such type. Anything else is a failure of this point.
        """
        with ExitStack() as stack:
            if system.backend == PYTORCH:
                yield self._open_pytorch(system)
                return
            backend = self.workshop.backend(system.backend)
            for reason in (backend.check_build(), backend.check_run()):
                if reason:
                    raise Skipped(reason)
            if system.method == FASTEST:
                yield self._open_fastest(system, shape, stack)
            elif system.method == DYNAMIC:
                path = dynamic_onnx(self.workshop)
                runner = SessionRunner(path, self.threads)
                identity = {"file": sha256_of(path), "session": "plain"}
                yield Opened(system, runner, identity, "int8", onnx_bytes(path),
                             details=Details(digests=Digests(onnx=identity["file"])))  # fmt: skip
            else:
                yield self._open_engine(system, shape, stack)

    def _open_pytorch(self, system: System) -> Opened:
        is_quantized = system.recipe is not None
        dtype = system.method if system.method in FLOAT_METHODS else "fp32"
        if dtype != "fp32" and self.options.device == "cpu":
            raise Skipped(f"PyTorch in {dtype} is measured on a GPU only; give --device cuda")
        source = self.workshop.source_digest(system)
        loaded = self.workshop.model_of(system) if is_quantized else self.workshop.fresh_model()
        is_compiled = system.method == COMPILED
        size = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
        return Opened(
            system, TorchRunner(loaded, self.options.device, dtype, is_compiled),
            {"source": source, "backend": PYTORCH, "dtype": dtype},
            precision_of_model(loaded.model, dtype),
            None if is_quantized else size, is_timed=not is_quantized, is_scored=not is_compiled,
            details=Details(digests=Digests(source=source)),
        )  # fmt: skip

    def _open_fastest(self, system: System, shape: Shape, stack: ExitStack) -> Opened:
        engine = self.workshop.engine(System("fp32", None, "onnxruntime"), shape)
        sessions = stack.enter_context(open_float_sessions(self.workshop, engine))
        inputs = {"sessions": {name: sha256_of(path) for name, (_, path) in sessions.items()}, "shape": shape.name,
                  "threads": self.options.threads}  # fmt: skip
        name = self.workshop.store.make_json(
            "search", inputs, lambda: find_fastest(sessions, self.feeds(shape)), f"fastest float session {shape.name}"
        )
        runner, path = sessions[name]
        identity = {"file": inputs["sessions"][name], "session": name}  # type: ignore[index]
        return Opened(system, runner, identity, "fp32", onnx_bytes(path),
                      details=Details(session=name, digests=Digests(onnx=identity["file"])))  # fmt: skip

    def _open_engine(self, system: System, shape: Shape, stack: ExitStack) -> Opened:
        onnx_path = self.workshop.onnx(system)
        engine = self.workshop.engine(system, shape, onnx_path)
        manifest = read_manifest(engine)
        runner = stack.enter_context(self.workshop.backend(system.backend).load(engine, self.threads))
        identity = {"onnx": manifest.onnx_sha256, "backend": system.backend, "precision": manifest.precision}
        digests = Digests(self.workshop.source_digest(system), manifest.onnx_sha256, manifest.engine_sha256)
        stored = onnx_path.relative_to(self.workshop.store.folder)
        details = Details(digests=digests, products=manifest.products, onnx_path=str(stored),
                          graph=self._graph(system, shape, onnx_path, engine))  # fmt: skip
        return Opened(system, runner, identity, precision_of_engine(manifest), manifest.size_bytes, details=details)

    def _graph(self, system: System, shape: Shape, onnx_path: Path, engine: Path) -> str | None:
        """Return the digest of the graph that an engine runs, with all that its build got beside; None: unknown.

        Where the engine is an ONNX graph itself, that counts too: an optimizer may look at numbers.
        """
        manifest = read_manifest(engine)
        files = {"onnx": manifest.onnx_sha256, "engine": manifest.engine_sha256}
        graphs = self.workshop.store.make_json(
            "graph", files, lambda: {"onnx": graph_digest(onnx_path), "engine": graph_digest(engine)},
            f"{system.name}: graph",
        )  # fmt: skip
        if graphs["onnx"] is None:
            return None
        built = {**self.workshop.engine_inputs(system, shape, onnx_path), "onnx": graphs}
        return digest_of(built)

    def score(self, opened: Opened, shape: Shape) -> ResultRow:
        """Return the row of a system at a shape without its latency; scores are made once for each length."""
        values: dict[str, Any] = {}
        if opened.is_scored:
            at = self.score_shape(shape)
            inputs: dict[str, Any] = {"what": opened.identity, "data": self.data_digest, "task": self.options.task,
                      "reference": self.workshop.model_digest, "split": self.options.split,
                      "num_samples": self.options.num_samples, "seed": self.options.seed,
                      "length": shape.sequence_length, "batch_size": at.batch_size,
                      "fields": list(SCORED), **self.task_digest}  # fmt: skip
            label = f"{opened.system.name}: score" + (f" {at.sequence_length} tokens" if at.sequence_length else "")
            values = self.workshop.store.make_json("scores", inputs, lambda: self._scores(opened, shape, at), label)
            values |= {"metric_type": metric_from_dict(values["metric_type"])}
        recipe = self.workshop.recipe(opened.system) if opened.system.recipe else None
        own = self.base_row(opened.system, shape)
        if recipe is not None:  # as the checkpoint says: smoothquant and qat name no calibrator
            own = dataclasses.replace(own, **ranges_from(read_description(self.workshop.checkpoint(opened.system))))
        measured = {name: values[name] for name in values if getattr(own, name) is None}
        return dataclasses.replace(
            own, precision=opened.precision, size_bytes=opened.size_bytes,
            recipe_digest=recipe.digest if recipe else None,
            **{k: v for k, v in measured.items() if k not in ("precision", "size_bytes", "recipe_digest")},
        )  # fmt: skip

    def _scores(self, opened: Opened, shape: Shape, at: Shape) -> dict[str, Any]:
        with ExitStack() as stack:
            is_static = opened.system.backend != PYTORCH and self.workshop.is_static(opened.system.backend)
            needs_own = is_static and at != shape and opened.system.method not in (FASTEST, DYNAMIC)
            runner = stack.enter_context(self.open(opened.system, at)).runner if needs_own else opened.runner
            evaluation = evaluate(
                self.task, self.dataset, self.workshop.loaded.processor, runner, reference=self.reference,
                options=BatchOptions(at.batch_size, at.sequence_length, "max", self.options.num_samples,
                                     self.options.seed), show_progress=False,
            )  # fmt: skip
        arguments = argparse.Namespace(split=self.options.split, seed=self.options.seed,
                                       batch_size=at.batch_size, padding="max", device=self.options.device)  # fmt: skip
        row = result_row(Subject(runner, self.options.model), evaluation, arguments, self.command).as_dict()
        return {name: row[name] for name in row if name in SCORED or name.startswith("error_")}

    def base_row(self, system: System, shape: Shape, **changes: Any) -> ResultRow:
        """Return a row that says what and where, nothing measured."""
        options, (calibrator, training) = self.options, split_method(system.method)
        versions = self.origin["versions"]
        if options.tensorrt_python and system.backend != PYTORCH:  # of the interpreter that it lives in
            versions = {**versions, system.backend: self.workshop.backend(system.backend).version()}
        return ResultRow(**{
            "command": self.command, "model": options.model, "task": get_task(options.task).name,
            "split": options.split, "recipe": system.recipe, "calibrator": calibrator, "training": training,
            "seed": options.seed, "backend": system.backend, "batch_size": shape.batch_size,
            "sequence_length": shape.sequence_length, "padding": "max", **self.origin, "versions": versions,
            "threads": options.threads if options.device == "cpu" else None, **changes,
        })  # fmt: skip

    @cached_property
    def origin(self) -> dict[str, Any]:
        """Commit, versions and device, asked once."""
        return provenance("cuda" if self.options.device != "cpu" else "cpu")
