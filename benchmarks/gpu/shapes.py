"""The shapes that the GPU benchmarks run: encoders and decoders as their published configurations have them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """One stack of layers: how wide, how deep, and what stands where."""

    layers: int
    width: int
    inner: int  # of the FFN; gated: of each of the two
    heads: int
    kv_heads: int
    activation: str = "gelu"
    is_pre_norm: bool = False
    is_causal: bool = False
    is_gated: bool = False
    is_masked: bool = True  # a padding mask is in use
    rms: bool = False
    rope: bool = False

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def qkv_width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def products(self) -> dict[str, tuple[int, int]]:
        """Return each product's (N, K)."""
        inner = 2 * self.inner if self.is_gated else self.inner
        return {"qkv": (self.qkv_width, self.width), "o": (self.width, self.heads * self.head_dim),
                "ffn1": (inner, self.width), "ffn2": (self.width, self.inner)}  # fmt: skip


MODELS = {
    "bert-base": Model(12, 768, 3072, 12, 12),
    "bert-large": Model(24, 1024, 4096, 16, 16),
    "minilm-l6": Model(6, 384, 1536, 12, 12),
    "vit-b": Model(12, 768, 3072, 12, 12, is_pre_norm=True, is_masked=False),
    "gpt2": Model(12, 768, 3072, 12, 12, activation="gelu_tanh", is_pre_norm=True, is_causal=True, is_masked=False),
    "llama-1b": Model(16, 2048, 8192, 32, 8, activation="silu", is_pre_norm=True, is_causal=True, is_gated=True,
                      is_masked=False, rms=True, rope=True),
}  # fmt: skip

# Batch x length of which the tables give a ratio: (model, batch, length).
STACKS = (
    ("bert-base", 128, 128), ("bert-base", 32, 128), ("bert-base", 8, 128), ("bert-base", 1, 128),
    ("bert-base", 32, 384), ("bert-large", 32, 384), ("vit-b", 32, 197), ("vit-b", 128, 197), ("minilm-l6", 32, 64),
    ("gpt2", 8, 512), ("llama-1b", 8, 512),
)  # fmt: skip
