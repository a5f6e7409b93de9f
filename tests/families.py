"""Every family of transformers that is tested, as a tiny random model: the one list that tests and tables go by.

A family is one entry: the model's class and a small configuration. Nothing is downloaded. `make test` quantizes and
saves each once, `make test-all` exports each too (`tests/quant/test_families.py`), `make families` runs the whole
matrix (`benchmarks/families/__main__.py`); CONTRIBUTING.md has the page "Add a family".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from quant.models.example_inputs import example_inputs

Batch = dict[str, Tensor]

# Weights about as large as those of trained models of this width would be: with transformers' own 0.02 a tiny model
# hardly notices what it attends to, and quantization itself moves its outputs by less than parity allows.
INIT = {"initializer_range": 0.2}
TEXT = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64, "num_labels": 3, "pad_token_id": 0, **INIT,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 8, "patch_size": 2, "num_channels": 3, "num_labels": 3, **INIT,
}  # fmt: skip
# Grouped heads: 4 of Q, 2 of K and V.
DECODER = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """How a tiny random model of one family is made, and what it reads."""

    model_class: str
    """The class in `transformers`; its configuration class follows from it."""
    config: dict[str, Any]
    """Arguments of the configuration: 2 layers, width 32, so that every step takes a moment."""
    title: str
    """As the table of the README names it."""
    batch: Callable[[PreTrainedModel, int, int, int], Batch] = field(default=lambda *options: padded_batch(*options))
    """(model, batch_size, seq_length, seed) → inputs with padding; the default fits all that reads text or pixels."""

    float_attention: tuple[str, ...] = ()
    """Attention modules that stay float; a comment at the entry says why."""
    is_slow: bool = False
    """Whether its graph is so large that only `make families` exports it."""

    def model(self, seed: int = 0, *, is_short: bool = False) -> PreTrainedModel:
        """Return the random model in evaluation mode; `is_short`: with one layer in each stage, quick to export."""
        model_class = getattr(transformers, self.model_class)
        torch.manual_seed(seed)
        config = _shortened(self.config) if is_short else self.config
        model = model_class(model_class.config_class(**config)).eval()
        for parameter in model.parameters():
            if parameter.dim() == 1:  # no bias is zero and no norm is neutral, so that a lost one shows
                parameter.data += 0.1 * torch.randn_like(parameter)
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        if norms:  # with no statistics of its own a batch norm lets dozens of random layers fade to nothing
            for norm in norms:
                norm.train().momentum = 1.0
            with torch.no_grad():
                model(**self.batch(model, 8, 12, seed))
        return model.eval()


def _shortened(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with one layer where it has several."""
    short = dict(config)
    for key, value in config.items():
        if key in ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers"):
            short[key] = 1
        elif key == "depths":
            short[key] = [1] * len(value)
        elif isinstance(value, dict):
            short[key] = _shortened(value)
    return short


def padded_batch(model: PreTrainedModel, batch_size: int = 4, seq_length: int = 12, seed: int = 0) -> Batch:
    """Return seeded random inputs of the model; where it takes a mask, row i has i padding positions at its end."""
    inputs = example_inputs(model, batch_size=batch_size, seq_length=seq_length, seed=seed)
    mask = inputs.get("attention_mask")
    if mask is not None:
        for row in range(1, batch_size):
            mask[row, seq_length - min(row, seq_length - 2) :] = 0
        inputs["input_ids"] = torch.where(
            mask == 1, inputs["input_ids"], model.config.get_text_config().pad_token_id or 0
        )
    return inputs


