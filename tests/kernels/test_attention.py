"""Attention against plain torch in float64: rounded softmax (equal codes) and float softmax (a bound)."""

import pytest
import torch

from tests.kernels.device import DEVICE, INTERPRETED, integers, needs_device, needs_gpu, normal, on_gpu

attention = pytest.importorskip("kernels.attention")
tiles = pytest.importorskip("kernels.tiles")
pytestmark = needs_device

SMALL = tiles.store_plan({2**31 - 1: tiles.AttentionTile(16, 32, 4, 2)})
INT8 = torch.int8
# batch, length, heads, kv heads, head size, causal, padded
CASES = {
    "one block of keys": (2, 20, 4, 4, 32, False, True),
    "grouped heads, two loops": (2, 45, 4, 2, 32, False, True),
    "causal": (1, 50, 2, 2, 64, True, False),
    "causal and padded": (2, 40, 2, 1, 32, True, True),
    "odd head": (1, 37, 2, 2, 24, False, False),
}


def inputs(batch, length, heads, kv_heads, head_dim, causal, padded, dtype=INT8):
    """Return q, k, v as views of one buffer, and the mask."""
    width = heads + 2 * kv_heads
    if dtype == INT8:
        buffer = integers(-127, 128, batch, length, width, head_dim)
    else:
        buffer = normal(batch, length, width, head_dim, dtype=dtype)
    q, k, v = buffer.split((heads, kv_heads, kv_heads), 2)
    mask = None
    if padded:
        lengths = torch.tensor([length - 9 * i for i in range(batch)], device=DEVICE)
        keep = torch.arange(length, device=DEVICE)[None, :] < lengths[:, None]
        mask = torch.zeros(batch, length, device=DEVICE).masked_fill(~keep, torch.finfo(torch.float32).min)
    return q, k, v, mask


def share_off(got: torch.Tensor, expected: torch.Tensor) -> float:
    off = (got.int() - expected.int()).abs()
    assert off.max() <= 1
    return (off > 0).float().mean().item()


@pytest.mark.parametrize("case", CASES)
def test_rounded_softmax_gives_the_formulas_codes(case: str) -> None:
    *_, causal, _ = CASES[case]
    q, k, v, mask = inputs(*CASES[case])
    options = {"out_scale": 1 / 64, "causal": causal}
    got = attention.attention(q, k, v, mask, 1 / 3000, 1 / 64, INT8, tiles=SMALL, **options)
    expected = attention.attention_reference(q, k, v, mask, 1 / 3000, 1 / 64, INT8, **options)
    assert len(expected.unique()) > 60
    # The integers are exact; exp in float32 against float64 may move a weight across a tie of the 127ths (1e-6 of them,
    # more on a GPU, whose exp2 is approximate), and that moves an output by one code at most.
    assert share_off(got, expected) <= (0 if INTERPRETED else 1e-3)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])
)  # no bf16 dot
def test_float_softmax_stays_near(case: str, dtype: torch.dtype) -> None:
    *_, causal, _ = CASES[case]
    q, k, v, mask = inputs(*CASES[case], dtype=dtype)
    score, value = (1 / 3000, 1 / 64) if dtype == INT8 else (0.2, 1.0)
    got = attention.attention(
        q, k, v, mask, score, value, torch.float16, causal=causal, round_softmax=False, tiles=SMALL
    )
    expected = attention.attention_reference(
        q, k, v, mask, score, value, torch.float16, causal=causal, round_softmax=False
    )
    # The weights are rounded to fp16 (2^-11) or bf16 (2^-8) before the product with values of at most about 4.
    bound = 4 * 2**-8 if dtype == torch.bfloat16 else 4 * 2**-10
    assert (got.float() - expected.float()).abs().max() < bound


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("num_queries", [1, 17, 33])
@pytest.mark.parametrize("rounds", [True, False])
def test_fewer_queries_than_keys_are_the_last_of_them(causal: bool, num_queries: int, rounds: bool) -> None:
    q, k, v, mask = inputs(2, 50, 4, 2, 32, causal, True)
    options = {"out_scale": 1 / 64, "causal": causal, "round_softmax": rounds}
    got = attention.attention(q[:, -num_queries:], k, v, mask, 1 / 3000, 1 / 64, INT8, tiles=SMALL, **options)
    expected = attention.attention_reference(q[:, -num_queries:], k, v, mask, 1 / 3000, 1 / 64, INT8, **options)
    whole = attention.attention_reference(q, k, v, mask, 1 / 3000, 1 / 64, INT8, **options)
    assert torch.equal(expected, whole[:, -num_queries:])
    assert share_off(got, expected) <= (2e-3 if rounds else 0.05)


def test_the_factor_and_the_half_result() -> None:
    q, k, v, mask = inputs(*CASES["grouped heads, two loops"])
    factor = 2.0 ** integers(-2, 3, 4 * 32, dtype=torch.float32)
    got = attention.attention(q, k, v, mask, 1 / 3000, 1 / 64, INT8, 1 / 64, factor=factor, tiles=SMALL)
    expected = attention.attention_reference(q, k, v, mask, 1 / 3000, 1 / 64, INT8, 1 / 64, factor=factor)
    assert share_off(got, expected) <= (0 if INTERPRETED else 1e-3)


