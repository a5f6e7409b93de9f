"""The float side of the GPU benchmarks: the same layers in fp16 under torch.compile, by several attentions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.shapes import Model
from kernels.tune import capture

ACTIVATIONS = {"gelu": F.gelu, "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"), "silu": F.silu}
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x (B, S, H, D) with rotary positions applied; cos and sin have shape (S, 1, D)."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


def rotary_tables(length: int, head_dim: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Return cos and sin of shape (length, 1, head_dim)."""
    angles = torch.arange(length, device=device)[:, None] / 10000 ** (
        torch.arange(0, head_dim, 2, device=device) / head_dim
    )
    angles = torch.cat((angles, angles), -1)[:, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


class HalfLayer(nn.Module):
    """One layer in fp16."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model
        shapes = model.products()
        has_bias = not model.rms
        self.qkv, self.o, self.ffn1, self.ffn2 = (nn.Linear(k, n, bias=has_bias) for n, k in shapes.values())
        norm = (
            (lambda: nn.RMSNorm(model.width, eps=1e-5)) if model.rms else (lambda: nn.LayerNorm(model.width, eps=1e-5))
        )
        self.norm1, self.norm2 = norm(), norm()

    def attend(self, x: Tensor, mask: Tensor | None, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        m, (b, s, _) = self.model, x.shape
        q, k, v = self.qkv(x).view(b, s, -1, m.head_dim).split((m.heads, m.kv_heads, m.kv_heads), 2)
        if cos is not None and sin is not None:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=m.is_causal, enable_gqa=m.heads != m.kv_heads)
        return self.o(y.transpose(1, 2).reshape(b, s, m.width))

    def feed(self, x: Tensor) -> Tensor:
        y = self.ffn1(x)
        act = ACTIVATIONS[self.model.activation]
        if self.model.is_gated:
            gate, up = y.chunk(2, -1)
            return self.ffn2(act(gate) * up)
        return self.ffn2(act(y))

    def forward(self, x: Tensor, mask: Tensor | None, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        if self.model.is_pre_norm:
            x = x + self.attend(self.norm1(x), mask, cos, sin)
            return x + self.feed(self.norm2(x))
        x = self.norm1(x + self.attend(x, mask, cos, sin))
        return self.norm2(x + self.feed(x))


def layer_function(model: Model):
    """Return a layer as a function of its parameters: compiled once, called with every layer's own."""
    with torch.device("meta"):
        template = HalfLayer(model).half().eval()

    def layer(
        parameters: dict[str, Tensor], x: Tensor, mask: Tensor | None, cos: Tensor | None, sin: Tensor | None
    ) -> Tensor:
        return torch.func.functional_call(template, parameters, (x, mask, cos, sin))

    return layer


def half_mask(lengths: Tensor, length: int, is_causal: bool = False) -> Tensor:
    """Return what Transformers gives SDPA for padding: 0 and finfo.min in fp16, shape (B, 1, S, S), expanded.

    A causal model's holds what lies ahead too, since SDPA takes no mask beside `is_causal`.
    """
    keep = (torch.arange(length, device=lengths.device)[None, :] < lengths[:, None])[:, None, None, :]
    if is_causal:
        keep = keep & torch.ones(length, length, dtype=torch.bool, device=lengths.device).tril()
    added = torch.zeros(keep.shape, dtype=torch.float16, device=lengths.device)
    return added.masked_fill(~keep, torch.finfo(torch.float16).min).expand(-1, 1, length, -1)


def fastest_attention(
    model: Model, batch: int, length: int, mask: Tensor | None, time_ms
) -> tuple[str, dict[str, float]]:
    """Return the SDPA backend that is fastest alone here, and each one's milliseconds; what refuses is left out."""

    def operand(heads: int) -> Tensor:
        shape = (batch, length, heads, model.head_dim)
        return torch.randn(shape, device="cuda", dtype=torch.float16).transpose(1, 2)

    q, k, v = operand(model.heads), operand(model.kv_heads), operand(model.kv_heads)
    found = {}
    for name, backend in BACKENDS.items():

        def call(backend=backend):
            with sdpa_kernel(backend):
                F.scaled_dot_product_attention(
                    q, k, v, mask, is_causal=model.is_causal and mask is None,
                    enable_gqa=model.heads != model.kv_heads,
                )  # fmt: skip

        try:
            found[name] = time_ms([call] * 10)
        except RuntimeError:  # "No available kernel": this backend takes no mask, or no grouped heads
            continue
    return min(found, key=found.__getitem__), found


class Compiled:
    """A whole float model in fp16 on the GPU, and what is made of it, by torch.compile under CUDA graphs.

    Args:
        feeds: inputs of one call, (batch, length, ...); an "attention_mask" among them hides padding.
        options: of a call, beside its inputs. time_ms: times calls in a row.
    Attributes:
        feeds: the same on the GPU. attention: torch's fastest kernel for it here. attention_ms: each one's alone.
    """

    def __init__(self, model: Any, shape: Model, feeds: Mapping[str, Tensor], length: int, options: dict[str, Any],
                 time_ms: Callable[..., float]) -> None:  # fmt: skip
        self.options = options
        self.feeds = {name: x.cuda().half() if x.is_floating_point() else x.cuda() for name, x in feeds.items()}
        self.model = model.half().cuda()
        seen = self.feeds.get("attention_mask")
        mask = None if seen is None else half_mask(seen.sum(1), length, shape.is_causal)
        batch = len(next(iter(feeds.values())))
        self.attention, self.attention_ms = fastest_attention(shape, batch, length, mask, time_ms)
        self._kept: list[Any] = []  # a graph does not keep the weights that it reads

    def graph(self, module: Any, mode: str) -> torch.cuda.CUDAGraph:
        """Return a captured call of the model, or of a copy of it, compiled in a mode ("default" or torch's name)."""
        torch._dynamo.reset()
        compiled = torch.compile(module, dynamic=False, mode=None if mode == "default" else mode)
        # the fastest first, the others where it takes no mask (transformers gives a ViT one in which all is seen)
        preferred = list(dict.fromkeys([BACKENDS[self.attention], *BACKENDS.values(), SDPBackend.MATH]))
        with torch.no_grad(), sdpa_kernel(preferred, set_priority=True):
            found = capture([lambda: compiled(**self.feeds, **self.options)])
        self._kept.append(compiled)
        return found
