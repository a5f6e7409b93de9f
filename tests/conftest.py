"""Tiny random models that several packages' tests share; made from configurations, nothing is downloaded."""

from __future__ import annotations

import logging
import os
from pathlib import Path

# One thread of torch in each of the two test processes, and in what they start: on two cores four would fight. Read at
# torch's first import. No expected number depends on it: tolerances cover other orders of a sum.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without a GPU Triton's kernels run in its interpreter. Triton reads this at its own first import, by transformers.
os.environ.setdefault("TRITON_INTERPRET", "0" if Path("/dev/nvidiactl").exists() else "1")

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from engine.backend import Backend, get_backend

# torch notes every step of an export for a log that nobody reads here; pytest would keep it all, a tenth of the time.
logging.getLogger("torch.__trace").handlers.clear()


def tiny_bert(seed: int = 0, **changes) -> PreTrainedModel:
    """Return a post-LayerNorm encoder: 2 layers, 4 heads of 8, hidden 32."""
    torch.manual_seed(seed)
    config = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
              "intermediate_size": 64, "max_position_embeddings": 64, "num_labels": 3}  # fmt: skip
    return BertForSequenceClassification(BertConfig(**{**config, **changes})).eval()


def tiny_vit(seed: int = 0) -> PreTrainedModel:
    """Return a pre-LayerNorm encoder with a patch embedding: 8 x 8 images, one channel."""
    torch.manual_seed(seed)
    config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                       image_size=8, patch_size=2, num_channels=1, num_labels=10)  # fmt: skip
    return ViTForImageClassification(config).eval()


def tiny_llama(seed: int = 0) -> PreTrainedModel:
    """Return a decoder with RMSNorm, a gated MLP and grouped heads: 4 of Q, 2 of K and V."""
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, intermediate_size=64, max_position_embeddings=64)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def tiny_gpt2(seed: int = 0) -> PreTrainedModel:
    """Return a decoder of Conv1D layers whose Q, K and V are one product."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()


TINY_MODELS = {"bert": tiny_bert, "vit": tiny_vit, "llama": tiny_llama, "gpt2": tiny_gpt2}


@pytest.fixture(params=sorted(TINY_MODELS))
def tiny_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Each family in turn."""
    return TINY_MODELS[request.param]()


@pytest.fixture
def bert() -> PreTrainedModel:
    return tiny_bert()


@pytest.fixture
def vit() -> PreTrainedModel:
    return tiny_vit()


@pytest.fixture
def llama() -> PreTrainedModel:
    return tiny_llama()


def text_batch(batch_size: int = 4, length: int = 12, padded: bool = True, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random ids of `tiny_bert`'s vocabulary; where `padded`, row i has i padding positions at its end."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 99, (batch_size, length), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        for row in range(1, batch_size):
            mask[row, length - row :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def image_batch(batch_size: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random pixels for `tiny_vit`."""
    return {"pixel_values": torch.randn(batch_size, 1, 8, 8, generator=torch.Generator().manual_seed(seed))}


def batch_for(model: PreTrainedModel, **options) -> dict[str, torch.Tensor]:
    """Return a batch that fits the model."""
    return image_batch(**options) if model.main_input_name == "pixel_values" else text_batch(**options)


@pytest.fixture(scope="module")
def rtx() -> Backend:
    """The TensorRT-RTX backend; a test that asks for it is skipped where it cannot build."""
    backend = get_backend("tensorrt_rtx")
    if reason := backend.check_build():
        pytest.skip(reason)
    return backend
