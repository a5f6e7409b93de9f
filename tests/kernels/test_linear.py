"""The INT8 product against plain torch: equal integers where the formula is exact, a stated bound elsewhere."""

import dataclasses

import pytest
import torch

from tests.kernels.device import DEVICE, INTERPRETED, integers, needs_device, needs_gpu, normal, on_gpu

linear = pytest.importorskip("kernels.linear")
tiles = pytest.importorskip("kernels.tiles")
pytestmark = needs_device

TILE = tiles.ProductTile(32, 32, 32, 4, 2, 1)
PLAN = tiles.store_plan({2**31 - 1: TILE})
SIZES = {
    "whole blocks": (64, 64, 64),
    "ragged, by descriptor": (50, 48, 80),
    "odd, by pointer": (33, 35, 37),
    "one row": (1, 2, 16),
}
HALF, INT8 = torch.float16, torch.int8


def operands(m: int, n: int, k: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Return x, weight, scale and bias; scales are powers of two and biases eighths: nothing is rounded."""
    x, w = integers(-128, 128, m, k, seed=seed), integers(-127, 128, n, k, seed=seed + 1)
    scale = 2.0 ** integers(-14, -10, n, seed=seed + 2, dtype=torch.float32)
    return x, w, scale, integers(-16, 17, n, seed=seed + 3, dtype=torch.float32) / 8


@pytest.mark.parametrize("size", SIZES)
def test_codes_equal_the_formula(size: str) -> None:
    x, w, scale, bias = operands(*SIZES[size])
    got = linear.linear(x, w, scale, bias, INT8, 0.25, tiles=PLAN)
    expected = linear.linear_reference(x, w, scale, bias, INT8, 0.25)
    assert torch.equal(got, expected)
    assert x.shape[0] == 1 or len(expected.unique()) > 60  # codes all over the range, or equality says little


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("residual", ["int8", "half"])
def test_residual_and_relu(size: str, dtype: torch.dtype, residual: str) -> None:
    x, w, scale, bias = operands(*SIZES[size])
    other = integers(-99, 99, x.shape[0], w.shape[0], seed=9).to(INT8 if residual == "int8" else HALF)
    options = {"out_scale": 0.5, "activation": "relu", "residual": other, "residual_scale": 0.25}
    got = linear.linear(x, w, scale, bias, dtype, tiles=PLAN, **options)
    expected = linear.linear_reference(x, w, scale, bias, dtype, **options)
    if INTERPRETED and dtype == torch.bfloat16:  # Triton's interpreter cuts bits off where a GPU rounds
        torch.testing.assert_close(got, expected, rtol=2**-7, atol=0)
    else:
        assert torch.equal(got, expected)


@pytest.mark.parametrize("size", ["whole blocks", "ragged, by descriptor", "one row"])
@pytest.mark.parametrize("has_factor", [False, True])
def test_gated_pairs_and_the_factor(size: str, has_factor: bool) -> None:
    x, w, scale, _ = operands(*SIZES[size])
    half = w.shape[0] // 2
    factor = 2.0 ** integers(-2, 2, half, dtype=torch.float32) if has_factor else None
    weight, scales = linear.interleave(w[:half], w[half:]), linear.interleave(scale[:half], scale[half:])
    got = linear.linear(x, weight, scales, None, INT8, 2.0**-2, "relu", gated=True, factor=factor, tiles=PLAN)
    gate = torch.relu(x.double() @ w[:half].double().T * scale[:half])
    y = (gate * (x.double() @ w[half:].double().T * scale[half:])).float()
    y = y if factor is None else y * factor
    # The product of gate and up has more bits than float32: only the tie itself may fall the other way.
    assert (got.float() - torch.clamp(y * 4, -128, 127)).abs().max() <= 0.5 + 1e-4


# Absolute, and relative to y where the GPU's tanh of 11 bits is in it (the interpreter's is exact).
BOUNDS = {"none": (1e-6, 0), "relu": (1e-6, 0), "gelu": (2e-5, 0), "gelu_fast": (3e-5, 2.5e-4),
          "gelu_tanh": (1e-5, 2.5e-4), "silu": (1e-5, 2.5e-4), "quick_gelu": (1e-5, 2.5e-4)}  # fmt: skip


@pytest.mark.parametrize("activation", BOUNDS)
def test_activations_stay_in_their_bound(activation: str) -> None:
    m, n = 32, 64
    x = torch.eye(m, dtype=INT8, device=DEVICE)  # row i's sums are column i of the weight: y takes the values we want
    w = integers(-127, 128, n, m)
    scale = torch.full((n,), 7 / 127, device=DEVICE)
    step = 2.0**-6
    got = linear.linear(x, w, scale, None, INT8, step, activation, tiles=PLAN)
    y = (w.T.double() * scale.double()).float().double()
    expected = torch.clamp(linear.TORCH_ACTIVATIONS[activation](y) / step, -128, 127)
    absolute, relative = BOUNDS[activation]
    bound = absolute + (0 if INTERPRETED else relative) * y.abs()
    assert ((got.double() - expected).abs() <= 0.5 + bound / step).all()


def test_ties_go_to_even_and_codes_saturate() -> None:
    x = torch.ones(1, 16, dtype=INT8, device=DEVICE)
    w = torch.zeros(16, 16, dtype=INT8, device=DEVICE)
    w[:, 0] = torch.tensor([1, 3, 5, -1, -3, -5, 127, -127, 2, 4, 6, 100, -100, 0, 7, -7], dtype=INT8)
    got = linear.linear(x, w, torch.ones(16, device=DEVICE), None, INT8, 2.0, tiles=PLAN)[0]
    assert got.tolist() == [0, 2, 2, 0, -2, -2, 64, -64, 1, 2, 3, 50, -50, 0, 4, -4]
    assert linear.linear(x, w, torch.ones(16, device=DEVICE), None, INT8, 0.5, tiles=PLAN)[0, 6:8].tolist() == [
        127,
        -128,
    ]


@pytest.mark.parametrize("scale", [1 / 3, 0.0123, 0.7])
def test_division_is_the_rounded_quotient(scale: float) -> None:
    """Not x * (1 / scale): that alone puts some codes one step away. On the GPU many more values."""
    m = 64 if INTERPRETED else 65536
    x, w, per_channel, bias = operands(m, 64, 64)
    got = linear.linear(x, w, per_channel, bias, INT8, scale, tiles=PLAN)
    assert torch.equal(got, linear.linear_reference(x, w, per_channel, bias, INT8, scale))


def test_leading_dimensions_and_empty_batches() -> None:
    x, w, scale, bias = operands(12, 32, 32)
    whole = linear.linear(x, w, scale, bias, HALF, tiles=PLAN)
    assert torch.equal(linear.linear(x.view(3, 4, 32), w, scale, bias, HALF, tiles=PLAN), whole.view(3, 4, 32))
    assert linear.linear(x[:0], w, scale, bias, HALF).shape == (0, 32)
    transposed = x.T.contiguous().T
    assert torch.equal(linear.linear(transposed, w, scale, bias, HALF, tiles=PLAN), whole)


def test_fake_and_schema() -> None:
    x, w, scale, bias = operands(12, 32, 32)
    for arguments in ((x, w, scale, bias, HALF), (x, w, scale, None, INT8, 0.5, "relu", None, 1.0, None, True)):
        torch.library.opcheck(linear.linear, arguments, {"tiles": PLAN}, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": normal(4, 32)}, "multiplies int8 by int8, got torch.float16"),
        ({"weight": integers(-9, 9, 8, 16)}, "x has 32 columns, the weight 16"),
        ({"activation": "swish"}, "unknown activation 'swish'; known: none, relu"),
        ({"out_dtype": torch.float32}, "float16, bfloat16 or int8, got torch.float32"),
        ({"scale": torch.ones(7, device=DEVICE if INTERPRETED else "cpu")}, "scale must be float32|one CUDA device"),
        ({"out_scale": 0.0}, "a scale must be positive"),
        ({"residual": normal(4, 9)}, "the residual must have the result's shape"),
        ({"residual": normal(4, 8, dtype=torch.float32)}, "residual is float16, bfloat16 or int8, got torch.float32"),
        ({"tiles": [1, 2, 3]}, "rows of 8 ints, got 3 ints; tune again"),
    ] if INTERPRETED else [],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    x, w, scale, bias = operands(4, 8, 32)
    arguments = {"x": x, "weight": w, "scale": scale, "bias": bias, "out_dtype": INT8, **change}
    with pytest.raises(ValueError, match=message):
        linear.linear(**arguments)


def test_a_tile_that_this_gpu_does_not_take_is_replaced() -> None:
    x, w, scale, bias = operands(96, 48, 64)
    plan = tiles.store_plan({2**31 - 1: tiles.HOPPER_TILES[0]})
    got = linear.linear(x, w, scale, bias, INT8, 0.11, tiles=plan)
    assert torch.equal(got, linear.linear_reference(x, w, scale, bias, INT8, 0.11))


@needs_gpu
@pytest.mark.parametrize("tile", on_gpu(tiles.product_tiles(90, 4096, 3072)))
@pytest.mark.parametrize("kind", on_gpu(["gelu to int8", "fast gelu", "residual to half", "gated"]))
def test_every_tile_on_the_gpu(tile, kind: str) -> None:
    x, w, scale, bias = operands(1000, 1040, 784)
    options = {
        "gelu to int8": {"out_dtype": INT8, "out_scale": 0.11, "activation": "gelu"},
        "residual to half": {"out_dtype": HALF, "residual": normal(1000, 1040), "residual_scale": 0.3},
        "fast gelu": {"out_dtype": INT8, "out_scale": 0.11, "activation": "gelu_fast"},
        "gated": {"out_dtype": INT8, "out_scale": 0.31, "activation": "silu", "gated": True},
    }[kind]
    capability = 10 * torch.cuda.get_device_capability()[0] + torch.cuda.get_device_capability()[1]
    if tile not in tiles.product_tiles(capability, 4096, 3072):
        pytest.skip(f"{dataclasses.astuple(tile)} needs more shared memory than this GPU has")
    got = linear.linear(x, w, scale / 16, bias, tiles=tiles.store_plan({2**31 - 1: tile}), **options)
    expected = linear.linear_reference(x, w, scale / 16, bias, **options)
    if kind == "residual to half":
        assert torch.equal(got, expected)
    else:
        off = (got.int() - expected.int()).abs()
        # Near a tie: the polynomial's 2e-5 over a step of 0.11; the hardware's tanh, 2.5e-4 of up to 127 steps.
        assert off.max() <= 1 and (off > 0).float().mean() < (1e-3 if kind == "gelu to int8" else 2e-2)
