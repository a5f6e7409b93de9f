"""Encoder-decoders (T5, Whisper): their inputs, and the two parts that are exported each on its own.

A part is the same model without what the other part holds, with the same modules under the same names: its sites are
those of the whole model. The encoder runs once for each sample, the decoder once for each token that is written.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

PARTS = ("encoder", "decoder")
HIDDEN_STATES, HIDDEN_MASK = "encoder_hidden_states", "encoder_attention_mask"


def is_encoder_decoder(model: Any) -> bool:
    """Return whether the model reads by an encoder and writes by a decoder (a whole one, not a part of it)."""
    return bool(getattr(model.config, "is_encoder_decoder", False)) and part_of(model) is None


def part_of(model: Any) -> str | None:
    """Return "encoder" or "decoder" for a part that `model_part` made, None for any other model."""
    return getattr(model, "part", None) if isinstance(model, _Part) else None


def encoder_prefix(model: PreTrainedModel) -> str | None:
    """Return the name of the encoder's module with a dot, None where the model is no whole encoder-decoder."""
    return f"{_encoder_path(model)}." if is_encoder_decoder(model) else None


def model_part(model: PreTrainedModel, part: str) -> PreTrainedModel:
    """Return the encoder or the decoder (with its head) of a model, sharing its parameters and quantizers.

    The encoder takes the model's own inputs and gives `last_hidden_state` (B, S, C). The decoder takes `input_ids`
    (B, T), the encoder's output as `encoder_hidden_states` and, for text, its `encoder_attention_mask` (B, S), and
    gives `logits` (B, T, V); it has no KV cache.
    """
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}; the parts are {', '.join(PARTS)}")
    path = _encoder_path(model).split(".")
    small: Any = _keep_encoder(model, path) if part == "encoder" else _drop_encoder(model, path)
    small.__class__ = _part_class(part, type(model))
    small.__dict__["encoder_path"] = ".".join(path)
    small.__dict__["whole"] = model  # not a submodule: what it holds is no part of this one
    return small


def decoder_inputs(decoder: Any, inputs: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    """Return the decoder part's inputs for ids (B, T) after the encoder's `inputs`, by the model's own encoder."""
    encoder = model_part(decoder.whole, "encoder")
    with torch.no_grad():
        states = encoder(**inputs).last_hidden_state
    made = {"input_ids": ids.to(states.device), HIDDEN_STATES: states}
    return made if "attention_mask" not in inputs else made | {HIDDEN_MASK: inputs["attention_mask"]}


def write_greedily(model: Any, inputs: dict[str, Tensor], max_tokens: int = 32) -> dict[str, Tensor]:
    """Return the decoder_input_ids (B, T) that the model itself writes after `inputs`, and their mask (B, T).

    The most probable token each time, up to the end token; what a row holds after it is masked.
    """
    config = model.config
    start, end = _token(model, "decoder_start_token_id"), _token(model, "eos_token_id")
    if start is None:
        raise ValueError(f"{type(model).__name__} has no decoder_start_token_id to begin with; set it in config.json")
    limit = getattr(config, "max_target_positions", None) or max_tokens
    with torch.no_grad():
        states = model_part(model, "encoder")(**inputs).last_hidden_state
        decoder = model_part(model, "decoder")
        ids = torch.full((len(states), 1), start, device=states.device)
        mask, is_over = torch.ones_like(ids), torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        while ids.shape[1] < min(max_tokens, limit) and not bool(is_over.all()):
            logits = decoder(ids, states, inputs.get("attention_mask")).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
            mask = torch.cat([mask, (~is_over).long()[:, None]], dim=1)
            if end is not None:
                is_over |= ids[:, -1] == end
    return {"decoder_input_ids": ids, "decoder_attention_mask": mask}


def _token(model: PreTrainedModel, name: str) -> int | None:
    """Return a special token of the configuration or the generation configuration, the first of several."""
    found = getattr(model.config, name, None)
    found = getattr(model.generation_config, name, None) if found is None else found
    return found[0] if isinstance(found, list) else found


class _Part(PreTrainedModel):
    """Marks a part; mixed into the model's own class."""

    part: str


class _Encoder(_Part):
    part = "encoder"

    def forward(self, *args: Any, **inputs: Any) -> BaseModelOutput:
        encoder: Any = nn.Module.get_submodule(self, str(self.encoder_path))
        return encoder(*args, return_dict=True, **{name: x for name, x in inputs.items() if name != "return_dict"})

    def get_output_embeddings(self) -> None:
        """Return None: the head belongs to the decoder."""


class _Decoder(_Part):
    part = "decoder"
    main_input_name = "input_ids"

    def forward(
        self, input_ids: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor | None = None, **_: Any
    ) -> Any:
        mask = {} if encoder_attention_mask is None else {"attention_mask": encoder_attention_mask}
        states = BaseModelOutput(last_hidden_state=encoder_hidden_states)
        return super().forward(
            encoder_outputs=states, decoder_input_ids=input_ids, use_cache=False, return_dict=True, **mask
        )


def _part_class(part: str, model_class: Any) -> type:
    mixin = _Encoder if part == "encoder" else _Decoder
    return type(f"{model_class.__name__}{part.title()}", (mixin, model_class), {})


def _encoder_path(model: PreTrainedModel) -> str:
    encoder = model.get_encoder()
    return next(name for name, module in model.named_modules() if module is encoder)


def _keep_encoder(module: Any, path: list[str]) -> Any:
    """Return a copy of the module (its parameters shared) that holds the encoder and what it uses, and no more."""
    used = set(nn.Module.get_submodule(module, ".".join(path)).modules())
    small = _shallow(module)
    for name, child in module.named_children():
        if name != path[0] and child not in used:
            del small._modules[name]
    if len(path) > 1:
        small._modules[path[0]] = _keep_encoder(module._modules[path[0]], path[1:])
    return small


def _drop_encoder(module: Any, path: list[str]) -> Any:
    small = _shallow(module)
    small._modules[path[0]] = nn.Identity() if len(path) == 1 else _drop_encoder(module._modules[path[0]], path[1:])
    return small


def _shallow(module: Any) -> Any:
    small = copy.copy(module)
    small.__dict__["_modules"] = dict(module._modules)
    return small
