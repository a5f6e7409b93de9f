"""Plans of tiles and the candidates of a GPU."""

import pytest

pytest.importorskip("triton", reason="the kernels need the package triton")
tiles = pytest.importorskip("kernels.tiles")


def test_a_plan_comes_back_as_it_was_stored() -> None:
    small, large = tiles.ProductTile(64, 64, 128, 4, 4, 3), tiles.ProductTile(128, 256, 128, 8, 3, 1, 0)
    plan = tiles.store_plan({4096: large, 512: small})
    assert all(isinstance(number, int) for number in plan)
    assert [tiles.pick_tile(plan, m, tiles.ProductTile) for m in (1, 512, 513, 10**6)] == [small, small, large, large]
    assert tiles.pick_tile([], 5, tiles.ProductTile) is None and tiles.pick_tile(None, 5, tiles.ProductTile) is None


def test_a_plan_of_another_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="a plan of RowTile has rows of 3 ints, got 8 ints; tune again"):
        tiles.pick_tile(tiles.store_plan({1: tiles.ProductTile(64, 64, 128, 4, 4, 3)}), 1, tiles.RowTile)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 103, 120])
@pytest.mark.parametrize(("m", "n"), [(1, 2), (128, 768), (16384, 3072)])
def test_there_is_a_tile_for_every_gpu_and_size(capability: int, m: int, n: int) -> None:
    found = tiles.product_tiles(capability, m, n)
    assert found
    for tile in found:
        assert (tile.shared_bytes() + 1024) * tile.per_sm <= tiles.capability_bytes(capability)
    assert tiles.attention_tiles(capability, m)


def test_an_old_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compute capability 8.0 or newer, this GPU has 7.5"):
        tiles.product_tiles(75, 1, 1)


@pytest.mark.parametrize("width", [1, 1024, 8192, 32768])
def test_there_is_a_row_tile_for_every_width(width: int) -> None:
    assert tiles.row_tiles(width)


@pytest.mark.parametrize(("k", "column_bytes", "staying"), [
    (768, 1, 3), (768, 2, 3), (768, 3, 1), (1024, 1, 3), (1024, 2, 1), (1024, 3, 1), (2048, 0.5, 0)])  # fmt: skip
def test_weights_stay_where_they_fit(k: int, column_bytes: float, staying: int) -> None:
    """Three steps of x beside them: 227 KB hold 96 of weights (K = 768), 64 of results in half precision, 48 of x."""
    found = tiles.hopper_tiles(16384, k, column_bytes)
    assert sum(tile.schedule == tiles.RESIDENT for tile in found) == staying
    for tile in found:
        steps, panel = tiles.steps_that_fit(tile, column_bytes, k)
        staged = 2 * tile.block_m * tile.block_n * column_bytes
        operands = (steps * tile.block_m + (panel or steps) * tile.block_n) * tile.block_k
        assert steps >= 3 and bool(panel) == (tile.schedule == tiles.RESIDENT)
        assert staged + operands + 1024 <= tiles.HOPPER_BYTES


def test_a_small_product_is_offered_no_large_blocks_and_no_weights_that_serve_one_block() -> None:
    found = tiles.hopper_tiles(16, 768, 1)
    assert found
    assert all(tile.block_m == 64 and tile.schedule == tiles.PINGPONG for tile in found)
