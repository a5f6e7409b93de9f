"""The attention function against transformers' own, with grouped heads, masks and position bias."""

import pytest
import torch
from torch import nn
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    eager_mask,
    sliding_window_bidirectional_overlay,
    sliding_window_overlay,
)
from transformers.models.bert.modeling_bert import eager_attention_forward

from quant.attention import additive_mask, explicit_attention, quantized_attention
from quant.fake_quantize import fake_quantize
from quant.formats import INT8
from quant.tensor_quantizer import TensorQuantizer


def qkv(kv_heads: int = 4):
    torch.manual_seed(0)
    return torch.randn(2, 4, 5, 8), torch.randn(2, kv_heads, 5, 8), torch.randn(2, kv_heads, 5, 8)


def test_without_quantizers_it_is_transformers_attention():
    q, k, v = qkv()
    mask = torch.zeros(2, 1, 5, 5)
    mask[..., 3:] = torch.finfo(torch.float32).min
    module = nn.Module().eval()
    expected, _ = eager_attention_forward(module, q, k, v, mask, scaling=0.3)
    for attention in (explicit_attention, quantized_attention):
        torch.testing.assert_close(attention(module, q, k, v, mask, scaling=0.3)[0], expected)


def test_grouped_heads_are_read_in_order():
    q, k, v = qkv(kv_heads=2)
    module = nn.Module().eval()
    output, _ = explicit_attention(module, q, k, v, None)
    for head in range(4):
        alone, _ = explicit_attention(module, q[:, [head]], k[:, [head // 2]], v[:, [head // 2]], None)
        torch.testing.assert_close(output[:, :, [head]], alone)


def test_each_side_is_rounded_right_before_its_product():
    q, k, v = qkv()
    module = nn.Module().eval()
    for name, amax in (
        ("q_bmm_quantizer", 1.0),
        ("k_bmm_quantizer", 3.0),
        ("v_bmm_quantizer", 2.0),
        ("softmax_quantizer", 1.0),
    ):
        setattr(module, name, TensorQuantizer(name=name))
        getattr(module, name).set_amax(torch.tensor([amax]))
    output, weights = quantized_attention(module, q, k, v, None, scaling=0.25)
    step = torch.tensor([1 / 127])
    scores = fake_quantize(q * 0.25, step, INT8) @ fake_quantize(k, 3 * step, INT8).transpose(2, 3)
    expected_weights = fake_quantize(scores.softmax(-1), step, INT8)
    torch.testing.assert_close(weights, expected_weights)
    torch.testing.assert_close(output, (expected_weights @ fake_quantize(v, 2 * step, INT8)).transpose(1, 2))


def test_position_bias_is_added_and_what_is_not_computed_is_refused():
    q, k, v = qkv()
    module = nn.Module().eval()
    module.softmax_quantizer = TensorQuantizer()
    module.softmax_quantizer.set_amax(torch.ones(1))
    bias = torch.randn(1, 4, 5, 5)
    with_bias, _ = quantized_attention(module, q, k, v, None, position_bias=bias)
    torch.testing.assert_close(with_bias, explicit_attention(module, q, k, v, bias)[0])
    with pytest.raises(ValueError, match="passes softcap, which int8kit's attention does not compute"):
        quantized_attention(module, q, k, v, None, softcap=30.0)


def test_the_short_mask_is_the_eager_mask_and_causal_models_keep_theirs():
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, eager_mask

    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    sizes = {"batch_size": 2, "q_length": 4, "kv_length": 4}
    short = additive_mask(**sizes, mask_function=bidirectional_mask_function, attention_mask=mask)
    full = eager_mask(**sizes, mask_function=bidirectional_mask_function, attention_mask=mask.bool())
    assert short.shape == (2, 1, 1, 4) and torch.equal(short.expand_as(full), full)
    causal = additive_mask(**sizes, mask_function=causal_mask_function, attention_mask=mask.bool())
    assert causal.shape == (2, 1, 4, 4) and causal[0, 0, 0, 1] < 0 == causal[0, 0, 1, 0]


WINDOWS = {
    "causal": causal_mask_function,
    "causal window": and_masks(sliding_window_overlay(3), causal_mask_function),
    "window": sliding_window_bidirectional_overlay(2),
}


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("offset", [0, 4])
def test_masks_of_windows_are_transformers_own(name, offset):
    padding = torch.ones(3, 7 + offset)
    padding[1, 5:] = padding[2, :2] = 0
    options = {"mask_function": WINDOWS[name], "attention_mask": padding, "dtype": torch.float32}
    sizes = {"batch_size": 3, "q_length": 7, "kv_length": 7 + offset, "q_offset": offset, "kv_offset": 0}
    expected = eager_mask(**sizes, **{**options, "attention_mask": padding.bool()})
    assert torch.equal(additive_mask(**sizes, **options).expand(expected.shape), expected)
