"""Tiny random models, tokenizers and data for the tests of eval: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

from quant.models.pretrained import LoadedModel

INPUTS = ["input_ids", "token_type_ids", "attention_mask"]
TEXT = "the a film is good bad not very plot acting was great awful who wrote paris france capital of lives in anna"
WORDS = TEXT.split()


def tokenizer() -> PreTrainedTokenizerFast:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(specials + WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, model_input_names=INPUTS, **names)


def bert(head: str = "sequence", num_labels: int = 2, seed: int = 0, num_layers: int = 2) -> LoadedModel:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=4 + len(WORDS), hidden_size=32, num_hidden_layers=num_layers, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64, num_labels=num_labels, initializer_range=0.5,
    )  # fmt: skip
    kinds: dict[str, Any] = {
        "sequence": BertForSequenceClassification,
        "answer": BertForQuestionAnswering,
        "encoder": BertModel,
        "words": BertForTokenClassification,
    }
    return LoadedModel(kinds[head](config).eval(), tokenizer(), f"bert-{head}")


def vit(num_labels: int = 10, num_channels: int = 1) -> LoadedModel:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=8, patch_size=2,
        num_channels=num_channels, num_labels=num_labels,
    )  # fmt: skip
    values = [0.5] * num_channels
    processor = ViTImageProcessorPil(
        size={"height": 8, "width": 8}, image_mean=values, image_std=values, rescale_factor=1 / 16
    )
    return LoadedModel(ViTForImageClassification(config).eval(), processor, "vit")


def llama() -> LoadedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4 + len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    return LoadedModel(LlamaForCausalLM(config).eval(), tokenizer(), "llama")


def write_sentences(folder: Path, num_rows: int = 24) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    sentences = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 3 + i % 9)) for i in range(num_rows)]
    table = pd.DataFrame({"sentence": sentences, "label": [i % 2 for i in range(num_rows)]})
    table.to_parquet(folder / "validation.parquet")
    return folder


def save(loaded: LoadedModel, folder: Path) -> str:
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return str(folder)
