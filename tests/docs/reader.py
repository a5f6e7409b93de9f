"""The folder of somebody who reads the documentation: the model, texts and tables that its blocks name, all tiny."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from tests.docs.pages import ROOT
from tests.eval import tiny

SCRIPTS = ("train_qat.py", "export.py", "build_engine.py", "engine")  # a reader stands in the repository
NUM_TOKENS = 64


def make_folder(folder: Path) -> Path:
    """Make `my-bert`, `peer.pt`, `reviews.txt`, `reviews.csv`, `reviews/` and `data/sst2` in an empty folder."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=4 + len(tiny.WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=NUM_TOKENS, num_labels=2,
                        initializer_range=0.2)  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder / "my-bert")
    tiny.tokenizer().save_pretrained(folder / "my-bert")
    torch.save(peer_state(model), folder / "peer.pt")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(tiny.WORDS, rng.integers(3, 12))) for _ in range(64)]
    (folder / "reviews.txt").write_text("\n".join(texts) + "\n")
    stars = rng.integers(1, 6, len(texts))
    pd.DataFrame({"text": texts, "stars": stars}).to_csv(folder / "reviews.csv", index=False)
    for split, part in (("train", slice(0, 40)), ("validation", slice(40, 64))):
        for name in ("reviews", "data/sst2"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        reviews = pd.DataFrame({"review": texts[part], "stars": stars[part]})
        reviews.to_parquet(folder / "reviews" / f"{split}.parquet")
        sentences = pd.DataFrame({"sentence": texts[part], "label": (stars[part] > 3).astype(int)})
        sentences.to_parquet(folder / "data" / "sst2" / f"{split}.parquet")
    for name in SCRIPTS:
        (folder / name).symlink_to(ROOT / name)
    return folder


def peer_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the model's state with ranges under pytorch-quantization's names: inputs a scalar, weights by channel."""
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "pooler" not in name and "classifier" not in name:
            state[f"{name}._input_quantizer._amax"] = torch.tensor(4.0)
            state[f"{name}._weight_quantizer._amax"] = module.weight.detach().abs().amax(1, keepdim=True)
    return state
