"""The quantizer against hand-written round and clamp, its gradients against LSQ's, and its errors."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quant.fake_quantize import amax_to_scale, fake_quantize, quantize
from quant.formats import INT8
from quant.tensor_quantizer import TensorQuantizer, quantizers_disabled

FLOATS = arrays(np.float32, 16, elements=st.floats(-1e4, 1e4, width=32))


def reference(x: np.ndarray, amax: float) -> np.ndarray:
    """Round half to even and clamp, written by hand in float32."""
    scale = np.float32(amax) / np.float32(127)
    return np.clip(np.rint(x.astype(np.float32) / scale), -128, 127) * scale


@settings(max_examples=200, deadline=None)
@given(x=FLOATS, amax=st.floats(2**-10, 2**13, width=32))
def test_fake_quantize_equals_hand_written_round_and_clamp(x, amax):
    scale = amax_to_scale(torch.tensor([amax]), INT8)
    assert np.array_equal(fake_quantize(torch.from_numpy(x), scale, INT8).numpy(), reference(x, amax))


def test_halves_round_to_even_and_the_range_is_minus_128_to_127():
    scale = torch.ones(1)
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.4, 500.0, -127.6, -128.4, -500.0])
    assert quantize(x, scale, INT8).tolist() == [0, 2, 2, 0, -2, 126, 127, 127, -128, -128, -128]


def test_per_channel_scales_lie_along_the_axis():
    quantizer = TensorQuantizer(axis=0)
    weight = torch.randn(3, 5)
    quantizer.set_amax(weight.abs().amax(1))
    for row in range(3):
        assert np.array_equal(
            quantizer(weight)[row].numpy(), reference(weight[row].numpy(), float(weight[row].abs().max()))
        )


def test_a_channel_of_zeros_stays_zero():
    quantizer = TensorQuantizer(axis=0)
    quantizer.set_amax(torch.tensor([0.0, 1.0]))
    assert torch.equal(quantizer(torch.tensor([[0.0], [1.0]])), torch.tensor([[0.0], [1.0]]))


def test_gradients_are_straight_through_inside_and_lsq_for_the_scale():
    x = torch.tensor([0.3, 1.4, 300.0, -300.0], requires_grad=True)
    scale = torch.ones(1, requires_grad=True)
    fake_quantize(x, scale, INT8).sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 0]
    expected = (round(0.3) - 0.3) + (round(1.4) - 1.4) + 127 - 128  # Esser et al. 2020, eq. 3
    assert scale.grad.item() == pytest.approx(expected, abs=1e-5)


def test_arithmetic_is_float32_under_autocast_and_keeps_the_dtype():
    quantizer = TensorQuantizer()
    quantizer.set_amax(torch.tensor([3.0]))
    x = torch.randn(1000).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = quantizer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, torch.from_numpy(reference(x.float().numpy(), 3.0)).bfloat16())


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    quantizer = TensorQuantizer()
    quantizer.set_amax(torch.tensor([2.0]))
    x = torch.randn(64)
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), quantizer(x))


def test_pre_quant_scale_multiplies_before_rounding():
    quantizer = TensorQuantizer()
    quantizer.set_amax(torch.tensor([1.0]))
    quantizer.set_pre_quant_scale(torch.tensor([0.5, 2.0]))
    x = torch.randn(7, 2)
    assert np.array_equal(quantizer(x).numpy(), reference((x * torch.tensor([0.5, 2.0])).numpy(), 1.0))


def test_disabled_and_bypassed_quantizers_pass_through():
    quantizer = TensorQuantizer(name="q")
    quantizer.set_amax(torch.tensor([1.0]))
    x = torch.randn(5)
    with quantizers_disabled(quantizer):
        assert quantizer(x) is x
    assert quantizer(x) is not x
    assert TensorQuantizer(enabled=False)(x) is x


def test_errors_name_the_quantizer_and_the_next_step():
    quantizer = TensorQuantizer(name="layer.0.input_quantizer")
    with pytest.raises(RuntimeError, match=r"layer\.0\.input_quantizer has no amax\. Run 'python -m calib'"):
        quantizer(torch.ones(1))
    for bad in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match="amax must be finite and not negative"):
            quantizer.set_amax(torch.tensor([bad]))


def shared():
    quantizer = TensorQuantizer(name="q")
    quantizer.num_readers = 3
    quantizer.set_amax(torch.tensor([2.0]))
    return quantizer


def test_readers_of_one_tensor_get_one_output():
    quantizer, x = shared(), torch.randn(50)
    first = quantizer(x)
    assert quantizer(x) is first and quantizer(x) is first
    assert quantizer(x) is not first  # the three readers are served: the next forward


@pytest.mark.parametrize(
    "change",
    [
        lambda q, x: q.set_amax(torch.tensor([0.5])),
        lambda q, x: q.amax.mul_(0.25),
        lambda q, x: x.mul_(3),
        lambda q, x: q.set_pre_quant_scale(torch.full((50,), 2.0)),
        lambda q, x: (q.start_learning(), q.log2_amax.data.sub_(1)),
        lambda q, x: setattr(q, "retakes_range", True),
        lambda q, x: q(x).zero_(),
    ],
    ids=["set_amax", "amax in place", "x in place", "SmoothQuant", "learning", "retaken", "output in place"],
)
def test_a_shared_quantizer_never_gives_what_was_made_of_something_else(change):
    quantizer, x = shared(), torch.randn(50)
    quantizer(x)
    change(quantizer, x)
    got = quantizer(x)
    quantizer._memo = None
    assert torch.equal(got, quantizer(x))


def test_a_learned_range_that_took_a_step_is_another_range():
    quantizer, x = shared(), torch.randn(50)
    quantizer.start_learning()
    quantizer(x)
    with torch.no_grad():
        quantizer.log2_amax.sub_(1)
    got = quantizer(x)
    quantizer._memo = None
    assert torch.equal(got, quantizer(x))


def test_a_first_reader_without_gradients_does_not_take_them_from_the_next():
    quantizer, x = shared(), torch.randn(50, requires_grad=True)
    with torch.no_grad():
        quantizer(x)
    assert quantizer(x).requires_grad


def test_inference_tensors_count_no_versions_and_are_rounded_anew():
    quantizer = shared()
    with torch.inference_mode():
        x = torch.randn(50)
        quantizer(x)
        x.mul_(3)
        assert torch.equal(quantizer(x), TensorQuantizer.forward(quantizer, x.clone()))
    plain = torch.randn(50, requires_grad=True)
    with torch.inference_mode():
        quantizer(plain)
    quantizer(plain).sum().backward()  # not the inference tensor of before


def test_a_copy_of_a_quantizer_holds_no_activations():
    quantizer = shared()
    quantizer(torch.randn(50, requires_grad=True) * 2)
    assert copy.deepcopy(quantizer)._memo is None
