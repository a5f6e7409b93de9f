"""Memory and time of exporting a large model: a random Llama, each step's peak over the size of its float weights.

    python -m benchmarks.large_model --hidden 1536 --layers 18 --recipe int8_linear --work FOLDER --out FILE

Peak memory is anonymous memory (what no file backs) of this process, sampled every 20 ms; what the imported libraries
took before the model was made is given apart.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from benchmarks.rows import append_row
from calib.apply import apply_statistics
from calib.collect import collect
from engine.graph_file import save_graph
from engine.passes.qdq import prepare_graph
from eval.parity.check import check_parity
from quant.insert import insert_quantizers
from quant.models.example_inputs import example_inputs
from quant.models.pretrained import LoadedModel
from quant.onnx_export import export_graph
from quant.recipe import load_recipe


def memory_gb() -> float:
    """Return the anonymous memory of this process in GB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) * 1024 / 1e9


class Steps:
    """Runs steps one by one and keeps their seconds and peaks."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._peak = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, memory_gb())
            time.sleep(0.02)

    def __call__(self, name: str, step: Callable[[], Any]) -> Any:
        """Return what the step returns."""
        self._peak, start = 0.0, time.time()
        result = step()
        row = {
            "step": name,
            "seconds": round(time.time() - start, 1),
            "peak_gb": round(max(self._peak, memory_gb()), 3),
        }
        self.rows.append(row)
        print(row, flush=True)
        return result


def make_model(hidden: int, layers: int) -> LlamaForCausalLM:
    """Return a random model in one copy: 16 heads of Q, 8 of K and V, 32,000 words."""
    config = LlamaConfig(
        vocab_size=32000, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=16, num_key_value_heads=8,
        intermediate_size=3 * hidden, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data = parameter.data.normal_(0, 0.02) if parameter.dim() > 1 else parameter.data.fill_(1)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)  # its frequencies are no parameters: empty until now
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--recipe", default="int8_linear", help="or 'float'")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    path, libraries = arguments.work / f"{arguments.recipe}.onnx", memory_gb()
    model = make_model(arguments.hidden, arguments.layers)
    float_gb = sum(parameter.nbytes for parameter in model.parameters()) / 1e9
    steps = Steps()
    if arguments.recipe != "float":
        steps("insert", lambda: insert_quantizers(model, load_recipe(arguments.recipe)))
        batch = example_inputs(model, seq_length=16)
        steps("collect and apply", lambda: apply_statistics(model, collect(model, [batch], progress=False)))
    graph = steps("export", lambda: export_graph(model))
    steps("passes", partial(prepare_graph, graph, "onnxruntime"))
    size = steps("write", partial(save_graph, graph, path))
    del graph
    parameters = model.num_parameters()
    report = steps("parity", lambda: check_parity(path, LoadedModel(model, None, "random"), release=True))
    peaks = {row["step"]: row["peak_gb"] for row in steps.rows}
    row = {
        "recipe": arguments.recipe, "parameters": parameters, "float_gb": round(float_gb, 3),
        "libraries_gb": round(libraries, 3), "file_gb": round(size / 1e9, 3), "steps": steps.rows,
        "export_peak": round(max(peaks[step] for step in ("export", "passes", "write")) / float_gb, 3),
        "parity_peak": round(peaks["parity"] / float_gb, 3), "engine_error_mean": report.engine_error_mean,
        "quantization_error_mean": report.quantization_error_mean,
    }  # fmt: skip
    append_row(arguments.out, "large_model", **row)
    print(row)


if __name__ == "__main__":
    main()
