"""Small inputs that any model's forward accepts: for the traced forward of insertion and for export."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quant.models.encoder_decoder import (
    HIDDEN_MASK,
    HIDDEN_STATES,
    decoder_inputs,
    is_encoder_decoder,
    model_part,
    part_of,
)

DECODER_IDS = "decoder_input_ids"
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# What is kept of a model's outputs, in this order: exported, scored and distilled.
OUTPUT_NAMES = (
    "logits", "start_logits", "end_logits", "last_hidden_state", "logits_per_image", "text_embeds", "image_embeds",
)  # fmt: skip
# Those of them that have one row for a whole sample, whatever their second axis is.
SAMPLE_OUTPUTS = ("logits_per_image", "text_embeds", "image_embeds")


def input_names(model: PreTrainedModel, processor: Any = None) -> tuple[str, ...]:
    """Return the names of the model's inputs in the order of its forward, as its processor makes them.

    Without a processor: the main input, the attention mask, and token types where the model has more than one.
    Raises: ValueError: a main input that no command here can make.
    """
    if part_of(model) == "decoder":
        has_mask = "attention_mask" in input_names(model.whole, processor)  # type: ignore[arg-type]
        return ("input_ids", HIDDEN_STATES, *((HIDDEN_MASK,) if has_mask else ()))
    if part_of(model) == "encoder":
        return tuple(n for n in input_names(model.whole, processor) if n != DECODER_IDS)  # type: ignore[arg-type]
    accepted = inspect.signature(model.forward).parameters
    wanted = getattr(processor, "model_input_names", None)
    written = (DECODER_IDS,) if is_encoder_decoder(model) else ()
    if has_two_towers(model):
        return (*TEXT_INPUTS[:2], "pixel_values")
    if model.main_input_name == "pixel_values":
        return ("pixel_values", *written)
    if model.main_input_name == "input_features" and hasattr(model.config, "num_mel_bins"):
        return ("input_features", *written)
    if model.main_input_name != "input_ids":
        raise ValueError(
            f"{type(model).__name__} reads '{model.main_input_name}'; supported: input_ids, pixel_values, and "
            "input_features of a Whisper model"
        )
    if wanted is None:
        has_types = getattr(model.config, "type_vocab_size", 0) > 1
        wanted = TEXT_INPUTS if has_types else TEXT_INPUTS[:2]
    return (*(name for name in TEXT_INPUTS if name in wanted and name in accepted), *written)


def example_inputs(
    model: PreTrainedModel, *, batch_size: int = 2, seq_length: int = 8, processor: Any = None, seed: int = 0
) -> dict[str, Tensor]:
    """Return seeded random inputs: ids (batch_size, seq_length) without padding, pixels (batch_size, C, H, W), both.

    An encoder-decoder also gets decoder_input_ids of another length, its decoder part what the encoder makes of such
    inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    names = input_names(model, processor)
    vocab_size = model.config.get_text_config().vocab_size if {"input_ids", DECODER_IDS} & {*names} else 0

    def random_ids(length: int) -> Tensor:
        return torch.randint(min(10, vocab_size - 1), vocab_size, (batch_size, length), generator=generator)

    if part_of(model) == "decoder":
        options: dict[str, Any] = {"batch_size": batch_size, "seq_length": seq_length, "processor": processor}
        inputs = example_inputs(model_part(model.whole, "encoder"), **options, seed=seed)  # type: ignore[arg-type]
        return decoder_inputs(model, inputs, random_ids(seq_length - seq_length // 4))
    made: dict[str, Tensor] = {}
    if "input_ids" in names:
        ids = random_ids(seq_length)
        made = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    if "pixel_values" in names:
        made["pixel_values"] = torch.randn((batch_size, *image_shape(model)), generator=generator)
    if "input_features" in names:
        shape = (batch_size, model.config.num_mel_bins, 2 * model.config.max_source_positions)
        made["input_features"] = torch.randn(shape, generator=generator)
    if DECODER_IDS in names:
        made[DECODER_IDS] = random_ids(seq_length - seq_length // 4)
    return {name: made[name].to(model.device) for name in names}


def has_two_towers(model: PreTrainedModel) -> bool:
    """Return whether the model compares text with images, each by a tower of its own (CLIP), and reads both."""
    accepted = inspect.signature(model.forward).parameters
    return hasattr(model.config, "vision_config") and "input_ids" in accepted and "pixel_values" in accepted


def without_cache(model: PreTrainedModel) -> dict[str, bool]:
    """Return the argument that keeps a decoder from building a KV cache; nothing for models that have none."""
    writes = model.main_input_name == "input_ids" or is_encoder_decoder(model)
    if writes and part_of(model) is None and getattr(model.config, "use_cache", False):
        return {"use_cache": False}
    return {}


def image_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """Return (channels, height, width) of the images that the model's configuration names."""
    config: Any = getattr(model.config, "vision_config", model.config)
    size = config.image_size
    return (config.num_channels, *((size, size) if isinstance(size, int) else size))
