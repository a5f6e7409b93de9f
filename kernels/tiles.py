"""Which tile a kernel may run with: one frozen dataclass for each kernel, the candidates of a GPU, and plans by size.

A plan is what an engine stores and an op takes: a flat list of ints, rows of (largest size, *tile). Tuning makes it
(`kernels.tune`), once, at build; an empty plan means the first candidate that suits the size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from operator import itemgetter
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

# How a program of `linear` walks over its blocks: one after the other; the same, but the next one's loads start during
# this one's epilogue; or (9.0, `kernels.hopper_kernel`) by two groups of warps in turn: one's epilogue hides behind the
# other's product. RESIDENT: so, and the weights of a column of blocks stay in shared memory, where they fit.
STEPWISE, FLAT, PINGPONG, RESIDENT = 0, 1, 2, 3


@dataclass(frozen=True)
class ProductTile:
    """How one program of `linear` walks: its block of the result, the depth of a step, and who runs beside it."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int  # steps of K in flight
    per_sm: int  # programs on a multiprocessor: with two, one's epilogue hides behind the other's product
    schedule: int = FLAT

    @property
    def takes_turns(self) -> bool:
        """Return whether it is one of `kernels.hopper_kernel`, for 9.0 and matrices that descriptors take."""
        return self.schedule in (PINGPONG, RESIDENT)

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


# No tiles: torch's own attention (half types) as it chooses, or cuDNN's, then `quantize`.
TORCH_ATTENTION, CUDNN_ATTENTION = AttentionTile(0, 0, 0, 0), AttentionTile(0, 1, 0, 0)
TORCHS = (TORCH_ATTENTION, CUDNN_ATTENTION)


@dataclass(frozen=True)
class RowTile:
    """Rows that one program of `quantize` or `norm_quantize` takes."""

    rows: int
    num_warps: int


Tile = TypeVar("Tile", ProductTile, AttentionTile, RowTile)

ANY_SIZE = 2**31 - 1  # a plan's largest size where one tile serves all

# Of one multiprocessor, 1 KB for each program taken off when it is compared.
SHARED_BYTES = {80: 164 * 1024, 86: 100 * 1024, 89: 100 * 1024, 90: 228 * 1024, 100: 228 * 1024, 120: 100 * 1024}
SMALL_BYTES = 128 * 1024
HOPPER_BYTES = 227 * 1024  # what one program may take on 9.0

