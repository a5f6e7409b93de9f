"""Which tile a kernel may run with: one frozen dataclass for each kernel, the candidates of a GPU, and plans by size.

A plan is what an engine stores and an op takes: a flat list of ints, rows of (largest size, *tile). Tuning makes it
(`kernels.tune`), once, at build; an empty plan means the first candidate that suits the size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import TypeVar


@dataclass(frozen=True)
class ProductTile:
    """How one program of `linear` walks: its block of the result, the depth of a step, and who runs beside it."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int  # steps of K in flight
    per_sm: int  # programs on a multiprocessor: with two, one's epilogue hides behind the other's product
    flatten: int = 1  # 1: loads of the next block start during this one's epilogue

    def parts(self, item_size: int) -> int:
        """Return in how many parts a block of the result leaves: each stages at most 8 KB (or 32 columns)."""
        parts = 2
        while self.block_m * self.block_n * item_size // parts > 8192 and self.block_n // parts > 32:
            parts *= 2
        return parts

    def shared_bytes(self) -> int:
        """Return the shared memory of a program with an INT8 result: operands, one staged part, barriers."""
        staged = self.block_m * self.block_n // self.parts(1)
        return (self.block_m + self.block_n) * self.block_k * self.num_stages + staged + 256


@dataclass(frozen=True)
class AttentionTile:
    """Queries and keys that one program of `attention` holds at once."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class RowTile:
    """Rows that one program of `quantize` or `norm_quantize` takes."""

    rows: int
    num_warps: int


Tile = TypeVar("Tile", ProductTile, AttentionTile, RowTile)

# Of one multiprocessor, 1 KB for each program taken off when it is compared.
SHARED_BYTES = {80: 164 * 1024, 86: 100 * 1024, 89: 100 * 1024, 90: 228 * 1024, 100: 228 * 1024, 120: 100 * 1024}

# Found on an H100 (capability 9.0), largest first: all that won at some shape. Older GPUs have less shared memory.
_PRODUCT_TILES = (
    ProductTile(128, 128, 128, 4, 3, 2),
    ProductTile(128, 128, 128, 4, 3, 2, 0),
    ProductTile(128, 256, 128, 8, 3, 1),
    ProductTile(128, 256, 128, 8, 4, 1, 0),
    ProductTile(128, 256, 64, 8, 6, 1),
    ProductTile(256, 128, 128, 8, 3, 1),
    ProductTile(128, 128, 64, 4, 5, 2),
    ProductTile(128, 128, 64, 4, 6, 2, 0),
    ProductTile(64, 256, 64, 4, 4, 2),
    ProductTile(64, 256, 128, 4, 2, 2),
    ProductTile(64, 128, 128, 4, 4, 2),
    ProductTile(64, 128, 128, 4, 4, 2, 0),
    ProductTile(64, 128, 128, 4, 3, 3),
    ProductTile(64, 64, 128, 4, 4, 3),
    ProductTile(64, 64, 128, 4, 6, 2, 0),
    ProductTile(64, 64, 256, 4, 3, 2, 0),
    ProductTile(64, 32, 256, 4, 4, 2, 0),
    ProductTile(128, 128, 64, 8, 3, 1),  # these four for the 99 KB of 8.6, 8.9 and 12.0
    ProductTile(64, 128, 64, 4, 3, 2),
    ProductTile(64, 64, 64, 4, 4, 2, 0),
    ProductTile(64, 32, 128, 4, 3, 2, 0),
)
_ATTENTION_TILES = tuple(
    AttentionTile(m, n, w, s)
    for m, n, w, s in [(128, 128, 8, 2), (128, 64, 4, 3), (128, 64, 8, 3), (64, 64, 4, 3), (64, 128, 4, 2), (128, 128, 4, 2)]
)
_ROW_TILES = tuple(RowTile(r, w) for r, w in [(4, 4), (8, 8), (8, 4), (2, 2), (2, 4), (1, 1), (1, 2), (1, 4), (1, 8)])


def capability_bytes(capability: int) -> int:
    """Return the shared memory of a multiprocessor; `capability` is 10 x major + minor, 80 or above."""
    if capability < 80:
        raise ValueError(f"the INT8 kernels need compute capability 8.0 or newer, this GPU has {capability / 10}")
    return SHARED_BYTES.get(capability, SHARED_BYTES[max(c for c in SHARED_BYTES if c <= capability)])


def product_tiles(capability: int, m: int, n: int) -> list[ProductTile]:
    """Return the tiles that are worth timing for a product of m rows and n columns, the likeliest first."""
    budget = capability_bytes(capability)
    found = [
        tile
        for tile in _PRODUCT_TILES
        if (tile.shared_bytes() + 1024) * tile.per_sm <= budget
        and tile.block_m <= max(64, 2 * m)
        and tile.block_n <= max(32, 2 * n)
        and (capability >= 90 or tile.block_n <= 128)  # mma.sync keeps its operands in registers too
    ]
    programs = 132 if capability >= 90 else 108
    # A block of the result for every multiprocessor comes first, then large blocks.
    return sorted(found, key=lambda t: -(-m // t.block_m) * -(-n // t.block_n) < programs)


def attention_tiles(capability: int, num_keys: int) -> list[AttentionTile]:
    """Return the tiles that are worth timing for attention over that many keys, the likeliest first."""
    return [t for t in _ATTENTION_TILES if (capability >= 90 or t.block_m * t.block_n <= 8192) and t.block_n <= max(64, 2 * num_keys)]


def row_tiles(width: int) -> list[RowTile]:
    """Return the tiles that are worth timing for rows of that width, the likeliest first."""
    return [tile for tile in _ROW_TILES if tile.rows * width <= 16_384 or tile.rows == 1]


def store_plan(plan: dict[int, Tile]) -> list[int]:
    """Return a plan, largest size → tile, as the flat list of ints that the ops take."""
    return [number for size in sorted(plan) for number in (size, *astuple(plan[size]))]


def pick_tile(plan: Sequence[int] | None, size: int, kind: type[Tile]) -> Tile | None:
    """Return the tile of the smallest entry that holds `size`, the last one above all; None without a plan.

    Raises: ValueError: if the plan is not rows of (size, *fields of `kind`).
    """
    plan, width = plan or (), len(fields(kind)) + 1
    if len(plan) % width:
        raise ValueError(f"a plan of {kind.__name__} has rows of {width} ints, got {len(plan)} ints; tune again")
    rows = [plan[start : start + width] for start in range(0, len(plan), width)]
    chosen = next((row for row in rows if size <= row[0]), rows[-1] if rows else None)
    return None if chosen is None else kind(*chosen[1:])
