"""Tuning of a program's operators, as far as it shows without a GPU."""

import pytest
import torch
from torch import fx

import kernels.attention  # noqa: F401  registers the operator
from engine.backends.inductor import tuning
from kernels.tiles import TORCHS


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