FAMILIES: dict[str, Family] = {
    "bert": Family("BertForSequenceClassification", TEXT, "BERT"),
    "roberta": Family("RobertaForSequenceClassification", {**TEXT, "pad_token_id": 1}, "RoBERTa"),
    "distilbert": Family(
        "DistilBertForSequenceClassification",
        {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64,
         "num_labels": 3, **INIT},
        "DistilBERT",
    ),
    "electra": Family("ElectraForSequenceClassification", {**TEXT, "embedding_size": 16}, "ELECTRA"),
    "albert": Family("AlbertForSequenceClassification", {**TEXT, "embedding_size": 16}, "ALBERT"),
    "deberta_v2": Family(
        "DebertaV2ForSequenceClassification",
        {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True,
         "position_buckets": 8, "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0},
        "DeBERTa-v2",
    ),
    "mpnet": Family("MPNetForSequenceClassification", {**TEXT, "pad_token_id": 1}, "MPNet"),
    "modernbert": Family(
        "ModernBertForSequenceClassification",
        {**TEXT, "local_attention": 4, "global_attn_every_n_layers": 2, "bos_token_id": 1, "eos_token_id": 2,
         "cls_token_id": 1, "sep_token_id": 2},
        "ModernBERT",
    ),
    "vit": Family("ViTForImageClassification", VISION, "ViT"),
    "deit": Family("DeiTForImageClassification", VISION, "DeiT"),
    "beit": Family("BeitForImageClassification", {**VISION, "use_relative_position_bias": True}, "BEiT"),
    "dinov2": Family(
        "Dinov2ForImageClassification", {**VISION, "mlp_ratio": 2}, "DINOv2"
    ),
    "swin": Family(
        "SwinForImageClassification",
        {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "mlp_ratio": 2.0, "image_size": 32,
         "patch_size": 2, "num_channels": 3, "num_labels": 3, **INIT},
        "Swin",
    ),
    "segformer": Family(
        "SegformerForSemanticSegmentation",
        {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32],
         "num_attention_heads": [2, 4], "patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2],
         "decoder_hidden_size": 32, "num_channels": 3, "num_labels": 3, "image_size": 16, **INIT},
        "SegFormer",
    ),
    "mobilevit": Family(
        "MobileViTForImageClassification",
        {"image_size": 32, "patch_size": 2, "hidden_sizes": [16, 24, 32],
         "neck_hidden_sizes": [8, 8, 16, 16, 16, 24, 32], "num_attention_heads": 4, "mlp_ratio": 2.0,
         "num_channels": 3, "num_labels": 3, **INIT},
        "MobileViT",
        is_slow=True,
    ),
    "clip": Family(
        "CLIPModel",
        {"text_config": {**TEXT, "bos_token_id": 1, "eos_token_id": 2}, "vision_config": VISION, "projection_dim": 16},
        "CLIP",
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
         "eos_token_id": 1},
        "GPT-2",
    ),
    "opt": Family(
        "OPTForCausalLM",
        {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64,
         "word_embed_proj_dim": 32, "max_position_embeddings": 64},
        "OPT",
    ),
    "llama": Family("LlamaForCausalLM", DECODER, "Llama"),
    "qwen2": Family("Qwen2ForCausalLM", DECODER, "Qwen2"),
    "mistral": Family("MistralForCausalLM", {**DECODER, "sliding_window": 4}, "Mistral"),
}  # fmt: skip


# Exported in two parts, so tested apart (`tests/quant/models/test_encoder_decoder.py`).
ENCODER_DECODERS: dict[str, Family] = {
    "t5": Family(
        "T5ForConditionalGeneration",
        {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "pad_token_id": 0,
         "decoder_start_token_id": 0, "eos_token_id": 1},
        "T5",
    ),
    "t5_gated": Family(
        "T5ForConditionalGeneration",
        {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "pad_token_id": 0,
         "decoder_start_token_id": 0, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
         "tie_word_embeddings": False},
        "T5 v1.1",
    ),
    "whisper": Family(
        "WhisperForConditionalGeneration",
        {"vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_mel_bins": 8,
         "max_source_positions": 16, "max_target_positions": 24, "pad_token_id": 0, "bos_token_id": 1,
         "eos_token_id": 2, "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None},
        "Whisper",
    ),
}  # fmt: skip


def get_family(name: str) -> Family:
    """Return a family of the list. Raises: ValueError: no such one."""
    if name not in FAMILIES:
        raise ValueError(
            f"unknown family '{name}'; there are {', '.join(FAMILIES)}. CONTRIBUTING.md says how to add one"
        )
    return FAMILIES[name]
