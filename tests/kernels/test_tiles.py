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
