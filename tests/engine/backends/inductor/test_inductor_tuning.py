"""Tuning of a program's operators, as far as it shows without a GPU."""

import types

import pytest
import torch
from torch import fx

from engine.backends.inductor import tuning
from kernels.tiles import PINGPONG, RESIDENT, TORCHS


class HalfAttention(torch.nn.Module):
    def forward(self, q, k, v):
        return torch.ops.int8kit.attention.default(q, k, v, None, 0.25, 1.0, torch.float16, round_softmax=False)


@pytest.fixture
def tuned(monkeypatch):
    """Return (tiles that threads compile, tiles that are timed, tune one attention that is all half)."""
    compiled, timed = [], []
    monkeypatch.setattr(tuning, "capability", lambda _: 90)
    monkeypatch.setattr(tuning, "_compile_ahead", lambda jobs: compiled.extend(tile for _, _, tile in jobs))

    def first(tiles, calls_of):
        timed.extend(tiles)
        return tiles[0], dict.fromkeys(tiles, 1.0)

    monkeypatch.setattr(tuning, "tune", first)
    monkeypatch.setattr(tuning, "_chosen", {})
    x = torch.zeros(1, 16, 2, 16, dtype=torch.float16)
    return (
        compiled,
        timed,
        lambda length=16: tuning.tune_program(fx.symbolic_trace(HalfAttention()), [x[:, :length]] * 3, lambda _: None),
    )


def test_no_thread_asks_for_torchs_attention(tuned):
    """Which part of torch may compute attention is a setting of the process: threads would leave it wrong for good."""
    compiled, timed, tune = tuned
    tune()
    assert compiled and not set(compiled) & set(TORCHS)
    assert set(TORCHS) < set(timed)


def test_a_call_is_timed_once_in_a_process(tuned):
    """A search builds a dozen engines that differ in a few calls: the same call is not timed for each of them."""
    _, timed, tune = tuned
    plans = tune()
    first = len(timed)
    assert tune() == plans and len(timed) == first
    tune(length=8)
    assert len(timed) > first


@pytest.mark.parametrize(("n", "result", "residual", "schedules"), [
    (3072, torch.int8, None, {PINGPONG, RESIDENT}),
    (1000, torch.float16, None, {PINGPONG, RESIDENT}),  # rows of a result in half precision are multiples of 16 bytes
    (1000, torch.int8, None, set()),  # those of codes are not, and descriptors take no others
    (1000, torch.float16, torch.int8, set()),
])  # fmt: skip
def test_products_of_two_groups_want_rows_that_descriptors_take(monkeypatch, n, result, residual, schedules):
    monkeypatch.setattr(tuning, "capability", lambda _: 90)
    x, weight = torch.zeros(4096, 768, dtype=torch.int8), torch.zeros(n, 768, dtype=torch.int8)
    node = types.SimpleNamespace(target=torch.ops.int8kit.linear.default)
    other = None if residual is None else torch.zeros(4096, n, dtype=residual)
    found = tuning.candidates(node, (x, weight, None, None, result), {"residual": other})
    assert {tile.schedule for tile in found} & {PINGPONG, RESIDENT} == schedules
    assert found
