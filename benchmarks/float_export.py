"""The float model as ONNX, by every exporter that a peer or the search for the fastest float session needs."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.accuracy.sst2 import INPUT_NAMES, load_float, tokenize

LEGACY_OPSET, DYNAMO_OPSET = 17, 20


class LogitsOnly(torch.nn.Module):
    """The classifier with tensors in (by position) and its logits out, as exporters want it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (batch, classes) for the inputs named in INPUT_NAMES, in that order."""
        return self.model(**dict(zip(INPUT_NAMES, inputs, strict=True))).logits


def export_legacy(folder: str | Path, out: Path, attention: str = "eager") -> Path:
    """Write the TorchScript exporter's graph: ONNX Runtime's tool fails on the dynamo exporter's optimized one."""
    axes = {name: {0: "batch", 1: "sequence"} for name in INPUT_NAMES}
    wrapped, inputs = _example(folder, attention)
    torch.onnx.export(
        wrapped,
        inputs,
        str(out),
        input_names=list(INPUT_NAMES),
        output_names=["logits"],
        dynamic_axes=axes,
        opset_version=LEGACY_OPSET,
        dynamo=False,
    )
    return out


def export_dynamo(folder: str | Path, out: Path, attention: str = "eager") -> Path:
    """Write the dynamo exporter's optimized graph with dynamic batch and sequence length."""
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    wrapped, inputs = _example(folder, attention)
    torch.onnx.export(
        wrapped,
        inputs,
        str(out),
        input_names=list(INPUT_NAMES),
        output_names=["logits"],
        dynamic_shapes=(tuple(axes for _ in INPUT_NAMES),),
        opset_version=DYNAMO_OPSET,
        dynamo=True,
        external_data=False,
    )
    return out


def export_fused(legacy: Path, out: Path, num_heads: int, hidden_size: int, skip_layer_norm: bool = True) -> Path:
    """Write `legacy` with attention, GELU, LayerNorm and embedding fused by ONNX Runtime's transformers optimizer."""
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    options = FusionOptions("bert")
    options.enable_skip_layer_norm = skip_layer_norm
    fused = optimizer.optimize_model(
        str(legacy),
        model_type="bert",
        num_heads=num_heads,
        hidden_size=hidden_size,
        optimization_options=options,
        opt_level=0,
    )
    fused.save_model_to_file(str(out))
    return out


def _example(folder: str | Path, attention: str) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    loaded = load_float(folder, attention)
    feeds = tokenize(loaded.tokenizer, ["a fine film", "a film that never quite decides what it wants to be"])
    return LogitsOnly(loaded.model).eval(), tuple(torch.from_numpy(feeds[name]) for name in INPUT_NAMES)
