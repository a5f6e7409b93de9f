"""What torchao makes of the same float model: its INT8 configurations, compiled as its documentation says.

Both end in `torch._int_mm`: the compiler puts the quantizers of activations and the scales around it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# torchao's recommended_inductor_config_setter, which sets them for the whole process.
COMPILER = {"coordinate_descent_tuning": True, "coordinate_descent_check_all_directions": True,
            "force_fuse_int_mm_with_mul": True}  # fmt: skip
SMALLEST = 64  # torch._int_mm takes no head of a few classes
NAMES = ("torchao dynamic", "torchao static")


def quantized_copy(model: nn.Module, name: str, feeds: Mapping[str, Tensor], options: Mapping[str, Any]) -> nn.Module:
    """Return a copy of a half-precision model on the GPU, its linear layers quantized by one of `NAMES`.

    Args:
        feeds, options: of one forward pass; "static" takes the activations' largest values in it.
    """
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, PerRow, PerTensor, quantize_
    from torchao.quantization.quant_api import Int8StaticActivationInt8WeightConfig

    model = copy.deepcopy(model)
    chosen = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features >= SMALLEST}
    if name == "torchao dynamic":
        config = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
        quantize_(model, config, filter_fn=lambda _, n: n in chosen)
        return model
    largest: dict[str, Tensor] = {}

    def keep(name: str, x: Tensor) -> None:
        largest[name] = x.abs().amax().reshape([1] * x.ndim)  # torchao wants as many axes as the activation has

    hooks = [m.register_forward_pre_hook(lambda _, x, n=n: keep(n, x[0])) for n, m in chosen.items()]
    with torch.no_grad():
        model(**feeds, **options)
    for hook in hooks:
        hook.remove()
    for each in largest:
        scale = largest[each].float() / 127
        config = Int8StaticActivationInt8WeightConfig(
            act_quant_scale=scale, granularity=[PerTensor(), PerRow()], set_inductor_config=False
        )
        quantize_(model, config, filter_fn=lambda _, n, each=each: n == each)
    return model


@contextmanager
def torchao_compiler() -> Iterator[None]:
    """Set the compiler as torchao recommends, and back."""
    with torch._inductor.config.patch(COMPILER):
        yield
