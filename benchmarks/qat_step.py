"""Times one optimizer step: float against quantization-aware training, eager and compiled, with peers where installed.

    python -m benchmarks.qat_step --out benchmarks/results/qat_step.jsonl      (a GPU box)

BERT-base (random weights), batch 32 x 128, bf16 autocast, AdamW. Each system has its own process; they are timed in
turn, in blocks, and ratios are per round.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.rows import append_row
from calib.apply import apply_statistics
from calib.collect import collect
from quant.dropout import switch_dropout_off
from quant.insert import insert_quantizers
from quant.recipe import QatOptions, load_recipe
from training.qat import start_qat


def batch(size: int, length: int, device: str) -> dict[str, torch.Tensor]:
    """Return random inputs with labels."""
    ids = torch.randint(10, 30000, (size, length), device=device)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.randint(0, 2, (size,), device=device),
    }


def float_model(layers: int, device: str) -> Any:
    """Return a BERT of `layers` layers with random weights."""
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(num_hidden_layers=layers)).to(device).train()


def ours(recipe: str, **options: Any) -> Callable[[Any, dict], Any]:
    """Return what turns a float model into our quantized one with these QAT options."""

    def convert(model: Any, inputs: dict) -> Any:
        insert_quantizers(model, load_recipe(recipe))
        features = {k: v for k, v in inputs.items() if k != "labels"}
        apply_statistics(model, collect(model.eval(), [features], progress=False))
        start_qat(model, QatOptions(**options))
        return model.train()

    return convert


def pytorch_quantization(model: Any, inputs: dict) -> Any:
    """Return the model with pytorch-quantization's linear layers, calibrated by max."""
    from pytorch_quantization import nn as quant_nn

    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Linear:
                layer = quant_nn.QuantLinear(child.in_features, child.out_features, bias=child.bias is not None)
                layer.load_state_dict(child.state_dict(), strict=False)
                setattr(module, name, layer.to(child.weight.device))
    quantizers = [m for m in model.modules() if isinstance(m, quant_nn.TensorQuantizer)]
    for quantizer in quantizers:
        quantizer.disable_quant()
        quantizer.enable_calib()
    with torch.no_grad():
        model(**inputs)
    for quantizer in quantizers:
        if quantizer._calibrator is not None:
            quantizer.load_calib_amax()
        quantizer.enable_quant()
        quantizer.disable_calib()
    return model.to(next(model.parameters()).device)


def modelopt(model: Any, inputs: dict) -> Any:
    """Return the model as ModelOpt's INT8_DEFAULT_CFG makes it."""
    import modelopt.torch.quantization as mtq

    return mtq.quantize(model, mtq.INT8_DEFAULT_CFG, lambda m: m(**inputs))


def without_dropout(model: Any, inputs: dict) -> Any:
    """Return the float model as QAT trains it by default: its dropout off."""
    switch_dropout_off(model)
    return model


SYSTEMS: dict[str, Callable[[Any, dict], Any]] = {
    "float": lambda model, inputs: model,
    "float without dropout": without_dropout,
    "int8_linear frozen": ours("int8_linear", activation_ranges="frozen", weight_ranges="frozen"),
    "int8_linear learned": ours("int8_linear"),
    "int8_full learned": ours("int8_full"),
    "int8_full frozen": ours("int8_full", activation_ranges="frozen", weight_ranges="retaken"),
    "pytorch-quantization": pytorch_quantization,
    "ModelOpt INT8 default": modelopt,
}


def serve(pipe: Connection, name: str, arguments: argparse.Namespace) -> None:
    """Prepare one system, say how long that took, then time a block for each number of steps that comes in."""
    mode, _, system = name.partition(" ")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        run, began = make_step(SYSTEMS[system], mode == "compiled", arguments, device), time.time()
        for _ in range(4):
            run()
        pipe.send({"first_steps_s": round(time.time() - began, 1), "step_memory_bytes": step_memory(run, device)})
    except Exception as error:  # a peer that does not run is a row with its reason
        pipe.send({"error": f"{type(error).__name__}: {error}"[:300]})
        return
    while (count := pipe.recv()) > 0:
        pipe.send(timed(run, count, device))


def make_step(convert: Callable, compiled: bool, arguments: argparse.Namespace, device: str) -> Callable[[], None]:
    """Return one optimizer step of one system."""
    inputs = batch(*arguments.batch, device)
    model = convert(float_model(arguments.layers, device), inputs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    forward = torch.compile(model) if compiled else model

    def run() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = forward(**inputs)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def step_memory(run: Callable[[], None], device: str) -> int | None:
    """Return the peak bytes that a step holds on the GPU: weights, optimizer states, gradients and activations."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def timed(run: Callable[[], None], count: int, device: str) -> float:
    """Return milliseconds of a step, mean over `count` steps back to back after one that is not counted."""
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count * 1e3


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each system: every one lives in a process of its own and they are timed in turn."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name in [f"{mode} {system}" for mode in arguments.modes for system in arguments.systems]:
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, name, arguments), daemon=True).start()
    rows, began = {}, time.time()
    for name in list(pipes):
        left = max(0.0, arguments.patience - (time.time() - began))
        ready = pipes[name].recv() if pipes[name].poll(left) else {"error": f"not ready after {arguments.patience} s"}
        mode, _, system = name.partition(" ")
        rows[name] = {"system": system, "mode": mode, **ready}
        print(rows[name], file=sys.stderr, flush=True)
        if "error" in ready:
            pipes.pop(name)
    times: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(arguments.rounds):
        for name, pipe in pipes.items():
            pipe.send(arguments.steps)
            times[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(0)
    for name, values in times.items():
        rows[name] |= ratios(values, times.get(f"{rows[name]['mode']} float", []), rows, name)
    return list(rows.values())


def ratios(values: list[float], floats: list[float], rows: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the median step and, round by round, its ratio to the float step of the same mode."""
    row: dict[str, Any] = {"ms_median": statistics.median(values), "ms_rounds": [round(v, 3) for v in values]}
    if floats:
        each = sorted(v / f for v, f in zip(values, floats, strict=True))
        row |= {"ratio_median": statistics.median(each), "ratio_min": each[0], "ratio_max": each[-1]}
        memory = rows[f"{rows[name]['mode']} float"]["step_memory_bytes"]
        row["memory_ratio"] = rows[name]["step_memory_bytes"] / memory if memory else None
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, nargs=2, default=(32, 128))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="steps of a block")
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"])
    parser.add_argument("--patience", type=float, default=900, help="seconds to wait for a system to be ready")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    for row in measure(arguments):
        print({k: row.get(k) for k in ("system", "mode", "ms_median", "ratio_median", "memory_ratio")}, flush=True)
        if arguments.out:
            append_row(arguments.out, "qat_step", **row, batch=list(arguments.batch), layers=arguments.layers)


if __name__ == "__main__":
    main()
