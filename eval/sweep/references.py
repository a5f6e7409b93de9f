"""The references of every report: PyTorch eager and compiled, the fastest float ONNX Runtime session, ONNX Runtime's
dynamic INT8.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.backends.onnxruntime.backend import make_session_options
from eval.pytorch_runner import PyTorchRunner
from eval.sweep.grid import System
from eval.sweep.workshop import ONNX_FILE, Workshop
from eval.timing.latency import CallRunner, Feeds, compare
from quant.models.example_inputs import OUTPUT_NAMES, example_inputs
from quant.models.pretrained import LoadedModel

logger = logging.getLogger(__name__)
LEGACY_OPSET = 17
SEARCH_ROUNDS = 2
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# ONNX Runtime's transformers optimizer knows these architectures by these names.
FUSED_TYPES = {"bert": "bert", "vit": "vit", "deit": "vit", "roberta": "bert", "distilbert": "bert", "gpt2": "gpt2"}
OWN_SESSION = "int8kit's engine"


class TorchRunner(PyTorchRunner):
    """The float model in PyTorch, in any float type, compiled or not."""

    def __init__(self, loaded: LoadedModel, device: str, dtype: str = "fp32", is_compiled: bool = False) -> None:
        super().__init__(loaded, device)
        self.model = self.model.to(DTYPES[dtype])
        if is_compiled:
            self.model = torch.compile(self.model, dynamic=False)


class SessionRunner:
    """A plain ONNX Runtime session on a file that is not one of our engines."""

    def __init__(self, path: Path, threads: int, disabled: tuple[str, ...] = ()) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(
            str(path), make_session_options(threads), providers=["CPUExecutionProvider"],
            disabled_optimizers=list(disabled),
        )  # fmt: skip
        types = {"tensor(int32)": np.int32, "tensor(int64)": np.int64}
        self._types = {each.name: types.get(each.type, np.float32) for each in self._session.get_inputs()}
        self.input_names, self.output_names = list(self._types), [each.name for each in self._session.get_outputs()]

    def __call__(self, feeds: Feeds) -> Feeds:
        """Return the outputs for one batch."""
        cast = {name: np.ascontiguousarray(feeds[name], dtype=kind) for name, kind in self._types.items()}
        return dict(zip(self.output_names, self._session.run(None, cast), strict=True))


def legacy_onnx(workshop: Workshop) -> Path:
    """Return the float model as the TorchScript exporter writes it: ONNX Runtime's own tools need that graph."""
    inputs = {"model": workshop.model_digest, "torch": torch.__version__, "exporter": "torchscript"}

    def build(folder: Path) -> None:
        loaded = workshop.fresh_model()
        if loaded.model._can_set_attn_implementation():
            loaded.model.set_attn_implementation("eager")
        _export_legacy(loaded, folder / ONNX_FILE)

    return workshop.store.make("onnx", inputs, build, "float: torch to ONNX, TorchScript") / ONNX_FILE


def _export_legacy(loaded: LoadedModel, path: Path) -> None:
    feeds = example_inputs(loaded.model, processor=loaded.processor)
    wrapped = _Positional(loaded.model, tuple(feeds))
    axes = {name: {0: "batch"} if name == "pixel_values" else {0: "batch", 1: "sequence"} for name in feeds}
    with torch.no_grad(), _quiet():
        wrapped(*feeds.values())
        torch.onnx.export(
            wrapped, tuple(feeds.values()), str(path), dynamo=False, opset_version=LEGACY_OPSET,
            input_names=list(feeds), output_names=list(wrapped.output_names),
            dynamic_axes={**axes, **{name: {0: "batch"} for name in wrapped.output_names}},
        )  # fmt: skip


class _Positional(torch.nn.Module):
    """Takes inputs by position and gives a tuple, as the exporter wants it."""

    def __init__(self, model: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.output_names: tuple[str, ...] = ()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=True)
        self.output_names = tuple(name for name in OUTPUT_NAMES if output.get(name) is not None)
        return tuple(output[name] for name in self.output_names)


