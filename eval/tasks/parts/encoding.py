"""Texts as model inputs: what tasks whose samples are text share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# What `model_inputs` takes of a processor's encoding; a task may give inputs of other names itself.
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values", "input_features", "input_values")
PADDINGS = ("max", "longest")


def tokenize(
    tokenizer: Any,
    texts: list[Any],
    pairs: list[str] | None,
    max_length: int | None,
    padding: str = "max",
    **options: Any,
) -> Any:
    """Return the tokenizer's numpy encoding of texts or text pairs, cut to max_length and padded.

    Args:
        texts: strings; lists of words where the option `is_split_into_words` is true.
        options: the tokenizer's own.
    Raises: ValueError: if the processor is no tokenizer, a text is missing, or the tokenizer cannot pad.
    """
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        got = "no processor" if tokenizer is None else f"a {type(tokenizer).__name__}"
        raise ValueError(
            f"this task's samples are text and need a tokenizer, the model has {got}; choose a text model or an "
            "image task"
        )
    is_text = _is_words if options.get("is_split_into_words") else _is_string
    for column in (texts, pairs or []):
        bad = next((i for i, text in enumerate(column) if not is_text(text)), None)
        if bad is not None:
            wanted = "text" if is_text is _is_string else "a list of words"
            raise ValueError(
                f"sample {bad} is not {wanted} but {type(column[bad]).__name__}; choose the text column with --column"
            )
    if padding not in PADDINGS:
        raise ValueError(f"padding '{padding}' is not known; allowed: {', '.join(PADDINGS)}")
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "the tokenizer has no pad token; set one and save it with the model (tokenizer.pad_token = "
            "tokenizer.eos_token)"
        )
    encoding = tokenizer(
        texts, pairs, max_length=max_length, truncation=options.pop("truncation", True),
        padding="max_length" if padding == "max" else "longest", return_tensors="np", **options,
    )  # fmt: skip
    for name in MODEL_INPUTS:
        if name in encoding:
            encoding[name] = np.asarray(encoding[name]).astype(np.int64)
    return encoding


def model_inputs(encoding: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return only the model inputs of a processor's encoding."""
    return {name: np.asarray(encoding[name]) for name in MODEL_INPUTS if name in encoding}


def _is_string(text: object) -> bool:
    return isinstance(text, str)


def _is_words(text: object) -> bool:
    return isinstance(text, (list, tuple, np.ndarray)) and all(isinstance(word, str) for word in text)
