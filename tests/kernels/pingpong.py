"""Run as `python -m tests.kernels.pingpong`, on a GPU of 9.0: every tile of two groups in turn against plain torch.

A program of its own, for a kernel that waits for ever goes only with its process. Shapes have several blocks for each
program: both groups work, and every buffer is used again. What ran is counted: no other tile runs in one's place.
"""

from unittest import mock

import torch

from kernels import hopper_kernel, linear, tiles
from tests.kernels.device import integers, normal

INT8, HALF, BFLOAT = torch.int8, torch.float16, torch.bfloat16
REPEATS = 20


def cases():
    """Give (what, M, N, K, options, codes that may be one off)."""
    factor = normal(4096, seed=5, dtype=torch.float32).abs() + 0.5
    codes = integers(-128, 128, 2048, 4096, seed=6)
    yield "ragged, gelu", 3000, 4112, 784, {"out_dtype": INT8, "out_scale": 0.11, "activation": "gelu_fast"}, 2e-2
    yield "whole blocks of columns", 3000, 4096, 784, {"out_dtype": INT8, "out_scale": 0.25}, 0
    yield "one step, residual and factor", 2048, 4096, 16, {
        "out_dtype": INT8, "out_scale": 0.25, "activation": "relu", "factor": factor, "residual": codes,
        "residual_scale": 0.5}, 0  # fmt: skip
    yield "fast gelu and factor", 2048, 4096, 768, {
        "out_dtype": INT8, "out_scale": 0.11, "activation": "gelu_fast", "factor": factor}, 2e-2  # fmt: skip
    yield "overlapped launches", 512, 32768, 768, {
        "out_dtype": HALF, "residual": normal(512, 32768), "residual_scale": 0.3}, 0  # fmt: skip
    yield "codes to half", 2048, 4096, 784, {"out_dtype": HALF, "residual": codes, "residual_scale": 0.5}, 0
    yield "launches one after the other", 5000, 1024, 784, {"out_dtype": INT8, "out_scale": 0.25}, 0
    yield "gated", 3000, 4096, 784, {"out_dtype": INT8, "out_scale": 0.31, "activation": "silu", "gated": True}, 2e-2
    yield "bfloat16", 3000, 4096, 784, {
        "out_dtype": BFLOAT, "residual": normal(3000, 4096, dtype=BFLOAT), "residual_scale": 0.3}, 0  # fmt: skip


def main() -> None:
    ran, launch, staying = [], hopper_kernel.launch_pingpong, set()

    def counted(*arguments):
        ran.append(arguments[-1])
        launch(*arguments)

    with mock.patch.object(hopper_kernel, "launch_pingpong", counted):
        for what, m, n, k, options, share in cases():
            x, weight = integers(-128, 128, m, k, seed=1), integers(-127, 128, n, k, seed=2)
            scale = 2.0 ** integers(-14, -10, n, seed=3, dtype=torch.float32)
            bias = integers(-16, 17, n, seed=4, dtype=torch.float32) / 8
            expected = linear.linear_reference(x, weight, scale, bias, **options)
            residual = options["residual"].dtype if "residual" in options else None
            column_bytes = tiles.column_bytes_of(options["out_dtype"], residual, "gated" in options)
            for tile in tiles.hopper_tiles(m, k, column_bytes):
                plan = tiles.store_plan({tiles.ANY_SIZE: tile})
                ran.clear()
                found = [linear.linear(x, weight, scale, bias, tiles=plan, **options) for _ in range(REPEATS)]
                assert ran == [tile] * REPEATS, (what, tile, "another ran in its place")
                staying |= {tile} if tile.schedule == tiles.RESIDENT else set()
                assert all(torch.equal(each, found[0]) for each in found), (what, tile, "differs from call to call")
                if share:
                    off = (found[0].int() - expected.int()).abs()
                    assert off.max() <= 1 and (off > 0).float().mean() < share, (what, tile, off.max())
                else:
                    assert torch.equal(found[0], expected), (what, tile)
            print(what, flush=True)
        for m in (2048, 5000):  # each reads what the one before writes, overlapped and not
            chain(m)
    assert staying == {tile for tile in tiles.HOPPER_TILES if tile.schedule == tiles.RESIDENT}


def chain(m: int) -> None:
    """Run three products, each on the codes of the one before, by every tile, against plain torch."""
    weight, scale = integers(-127, 128, 768, 768, seed=2), torch.full((768,), 2.0**-13, device="cuda")
    x = expected = integers(-128, 128, m, 768, seed=1)
    for _ in range(3):
        expected = linear.linear_reference(expected, weight, scale, None, INT8, 0.25)
    for tile in tiles.hopper_tiles(m, 768, 1):
        for _ in range(REPEATS):
            found = x
            for _ in range(3):
                plan = tiles.store_plan({tiles.ANY_SIZE: tile})
                found = linear.linear(found, weight, scale, None, INT8, 0.25, tiles=plan)
            assert torch.equal(found, expected), (m, tile, "a product of what the one before had not written yet")
    print("each on the codes of the one before", m, flush=True)


if __name__ == "__main__":
    main()