def dynamic_onnx(workshop: Workshop) -> Path:
    """Return ONNX Runtime's dynamic INT8 of the float model: weights per channel, activations at run time."""
    source = legacy_onnx(workshop)
    inputs = {"source": source.parent.name, "tool": "quantize_dynamic", "per_channel": True}

    def build(folder: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared = folder / "prepared.onnx"
        with _quiet():
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            quantize_dynamic(prepared, folder / ONNX_FILE, weight_type=QuantType.QInt8, per_channel=True)
        prepared.unlink()

    return workshop.store.make("onnx", inputs, build, "dynamic INT8 by ONNX Runtime's tool") / ONNX_FILE


def _fused_onnx(workshop: Workshop) -> Path:
    """Return the float model fused by ONNX Runtime's transformers optimizer. Raises: ValueError: unknown to it."""
    config: Any = workshop.loaded.model.config
    if config.model_type not in FUSED_TYPES:
        raise ValueError(f"ONNX Runtime's transformers optimizer does not know {config.model_type}")
    source = legacy_onnx(workshop)

    def build(folder: Path) -> None:
        from onnxruntime.transformers import optimizer
        from onnxruntime.transformers.fusion_options import FusionOptions

        kind = FUSED_TYPES[config.model_type]
        options = FusionOptions(kind)
        options.enable_skip_layer_norm = False
        with _quiet():
            fused = optimizer.optimize_model(
                str(source), model_type=kind, num_heads=config.num_attention_heads, hidden_size=config.hidden_size,
                optimization_options=options, opt_level=0,
            )  # fmt: skip
            fused.save_model_to_file(str(folder / ONNX_FILE))

    inputs = {"source": source.parent.name, "tool": "onnxruntime.transformers.optimizer"}
    return workshop.store.make("onnx", inputs, build, "float: fused by ONNX Runtime's optimizer") / ONNX_FILE


@contextmanager
def open_float_sessions(workshop: Workshop, own_engine: Path) -> Iterator[dict[str, tuple[Any, Path]]]:
    """Yield every float ONNX Runtime session among which the fastest is sought: name -> (runner, file).

    Args: own_engine: our engine of the float model. A session that cannot be made is left out and said.
    """
    from engine.backend import get_backend

    threads = workshop.options.threads
    no_skip = ("SkipLayerNormFusion",)
    float_system = System("fp32", None, "onnxruntime")
    files: dict[str, tuple[Callable[[], Path], tuple[str, ...]]] = {
        "dynamo exporter": (lambda: workshop.onnx(float_system), ()),
        "TorchScript exporter": (lambda: legacy_onnx(workshop), ()),
        "TorchScript exporter, SkipLayerNormFusion off": (lambda: legacy_onnx(workshop), no_skip),
        "transformers optimizer": (lambda: _fused_onnx(workshop), no_skip),
    }
    with ExitStack() as stack:
        sessions: dict[str, tuple[Any, Path]] = {
            OWN_SESSION: (stack.enter_context(get_backend("onnxruntime").load(own_engine, threads)), own_engine)
        }
        for name, (make, disabled) in files.items():
            try:
                path = make()
                sessions[name] = (SessionRunner(path, threads, disabled), path)
            except Exception as error:  # exporters and onnxruntime raise what they like
                logger.info("float session '%s' left out: %s", name, " ".join(str(error).split())[:150])
        yield sessions


def find_fastest(sessions: dict[str, tuple[Any, Path]], feeds: Feeds) -> str:
    """Return the name of the fastest session on these feeds, by a short alternating comparison."""
    runners: dict[str, CallRunner] = {name: select_inputs(runner, feeds) for name, (runner, _) in sessions.items()}
    results = compare(runners, {}, num_blocks=SEARCH_ROUNDS)
    return min(results, key=lambda name: float(np.median(results[name].block_ms)))


def select_inputs(runner: Any, feeds: Feeds) -> CallRunner:
    """Return a call of the runner on the inputs it asks for; the argument is not read."""
    own = {name: feeds[name] for name in runner.input_names}
    return lambda _: runner(own)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what exporters and tools print."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    unseen = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(unseen), contextlib.redirect_stderr(unseen):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            root.setLevel(level)
