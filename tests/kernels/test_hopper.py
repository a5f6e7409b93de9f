"""The product of 9.0 run on a CPU by `tests.kernels.gluon`, against plain torch; and on a GPU."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="the kernels need the package triton")
from kernels.linear import interleave, linear_reference
from kernels.reference import quantize_reference
from tests.kernels.device import needs_gpu
from tests.kernels.gluon import Descriptor, Pointer, Value, run_linear

BM, BN, BK = 16, 16, 16


def plain(compute):
    """Return a function of tensors, then of options, as one of values."""
    def call(x, *rest):
        tensors = [torch.from_numpy(np.array(each.array)) if isinstance(each, Value) else each for each in (x, *rest)]
        return Value(compute(*tensors).numpy())
    return call


ELEMENTWISE = {
    "fma": plain(lambda a, b, c, _: (a.double() * b + c).float()),
    "activate": plain(lambda y, kind, _: F.silu(y) if kind else y),
    "int8_to_float": plain(lambda x: x.float()),
    "quantize_int8": plain(lambda y, scale, inverse, exact, _: quantize_reference(y, scale)),
}


@pytest.mark.parametrize(("m", "n", "k", "stages", "programs"), [
    (16, 16, 16, 3, 1),  # one block, one step
    (50, 64, 80, 3, 1),  # more blocks than one group's, more steps than stages
    (70, 48, 48, 4, 3),  # the last program has one block
    (130, 40, 33, 3, 2),  # ragged everywhere; groups of blocks end early
    (16, 32, 160, 2, 5),  # programs without a block
    (100, 32, 16, 3, 1),  # one step each, many blocks
    (12, 150, 40, 4, 2),  # one row of blocks: weights of every block are others
])
@pytest.mark.parametrize("stays", [False, True], ids=["", "weights stay"])
@pytest.mark.parametrize("kind", [
    "int8", "half and residual", "half and half's residual", "gated and residual", "factor"])
def test_two_groups_in_turn_compute_the_product(m, n, k, stages, programs, kind, stays) -> None:
    generator = torch.Generator().manual_seed(m + k)
    x = torch.randint(-128, 128, (m, k), generator=generator, dtype=torch.int8)
    weight = torch.randint(-127, 128, (n, k), generator=generator, dtype=torch.int8)
    scale = 2.0 ** torch.randint(-14, -10, (n,), generator=generator).float()
    bias = torch.randint(-16, 17, (n,), generator=generator).float() / 8
    is_gated, is_half, has_residual = "gated" in kind, "half" in kind, "residual" in kind
    width = n // 2 if is_gated else n
    residual = torch.randint(-128, 128, (m, width), generator=generator, dtype=torch.int8)
    options = {"out_dtype": torch.float16 if is_half else torch.int8, "out_scale": 0.25, "gated": is_gated}
    if kind == "half and half's residual":  # it comes to where the result is staged
        residual = residual.half() / 4
    factor = 2.0 ** torch.randint(-2, 3, (width,), generator=generator).float()
    if kind == "factor":
        options["factor"] = factor
    if has_residual:
        options |= {"residual": residual, "residual_scale": 0.5}
    if is_gated:
        weight = interleave(weight[:width], weight[width:])
        options["activation"] = "silu"
    expected = linear_reference(x, weight, scale, bias, **options)
    out = np.full((m, width), 99, np.float16 if is_half else np.int8)
    run_linear(
        {
            "x": Descriptor(x.numpy(), (BM, BK)), "weight": Descriptor(weight.numpy(), (BN, BK)),
            "out": Descriptor(out, (BM, BN // 2 if is_gated else BN)),
            "residual": Descriptor(residual.numpy(), (BM, BN // 2 if is_gated else BN)),
            "scale": Pointer(scale.numpy()), "bias": Pointer(bias.numpy()), "factor": Pointer(factor.numpy()),
            "M": m, "N": n, "K": k, "residual_scale": 0.5, "out_scale": 0.25, "out_inverse": 4.0,
            "ACTIVATION": 5 if is_gated else 0, "HAS_BIAS": True, "RESIDUAL": has_residual,
            "HAS_FACTOR": kind == "factor", "OUT_INT8": not is_half, "GATED": is_gated, "PDL": True, "BM": BM, "BN": BN,
            "BK": BK, "STAGES": stages, "EVEN": n % BN == 0, "PANEL": -(-k // BK) if stays else 0, "WARPS": 4,
            "MULTIPLYING": 232, "LOADING": 24,
        },
        ELEMENTWISE, programs,
    )  # fmt: skip
    np.testing.assert_array_equal(out, expected.numpy())


@needs_gpu
@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0), reason="for 9.0 alone")
def test_every_tile_of_it_on_the_gpu():
    subprocess.run([sys.executable, "-m", "tests.kernels.pingpong"], check=True, timeout=120)
