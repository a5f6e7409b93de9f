"""Random feeds for the parity check: every kind of input at two sizes, with real padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from eval.timing.latency import Feeds
from quant.models.encoder_decoder import decoder_inputs, model_part, part_of
from quant.models.example_inputs import example_inputs, image_shape, input_names
from quant.models.pretrained import LoadedModel

# (batch, tokens) of the random feeds; both dimensions differ, so that a fixed one in the file shows.
SHAPES = ((2, 12), (5, 31))
NUM_ROUNDS = 15
# A language model gives a logit for each token and word of its vocabulary, and the check holds four copies of them.
MAX_LOGITS = 12_000_000


def random_feeds(loaded: LoadedModel, seed: int = 0) -> Iterator[Feeds]:
    """Yield batches of random ids at two batch sizes and lengths with padding on the tokenizer's side, or of random
    pixels or spectra; for a decoder, ids with what its encoder makes of such a batch.
    """
    config: Any = loaded.model.config
    generator = np.random.default_rng(seed)
    names = input_names(loaded.model, loaded.processor)
    if part_of(loaded.model) == "decoder":
        yield from _decoder_feeds(loaded, seed)
        return
    if names == ("input_features",):
        for batch_size, _ in SHAPES * num_rounds(loaded):
            yield _as_arrays(example_inputs(loaded.model, batch_size=batch_size, seed=int(generator.integers(1 << 31))))
        return
    if names == ("pixel_values",):
        for batch_size, _ in SHAPES * NUM_ROUNDS:
            yield {"pixel_values": _random_pixels(loaded, generator, batch_size)}
        return
    text = config.get_text_config()
    # Ids below 10 are padding and special tokens in small vocabularies; the maximum keeps clear of RoBERTa's offset.
    limit = (getattr(text, "max_position_embeddings", None) or 512) - 2
    pad_left = getattr(loaded.processor, "padding_side", "right") == "left"
    pad_id = getattr(text, "pad_token_id", None) or 0
    for batch_size, length in SHAPES * num_rounds(loaded):
        length = min(length, limit)
        ids = generator.integers(min(10, text.vocab_size - 1), text.vocab_size, size=(batch_size, length))
        num_tokens = generator.integers(length // 2, length + 1, size=batch_size)
        num_tokens[0] = length
        position = np.arange(length)[::-1] if pad_left else np.arange(length)
        mask = (position[None, :] < num_tokens[:, None]).astype(np.int64)  # (B, L)
        yield {
            "input_ids": np.where(mask == 1, ids, pad_id),
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
            **({"pixel_values": _random_pixels(loaded, generator, batch_size)} if "pixel_values" in names else {}),
        }


def num_rounds(loaded: LoadedModel) -> int:
    """Return how many batches of each shape are made: fewer for a language model with a large vocabulary."""
    head = loaded.model.get_output_embeddings()
    if head is None:
        return NUM_ROUNDS
    per_round = (
        sum(batch_size * length for batch_size, length in SHAPES) * loaded.model.config.get_text_config().vocab_size
    )
    return max(1, min(NUM_ROUNDS, MAX_LOGITS // per_round))


def _random_pixels(loaded: LoadedModel, generator: np.random.Generator, batch_size: int) -> np.ndarray:
    return generator.normal(size=(batch_size, *image_shape(loaded.model))).astype(np.float32)


def _decoder_feeds(loaded: LoadedModel, seed: int) -> Iterator[Feeds]:
    model: Any = loaded.model
    encoder = dataclasses.replace(loaded, model=model_part(model.whole, "encoder"))
    vocab_size = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(seed)
    for feeds in random_feeds(encoder, seed):
        names = input_names(encoder.model, loaded.processor)
        inputs = {name: torch.from_numpy(feeds[name]).to(model.device) for name in names}
        batch_size = len(feeds[names[0]])
        ids = torch.randint(min(10, vocab_size - 1), vocab_size, (batch_size, 3 + 2 * batch_size), generator=generator)
        yield _as_arrays(decoder_inputs(model, inputs, ids))


def _as_arrays(inputs: dict[str, torch.Tensor]) -> Feeds:
    return {name: tensor.cpu().numpy() for name, tensor in inputs.items()}
