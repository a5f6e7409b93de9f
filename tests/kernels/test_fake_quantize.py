"""The Triton kernels against the plain formula: on a GPU, or on a CPU in Triton's interpreter (tests/conftest.py)."""

import pytest
import torch

from calib.apply import apply_statistics
from calib.collect import collect
from quant.fake_quantize import fake_quantize
from quant.formats import INT7, INT8
from quant.insert import insert_quantizers
from quant.recipe import load_recipe
from quant.tensor_quantizer import TensorQuantizer, fused_kernels
from tests.conftest import text_batch, tiny_bert

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = {
    "per tensor": ((5, 7, 9), None, False),
    "per tensor, many blocks": ((70, 61, 33), None, False),
    "transposed": ((4, 5, 6, 8), None, True),
    "per channel": ((33, 70), 0, False),
    "per channel, long rows": ((3, 2500), 0, False),
    "patch embedding": ((6, 3, 4, 4), 0, False),
}


def prepared(shape, axis, transposed, dtype=torch.float32, number_format=INT8):
    torch.manual_seed(0)
    x = (torch.randn(shape, device=DEVICE) * 2).to(dtype)
    x = x.transpose(-1, -2) if transposed else x
    quantizer = TensorQuantizer(axis=axis, number_format=number_format)
    quantizer.set_amax(torch.rand(x.shape[0]) * 3 + 0.1 if axis == 0 else torch.tensor([2.5]))
    quantizer.to(DEVICE).start_learning()
    return x.requires_grad_(), quantizer


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("number_format", [INT8, INT7], ids=["int8", "int7"])
def test_values_and_gradients_equal_the_plain_formula(case, dtype, number_format):
    kernels = fused_kernels()
    x, quantizer = prepared(*CASES[case], dtype, number_format)
    expected = fake_quantize(x, quantizer.broadcast_scale(x), number_format, dtype)
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    to_x, to_range, x.grad, quantizer.log2_amax.grad = x.grad, quantizer.log2_amax.grad, None, None
    assert kernels.can_fuse(x, quantizer.log2_amax, quantizer.axis)
    fused = kernels.fused_fake_quantize(
        x, quantizer.log2_amax, number_format.ends, is_log2=True, axis=quantizer.axis, dtype=dtype
    )
    fused.backward(upstream)
    # exp2 may differ by one bit between the two, which moves a value at a rounding border and the last bit of others.
    assert ((fused - expected).abs() > 1e-5 * expected.abs() + 1e-6).float().mean() < 1e-3 or dtype == torch.bfloat16
    torch.testing.assert_close(fused, expected, rtol=1e-2, atol=0.03)
    assert (x.grad != to_x).float().mean() < 1e-3
    torch.testing.assert_close(quantizer.log2_amax.grad, to_range, rtol=2e-3, atol=2e-4)


def test_a_stored_amax_gives_the_values_of_evaluation_to_the_bit():
    x, quantizer = prepared((33, 70), 0, False)
    quantizer.finish_learning()
    fused = fused_kernels().fused_fake_quantize(
        x, quantizer.amax, INT8.ends, is_log2=False, axis=0, dtype=torch.float32
    )
    assert torch.equal(fused, fake_quantize(x.detach(), quantizer.broadcast_scale(x), INT8))
    fused.sum().backward()
    assert set(x.grad.unique().tolist()) <= {0.0, 1.0}


def test_nan_stays_nan_and_an_all_zero_channel_stays_zero():
    x = torch.tensor([[float("nan"), 1.0], [0.0, 0.0]], device=DEVICE, requires_grad=True)
    amax = torch.tensor([1.0, 0.0], device=DEVICE)
    fused = fused_kernels().fused_fake_quantize(x, amax, INT8.ends, is_log2=False, axis=0, dtype=torch.float32)
    assert torch.isnan(fused[0, 0]) and fused[0, 1] == 1 and torch.equal(fused[1], torch.zeros(2, device=DEVICE))


def test_a_linear_layer_takes_its_operands_in_autocasts_dtype():
    """On a GPU from the kernels, on a CPU from the plain formula."""
    model = tiny_bert().to(DEVICE)
    insert_quantizers(model, load_recipe("int8_full"))
    batch = {name: value.to(DEVICE) for name, value in text_batch().items()}
    apply_statistics(model, collect(model, [batch], progress=False))
    with torch.no_grad(), torch.autocast(DEVICE, dtype=torch.bfloat16):
        layer = model.bert.encoder.layer[0].intermediate.dense
        x, weight = layer.operands(torch.randn(2, 32, device=DEVICE))
    assert x.dtype == weight.dtype == torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the kernels are what runs")
def test_on_a_cpu_the_plain_formula_runs_though_triton_is_there(monkeypatch):
    x, quantizer = prepared((5, 7), None, False)
    monkeypatch.setattr(fused_kernels(), "fused_fake_quantize", None)  # a call would fail
    assert torch.equal(quantizer(x), fake_quantize(x, quantizer.broadcast_scale(x), INT8))
