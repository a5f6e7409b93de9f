"""`quantize` and `norm_quantize` against plain torch."""

import pytest
import torch

from tests.kernels.device import INTERPRETED, integers, needs_device, normal

rows = pytest.importorskip("kernels.rows")
tiles = pytest.importorskip("kernels.tiles")
pytestmark = needs_device
PLAN = tiles.store_plan({2**31 - 1: tiles.RowTile(4, 4)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(7, 50), (2, 3, 1100), (5, 1)])
@pytest.mark.parametrize("has_factor", [False, True])
def test_quantize_equals_the_formula(dtype: torch.dtype, shape: tuple[int, ...], has_factor: bool) -> None:
    x = normal(*shape, dtype=dtype)
    factor = normal(shape[-1], dtype=torch.float32, seed=1).abs() if has_factor else None
    assert torch.equal(rows.quantize(x, 0.0237, factor, PLAN), rows.quantize_float(x, 0.0237, factor))


def test_infinities_saturate() -> None:
    x = normal(2, 16)
    x[0, 0], x[0, 1] = float("inf"), -float("inf")
    assert rows.quantize(x, 0.5)[0, :2].tolist() == [127, -128]


@pytest.mark.skipif(INTERPRETED, reason="the interpreter divides itself")
def test_quantize_equals_the_formula_on_many_scales() -> None:
    x = normal(4096, 1024, dtype=torch.float32, scale=2.0)
    for scale in (0.01 * 1.037**i for i in range(64)):
        assert torch.equal(rows.quantize(x, scale), rows.quantize_float(x, scale)), scale


@pytest.mark.parametrize(("count", "width"), [(9, 48), (9, 50), (8, 384), (8, 768), (9, 768), (8, 1024), (8, 80)])
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("keep", ["none", "sum", "normed"])
@pytest.mark.parametrize("has_residual", [False, True])
def test_norm_is_rounded_right(count: int, width: int, rms: bool, keep: str, has_residual: bool) -> None:
    x, weight, bias = normal(count, width), normal(width, seed=1), None if rms else normal(width, seed=2)
    residual = normal(count, width, seed=3) if has_residual else None
    codes, kept = rows.norm_quantize(x, weight, bias, 1e-5, 0.02, residual, None, rms, keep, PLAN)
    y, total = rows.norm_reference(x, weight, bias, 1e-5, residual, rms, keep)
    # Mean and variance are summed in float32 (2^-24 of up to 5, over a step of 0.02): 1e-4 of a step near a tie.
    assert (codes.double() - torch.clamp(y / 0.02, -128, 127)).abs().max() <= 0.5 + 1e-4
    if keep == "none":
        assert kept.numel() == 0
    elif keep == "sum":
        assert torch.equal(kept, total)
    else:
        torch.testing.assert_close(kept.double(), y, rtol=2**-10, atol=1e-5)  # rounded to fp16, once


def test_norm_applies_the_factor() -> None:
    x, weight = normal(9, 64), normal(64, seed=1)
    factor = 2.0 ** integers(-2, 3, 64, dtype=torch.float32)
    codes, _ = rows.norm_quantize(x, weight, None, 1e-5, 0.02, None, factor, tiles=PLAN)
    y, _ = rows.norm_reference(x, weight, None, 1e-5)
    assert (codes.double() - torch.clamp(y * factor / 0.02, -128, 127)).abs().max() <= 0.5 + 4e-4  # as above, times 4


def test_fake_and_schema() -> None:
    x, weight = normal(3, 5, 64), normal(64)
    names = ("test_schema", "test_faketensor")
    torch.library.opcheck(rows.quantize, (x, 0.1), test_utils=names)
    for keep in rows.KEEPS:
        torch.library.opcheck(rows.norm_quantize, (x, weight, None, 1e-5, 0.1), {"keep": keep}, test_utils=names)


def test_what_does_not_fit_is_refused() -> None:
    x, weight = normal(3, 64), normal(64)
    with pytest.raises(ValueError, match="keep is one of none, sum, normed, got 'all'"):
        rows.norm_quantize(x, weight, None, 1e-5, 0.1, keep="all")
    with pytest.raises(ValueError, match=r"weight and bias must have shape \(64,\), got \(32,\)"):
        rows.norm_quantize(x, weight[:32], None, 1e-5, 0.1)
    with pytest.raises(ValueError, match="a scale must be positive and finite in float32, got nan"):
        rows.quantize(x, float("nan"))
