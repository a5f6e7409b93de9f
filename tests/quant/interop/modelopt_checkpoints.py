"""Quantizes tiny models with NVIDIA ModelOpt and saves them the ways it does.

Run as `python -m tests.quant.interop.modelopt_checkpoints DIR`: a process of its own, so that ModelOpt's changes to
transformers and to torch's unpickler do not reach other tests.
"""

import copy
import sys
from pathlib import Path

import modelopt.torch.opt as mto
import modelopt.torch.quantization as mtq
import torch

from tests.conftest import batch_for
from tests.quant.peer_models import peer_model

OFF = ("*pooler*", "*classifier*", "*lm_head*", "*LayerNorm*", "*layernorm*", "*ln_*")


def quantize(family: str, preset: dict, bmm: bool = False, off: tuple[str, ...] = OFF, seed: int = 0):
    """Return the family's tiny model, quantized by ModelOpt where int8_linear does it (and Q, K, V with `bmm`)."""
    config = copy.deepcopy(preset)
    config["quant_cfg"] += [{"quantizer_name": name, "enable": False} for name in off]
    config["quant_cfg"].append({"quantizer_name": "*[qkv]_bmm_quantizer", "cfg": {"num_bits": 8}, "enable": bmm})
    model = peer_model(family, seed)
    return mtq.quantize(model, config, lambda m: [m(**batch_for(m, seed=s)) for s in range(3)])


def main(folder: Path) -> None:
    """Write each model's checkpoint and the logits of one more batch."""
    torch.set_num_threads(1)
    cases = {
        "bert_linear": quantize("bert", mtq.INT8_DEFAULT_CFG),
        "bert_qkv": quantize("bert", mtq.INT8_DEFAULT_CFG, bmm=True),
        "vit_qkv": quantize("vit", mtq.INT8_DEFAULT_CFG, bmm=True),
        "gpt2_linear": quantize("gpt2", mtq.INT8_DEFAULT_CFG),
        "llama_qkv": quantize("llama", mtq.INT8_DEFAULT_CFG, bmm=True),
        "bert_smooth": quantize("bert", mtq.INT8_SMOOTHQUANT_CFG),
        "bert_preset": quantize("bert", mtq.INT8_DEFAULT_CFG, off=()),
        "bert_trained": quantize("bert", mtq.INT8_DEFAULT_CFG, seed=5),
        "bert_int4": quantize("bert", mtq.INT4_BLOCKWISE_WEIGHT_ONLY_CFG),
    }
    logits = {}
    for name, model in cases.items():
        mto.save(model, folder / f"{name}.pt")
        torch.save(model.state_dict(), folder / f"{name}_state.pt")
        with torch.no_grad():
            logits[name] = model(**batch_for(model, seed=9)).logits
    cases["bert_linear"].save_pretrained(folder / "bert_linear_folder")
    torch.save(mto.modelopt_state(cases["bert_linear"]), folder / "settings.pt")
    torch.save(logits, folder / "logits.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
