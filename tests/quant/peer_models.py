"""The tiny float models that peers quantize: with weights large enough that rounding is seen in the logits."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.conftest import TINY_MODELS


def peer_model(family: str, seed: int = 0, **changes):
    """Return the family's tiny model with its layers' weights times 8: as drawn, the residual drowns what they do."""
    model = TINY_MODELS[family](seed, **changes)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | Conv1D):
                module.weight.mul_(8)
    return model