def test_padding_does_not_change_what_is_kept() -> None:
    q, k, v, mask = inputs(2, 45, 4, 2, 32, False, True)
    changed = v.clone()
    changed[1, 36:] = 127
    first, second = (
        attention.attention(q, k, each, mask, 1 / 3000, 1 / 64, INT8, 1 / 64, tiles=SMALL) for each in (v, changed)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [(2, 4, 45, 45), (1, 4, 45, 45), (2, 1, 45, 45), (1, 1, 1, 45), (2, 1, 1, 45)])
@pytest.mark.parametrize("rounds", [True, False])
def test_any_mask_that_broadcasts_to_the_scores(shape: tuple[int, ...], rounds: bool) -> None:
    q, k, v, _ = inputs(2, 45, 4, 2, 32, False, False)
    mask = normal(*shape, dtype=torch.float32, scale=3.0)
    mask[..., 40:] = torch.finfo(torch.float32).min
    options = {"out_scale": 1 / 64, "round_softmax": rounds}
    got = attention.attention(q, k, v, mask, 1 / 3000, 1 / 64, INT8, tiles=SMALL, **options)
    expected = attention.attention_reference(q, k, v, mask, 1 / 3000, 1 / 64, INT8, **options)
    assert share_off(got, expected) <= (2e-3 if rounds else 0.05)  # a float softmax is rounded to fp16, then to codes


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [None, (2, 45), (2, 4, 45, 45)])
def test_torchs_own_attention_behind_the_same_op(causal: bool, shape: tuple[int, ...] | None) -> None:
    q, k, v, _ = inputs(2, 45, 4, 2, 32, False, False, dtype=torch.float16)
    mask = None if shape is None else normal(*shape, dtype=torch.float32, scale=3.0)
    factor = normal(4 * 32, dtype=torch.float32).abs()
    plan = tiles.store_plan({2**31 - 1: tiles.TORCH_ATTENTION})
    options = {"causal": causal, "round_softmax": False, "factor": factor}
    got = attention.attention(q, k, v, mask, 0.2, 1.0, INT8, 1 / 32, tiles=plan, **options)
    expected = attention.attention_reference(q, k, v, mask, 0.2, 1.0, INT8, 1 / 32, **options)
    assert share_off(got, expected) <= 0.05


def test_a_row_of_padding_alone_is_a_number() -> None:
    q, k, v, _ = inputs(1, 20, 2, 2, 32, True, False)
    mask = torch.zeros(1, 20, device=DEVICE)
    mask[:, :5] = float("-inf")  # left padding: the first rows of a causal model see nothing else
    got = attention.attention(q, k, v, mask, 1 / 3000, 1 / 64, torch.float16, causal=True, tiles=SMALL)
    assert got.isfinite().all()


def test_fake_and_schema() -> None:
    q, k, v, mask = inputs(*CASES["grouped heads, two loops"])
    torch.library.opcheck(attention.attention, (q, k, v, mask, 0.1, 0.1, INT8), {"tiles": SMALL},
                          test_utils=("test_schema", "test_faketensor"))  # fmt: skip


def test_what_does_not_fit_is_refused() -> None:
    q, k, v, mask = inputs(*CASES["grouped heads, two loops"])
    with pytest.raises(ValueError, match=r"rounded softmax multiplies INT8 values, got torch\.float16"):
        attention.attention(q.half(), k.half(), v.half(), mask, 0.1, 0.1, INT8)
    for bad in (mask[:, :3], mask[:1], mask[:, None], mask[:, None, None, :44]):
        with pytest.raises(ValueError, match=r"the mask must have shape \(2, 45\) or be broadcast to \(2, 4, 45, 45\)"):
            attention.attention(q, k, v, bad, 0.1, 0.1, INT8)
    with pytest.raises(ValueError, match="all int8 or all of one half type"):
        attention.attention(q, k.half(), v, mask, 0.1, 0.1, INT8)
    with pytest.raises(ValueError, match="fits no k and v"):
        attention.attention(q[:, :, :3], k, v, mask, 0.1, 0.1, INT8)


@needs_gpu
@pytest.mark.parametrize("length", on_gpu([128, 197, 384, 4096]))
@pytest.mark.parametrize("head_dim", on_gpu([32, 64, 128]))
@pytest.mark.parametrize("causal", on_gpu([False, True]))
def test_every_tile_on_the_gpu(length: int, head_dim: int, causal: bool) -> None:
    q, k, v, mask = inputs(2, length, 4, 2, head_dim, causal, True)
    expected = attention.attention_reference(q, k, v, mask, 1 / 20000, 1 / 64, INT8, 1 / 64, causal)
    for tile in tiles.attention_tiles(90, length):
        plan = tiles.store_plan({2**31 - 1: tile})
        got = attention.attention(q, k, v, mask, 1 / 20000, 1 / 64, INT8, 1 / 64, causal, tiles=plan)
        assert share_off(got, expected) < 1e-3