# All that won at some shape on an H100 (capability 9.0), and two that nearly did.
_PRODUCT_TILES = (
    ProductTile(128, 128, 128, 4, 3, 2),
    ProductTile(128, 128, 128, 4, 3, 2, 0),
    ProductTile(128, 256, 128, 8, 3, 1),
    ProductTile(256, 128, 128, 8, 3, 1),
    ProductTile(128, 128, 64, 4, 5, 2),
    ProductTile(64, 256, 64, 4, 4, 2),
    ProductTile(64, 128, 128, 4, 4, 2),
    ProductTile(64, 128, 128, 4, 4, 2, 0),
    ProductTile(64, 64, 128, 4, 4, 3),
    ProductTile(64, 64, 128, 4, 6, 2, 0),
    ProductTile(64, 64, 256, 4, 3, 2, 0),
    ProductTile(64, 32, 256, 4, 4, 2, 0),
    ProductTile(64, 32, 128, 4, 3, 2, 0),
)
# As many steps as fit are in flight: num_stages is the most. num_warps are those of one group.
HOPPER_TILES = (
    ProductTile(128, 128, 128, 8, 6, 1, RESIDENT),
    ProductTile(128, 128, 128, 4, 6, 1, RESIDENT),
    ProductTile(64, 128, 128, 4, 8, 1, RESIDENT),
    ProductTile(128, 128, 128, 8, 6, 1, PINGPONG),
    ProductTile(128, 128, 128, 4, 6, 1, PINGPONG),
    ProductTile(64, 128, 128, 4, 8, 1, PINGPONG),
)
# For GPUs whose multiprocessors have 100 KB (8.6, 8.9, 12.0); not measured.
_SMALL_PRODUCT_TILES = (
    ProductTile(128, 128, 64, 8, 3, 1),
    ProductTile(64, 128, 64, 4, 3, 2),
    ProductTile(64, 64, 64, 4, 4, 2, 0),
    ProductTile(64, 32, 128, 4, 3, 2, 0),
)
_ATTENTION_TILES = (
    AttentionTile(128, 64, 4, 3),
    AttentionTile(64, 128, 4, 2),
    AttentionTile(64, 64, 4, 3),
    AttentionTile(128, 64, 8, 3),
    AttentionTile(128, 128, 8, 2),
)
_ROW_TILES = tuple(RowTile(*each) for each in ((1, 1), (8, 4), (2, 2), (1, 2), (1, 4), (8, 8), (1, 8)))
# What a GPU of about that capability has, to tell a product with a block for each multiprocessor from a smaller one.
_MULTIPROCESSORS = 132


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
        for tile in (_PRODUCT_TILES if budget > SMALL_BYTES else _SMALL_PRODUCT_TILES)
        if (tile.shared_bytes() + 1024) * tile.per_sm <= budget
        and tile.block_m <= max(64, 2 * m)
        and tile.block_n <= max(32, 2 * n)
        and (capability >= 90 or tile.block_n <= 128)  # mma.sync keeps its operands in registers too
    ]
    # A block of the result for every multiprocessor comes first, then large blocks.
    return sorted(found, key=lambda t: -(-m // t.block_m) * -(-n // t.block_n) < _MULTIPROCESSORS)


def column_bytes_of(result: torch.dtype, residual: torch.dtype | None, gated: bool) -> float:
    """Return what a column of the product takes in a staged row: of the result, and of a residual of another type.

    Half of it where columns are gated pairs.
    """
    kinds = {result, residual or result}
    return sum(kind.itemsize for kind in kinds) / (2 if gated else 1)


def steps_that_fit(tile: ProductTile, column_bytes: float, k: int) -> tuple[int, int]:
    """Return how many steps of K fit beside two blocks of the result, and how many steps of weights stay (or 0).

    Args:
        tile: of HOPPER_TILES.
        column_bytes: of `column_bytes_of`.
        k: the product's depth. All its weights stay where the tile is RESIDENT and three steps of x fit beside them.
    """
    left = HOPPER_BYTES - int(2 * tile.block_m * tile.block_n * column_bytes) - 1024  # barriers, and the compiler's own
    panel = -(-k // tile.block_k)
    beside = (left - panel * tile.block_n * tile.block_k) // (tile.block_m * tile.block_k)
    if tile.schedule == RESIDENT and beside >= 3:
        return min(tile.num_stages, beside), panel
    return min(tile.num_stages, left // ((tile.block_m + tile.block_n) * tile.block_k)), 0


def hopper_tiles(m: int, k: int, column_bytes: float) -> list[ProductTile]:
    """Return the tiles of `kernels.hopper_kernel` (9.0) worth timing: weights stay where they fit and serve two blocks.

    `column_bytes` is of `column_bytes_of`.
    """
    return [
        tile
        for tile in HOPPER_TILES
        if tile.block_m <= max(64, 2 * m)
        and (tile.schedule != RESIDENT or (m > tile.block_m and steps_that_fit(tile, column_bytes, k)[1]))
    ]


def timed_product_tiles(capability: int, m: int, n: int, k: int, column_bytes: float) -> list[ProductTile]:
    """Return `product_tiles` without those that no large product wants: tuning is to end soon; and `hopper_tiles`."""
    found = product_tiles(capability, m, n)
    found = [tile for tile in found if m <= 8192 or tile.block_m * tile.block_n > 64 * 128] or found
    return [*found, *(hopper_tiles(m, k, column_bytes) if capability == 90 else ())]


def attention_tiles(capability: int, num_keys: int) -> list[AttentionTile]:
    """Return the tiles that are worth timing for attention over that many keys, the likeliest first."""
    fits = [t for t in _ATTENTION_TILES if capability >= 90 or t.block_m * t.block_n <= 8192]
    return sorted(fits, key=lambda t: (num_keys <= t.block_n) != (num_keys <= 128))  # all keys at once, or loops


def row_tiles(width: int) -> list[RowTile]:
    """Return the tiles that are worth timing for rows of that width, the likeliest first."""
    return [tile for tile in _ROW_TILES if tile.rows * width <= 16_384 or tile.rows == 1]


def store_plan(plan: Mapping[int, ProductTile | AttentionTile | RowTile]) -> list[int]:
    """Return a plan, largest size → tile, as the flat list of ints that the ops take."""
    rows = [(largest, *astuple(tile)) for largest, tile in sorted(plan.items(), key=itemgetter(0))]
    return [number for row in rows for number in row]


def pick_tile(plan: Sequence[int] | None, size: int, kind: type[Tile]) -> Tile | None:
    """Return the tile of the smallest entry that holds `size`, the last one above all; None without a plan.

    Raises: ValueError: if the plan is not rows of (size, *fields of `kind`).
    """
    numbers, width = list(plan or ()), len(fields(kind)) + 1
    if len(numbers) % width:
        raise ValueError(f"a plan of {kind.__name__} has rows of {width} ints, got {len(numbers)} ints; tune again")
    rows = [numbers[start : start + width] for start in range(0, len(numbers), width)]
    chosen = next((row for row in rows if size <= row[0]), rows[-1] if rows else None)
    return None if chosen is None else kind(*chosen[1:])
