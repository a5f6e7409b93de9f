"""The INT8 side of the GPU benchmarks: the same layers by hand from the ops of `kernels/`, random weights and ranges.

Plans: "full" rounds Q, K, V, the softmax and (post-norm) the residual too; "attention" all but the residual; "linear"
leaves attention and residual in fp16 and multiplies the products' inputs by SmoothQuant's factor, as by default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.half import rotary_tables, rotate
from benchmarks.gpu.shapes import Model
from kernels import attention, linear, rows
from kernels.tiles import AttentionTile, ProductTile, RowTile

PLANS = ("full", "attention", "linear")
STEP = 0.03  # every activation's scale
HALF = torch.float16
ACTIVATIONS = {"gelu": "gelu_fast"}  # as fp16 would round it; "gelu" itself costs 8 instructions more for each value


@dataclass
class Product:
    """One quantized linear layer."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    factor: Tensor  # of this product's input


def make_product(columns: int, depth: int, has_bias: bool) -> Product:
    """Return random weights on their per-channel INT8 grid, spread as a trained layer's: normal, the largest at 127."""
    w = torch.randn(columns, depth, device="cuda") / depth**0.5
    scale = w.abs().amax(1) / 127
    codes = torch.clamp(torch.round(w / scale[:, None]), -128, 127).to(torch.int8)
    bias = torch.randn(columns, device="cuda") * 0.02 if has_bias else None
    factor = torch.exp(torch.randn(depth, device="cuda") * 0.3)
    return Product(codes, scale * STEP, bias, factor)


