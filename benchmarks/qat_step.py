"""Times one optimizer step: float against quantization-aware training, eager and compiled, with peers where installed.

    python -m benchmarks.qat_step --out benchmarks/results/qat_step.jsonl      (a GPU box)

BERT-base (random weights), batch 32 x 128, bf16 autocast, AdamW. Systems alternate in blocks; ratios are per round.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from calib.apply import apply_statistics
from calib.collect import collect
from quant.insert import insert_quantizers
from quant.qat import start_qat
from quant.recipe import QatOptions, load_recipe


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


SYSTEMS: dict[str, Callable[[Any, dict], Any]] = {
    "float": lambda model, inputs: model,
    "int8_linear frozen": ours("int8_linear", activation_ranges="frozen", weight_ranges="frozen"),
    "int8_linear learned": ours("int8_linear"),
    "int8_full learned": ours("int8_full"),
    "int8_full frozen": ours("int8_full", activation_ranges="frozen", weight_ranges="retaken"),
    "pytorch-quantization": pytorch_quantization,
    "ModelOpt INT8 default": modelopt,
}


@dataclasses.dataclass
class Step:
    """One system ready to be timed."""

    run: Callable[[], None]
    memory_bytes: int = 0


def make_step(convert: Callable, compiled: bool, inputs: dict, layers: int, device: str) -> Step:
    """Return the step of one system; its peak memory is that of a step alone on the device."""
    model = convert(float_model(layers, device), inputs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device == "cuda")
    forward = torch.compile(model) if compiled else model

    def run() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = forward(**inputs)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Step(run)


def timed(step: Step, count: int, device: str) -> float:
    """Return milliseconds of a step, mean over `count` steps back to back."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        step.run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, nargs=2, default=(32, 128))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="steps of a block")
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"])
    parser.add_argument("--out")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = batch(*arguments.batch, device)
    rows, began = [], time.time()
    for mode in arguments.modes:
        steps: dict[str, Step] = {}
        for name in arguments.systems:
            try:
                torch._dynamo.reset()
                steps[name] = make_step(SYSTEMS[name], mode == "compiled", inputs, arguments.layers, device)
                for _ in range(4):
                    steps[name].run()
                if device == "cuda":
                    torch.cuda.synchronize()
                    resident = torch.cuda.memory_allocated()
                    torch.cuda.reset_peak_memory_stats()
                    steps[name].run()
                    torch.cuda.synchronize()
                    print("ready", mode, name, round(time.time() - began), "s", file=sys.stderr, flush=True)
                    steps[name].memory_bytes = torch.cuda.max_memory_allocated() - resident
            except Exception as error:  # a peer that does not run is a row with its reason
                steps.pop(name, None)
                rows.append({"system": name, "mode": mode, "error": f"{type(error).__name__}: {error}"[:300]})
                print(rows[-1], file=sys.stderr, flush=True)
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(arguments.rounds):
            for name, step in steps.items():
                times[name].append(timed(step, arguments.steps, device))
        for name, values in times.items():
            ratios = sorted(v / f for v, f in zip(values, times["float"], strict=True))
            rows.append(
                {
                    "system": name,
                    "mode": mode,
                    "ms_median": statistics.median(values),
                    "ratio_median": statistics.median(ratios),
                    "ratio_min": ratios[0],
                    "ratio_max": ratios[-1],
                    "step_memory_bytes": steps[name].memory_bytes,
                    "batch": list(arguments.batch),
                    "layers": arguments.layers,
                    "torch": torch.__version__,
                    "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
                    "command": shlex.join(["python", "-m", "benchmarks.qat_step", *sys.argv[1:]]),
                }
            )
            print(
                {k: rows[-1][k] for k in ("system", "mode", "ms_median", "ratio_median", "step_memory_bytes")},
                flush=True,
            )
        if arguments.out:
            with open(arguments.out, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows if row["mode"] == mode)
        steps.clear()
        if device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