class Int8Stack:
    """All layers of one model by one plan. `tiles` maps an op's name here to the plan of tiles that it takes."""

    def __init__(self, model: Model, plan: str, batch: int, length: int, lengths: Tensor | None):
        self.model, self.plan, self.batch, self.length = model, plan, batch, length
        self.layers = [
            {name: make_product(n, k, not model.rms) for name, (n, k) in model.products().items()}
            for _ in range(model.layers)
        ]
        self.norms = [(torch.rand(model.width, device="cuda", dtype=HALF) + 0.5) for _ in range(2 * model.layers)]
        self.norm_bias = None if model.rms else torch.randn(model.width, device="cuda", dtype=HALF) * 0.1
        self.mask = None
        if lengths is not None:
            keep = torch.arange(length, device="cuda")[None, :] < lengths[:, None]
            self.mask = torch.zeros(keep.shape, device="cuda").masked_fill(~keep, float("-inf"))
        self.activation = ACTIVATIONS.get(model.activation, model.activation)
        self.tiles: dict[str, list[int]] = {}
        self.rotary = rotary_tables(length, model.head_dim, HALF, "cuda") if model.rope else None
        self.rotate = torch.compile(rotate, dynamic=False) if model.rope else rotate

    @property
    def is_smooth(self) -> bool:
        return self.plan == "linear"

    def factor(self, layer: dict[str, Product], name: str) -> Tensor | None:
        return layer[name].factor if self.is_smooth else None

    def multiply(self, layer: dict[str, Product], name: str, x: Tensor, dtype: torch.dtype, **options) -> Tensor:
        p = layer[name]
        return linear.linear(x, p.weight, p.scale, p.bias, dtype, tiles=self.tiles.get(name), **options)

    def project(self, layer: dict[str, Product], x: Tensor) -> Tensor:
        rounds = self.plan != "linear" and not self.model.rope  # rotary positions are applied to float Q and K
        return self.multiply(layer, "qkv", x, torch.int8 if rounds else HALF, out_scale=STEP)

    def attend(self, layer: dict[str, Product], qkv: Tensor) -> Tensor:
        m = self.model
        q, k, v = qkv.view(self.batch, self.length, -1, m.head_dim).split((m.heads, m.kv_heads, m.kv_heads), 2)
        if self.rotary is not None:
            q, k = self.rotate(q, *self.rotary), self.rotate(k, *self.rotary)
        is_int8 = q.dtype == torch.int8
        scale = m.head_dim**-0.5 * (STEP**2 if is_int8 else 1.0)
        y = attention.attention(
            q, k, v, self.mask, scale, STEP if is_int8 else 1.0, torch.int8, STEP, m.is_causal, is_int8,
            self.factor(layer, "o"), self.tiles.get("attention"),
        )  # fmt: skip
        return y.view(-1, m.width)

    def project_back(self, layer: dict[str, Product], y: Tensor, residual: Tensor) -> Tensor:
        return self.multiply(layer, "o", y, HALF, residual=residual, residual_scale=self.step_of(residual))

    def expand(self, layer: dict[str, Product], x: Tensor) -> Tensor:
        m = self.model
        return self.multiply(layer, "ffn1", x, torch.int8, out_scale=STEP, activation=self.activation, gated=m.is_gated,
                             factor=self.factor(layer, "ffn2"))  # fmt: skip

    def contract(self, layer: dict[str, Product], y: Tensor, residual: Tensor) -> Tensor:
        return self.multiply(layer, "ffn2", y, HALF, residual=residual, residual_scale=self.step_of(residual))

    def norm(self, index: int, x: Tensor, factor: Tensor | None, keep: str) -> tuple[Tensor, Tensor]:
        return rows.norm_quantize(x, self.norms[index], self.norm_bias, 1e-5, STEP, None, factor, self.model.rms, keep,
                                  self.tiles.get("norm"))  # fmt: skip

    @staticmethod
    def step_of(residual: Tensor) -> float:
        return STEP if residual.dtype == torch.int8 else 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return the last layer's output; x: fp16, shape (B * S, width)."""
        return self.run_pre_norm(x) if self.model.is_pre_norm else self.run_post_norm(x)

    def run_pre_norm(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            codes, _ = self.norm(2 * index, x, self.factor(layer, "qkv"), "none")
            x = self.project_back(layer, self.attend(layer, self.project(layer, codes)), x)
            codes, _ = self.norm(2 * index + 1, x, self.factor(layer, "ffn1"), "none")
            x = self.contract(layer, self.expand(layer, codes), x)
        return x

    def run_post_norm(self, x: Tensor) -> Tensor:
        """A norm's codes are the next products' input; "full": and the residual, else that is the norm in fp16."""
        keep = "none" if self.plan == "full" else "normed"
        codes, kept = rows.quantize(x, STEP, self.factor(self.layers[0], "qkv")), x
        for index, layer in enumerate(self.layers):
            y = self.attend(layer, self.project(layer, codes))
            y = self.project_back(layer, y, codes if keep == "none" else kept)
            codes, kept = self.norm(2 * index, y, self.factor(layer, "ffn1"), keep)
            y = self.contract(layer, self.expand(layer, codes), codes if keep == "none" else kept)
            after = self.layers[(index + 1) % len(self.layers)]
            codes, kept = self.norm(2 * index + 1, y, self.factor(after, "qkv"), keep)
        return codes

    def tunables(self) -> dict[str, tuple[type, Callable]]:
        """Return each op's tile class and, from its plan of tiles, the calls to time: every layer's own weights."""
        m, count = self.model, self.batch * self.length
        post_full = self.plan == "full" and not m.is_pre_norm
        codes = torch.randint(-90, 91, (count, m.width), device="cuda", dtype=torch.int8)
        half = torch.randn(count, m.width, device="cuda", dtype=HALF)
        inner = torch.randint(-90, 91, (count, m.inner), device="cuda", dtype=torch.int8)
        residual = codes if post_full else half
        qkv = self.project(self.layers[0], codes)
        keep = "none" if post_full or m.is_pre_norm else "normed"
        calls = {
            "qkv": (ProductTile, lambda layer: self.project(layer, codes)),
            "o": (ProductTile, lambda layer: self.project_back(layer, codes, residual)),
            "ffn1": (ProductTile, lambda layer: self.expand(layer, codes)),
            "ffn2": (ProductTile, lambda layer: self.contract(layer, inner, residual)),
            "attention": (AttentionTile, lambda layer: self.attend(layer, qkv)),
            "norm": (RowTile, lambda layer: self.norm(0, half, self.factor(layer, "qkv"), keep)),
        }
        return {name: (kind, [partial(call, layer) for layer in self.layers]) for name, (kind, call) in calls.items()}
