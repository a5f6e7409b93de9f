"""Changes of an OpenVINO model before it is compiled, so that its kernels compute what the file says."""

from __future__ import annotations

from typing import Any

import numpy as np

# What OpenVINO fuses into the product before it, with the quantizer behind it. Nothing else need be kept apart.
FUSED_AFTER_PRODUCT = frozenset({"Add", "Multiply", "Gelu", "Relu", "Swish", "Sigmoid", "Tanh", "Erf", "HSwish"})
FUSING_PRODUCTS = frozenset({"MatMul", "Convolution", "GroupConvolution"})


def keep_channel_factors_apart(model: Any) -> list[str]:
    """Keep factors per channel (SmoothQuant's, where no fold exists) out of the quantizers behind them, in place.

    OpenVINO makes x * s -> FakeQuantize one FakeQuantize with a range for each channel. Where that is not fused into
    the product before it (another node reads x too, as in ELECTRA's and ALBERT's embedding projections, or x comes from
    no product), its kernel takes the ranges along a wrong axis of tensors of rank 3: seen in 2026.4.1 on AVX2, errors
    as large as the tensor. A maximum with the least float between the two changes no number and stops the fusion.
    `tests/engine/backends/test_openvino_graph.py` says when this may go.

    Args: model: an openvino.Model as read from ONNX.
    Returns: the names of the multiplications kept apart.
    """
    from openvino import opset13

    kept = []
    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize":
            continue
        factor = node.input_value(0).get_node()
        if factor.get_type_name() not in ("Multiply", "Divide") or not _has_channel_constant(factor):
            continue
        if _is_fused_into_product(factor):
            continue
        least = opset13.constant(np.finfo(np.float32).min, dtype=np.float32)
        if factor.get_output_element_type(0).get_type_name() != "f32":
            continue
        node.input(0).replace_source_output(opset13.maximum(factor.output(0), least).output(0))
        kept.append(factor.get_friendly_name())
    return kept


def _has_channel_constant(factor: Any) -> bool:
    """Return whether a multiplication has a constant of several elements."""
    sources = [factor.input_value(index).get_node() for index in range(2)]
    return any(source.get_type_name() == "Constant" and source.get_output_size() == 1
               and int(np.prod(list(source.get_output_shape(0)))) > 1 for source in sources)  # fmt: skip


def _is_fused_into_product(node: Any) -> bool:
    """Return whether a product stands before a node, nothing between them but what is fused, read by nobody else."""
    while True:
        data = [node.input_value(index) for index in range(len(node.inputs()))]
        data = [each for each in data if each.get_node().get_type_name() != "Constant"]
        if len(data) != 1 or len(data[0].get_target_inputs()) != 1:
            return False
        node = data[0].get_node()
        if node.get_type_name() in FUSING_PRODUCTS:
            return True
        if node.get_type_name() not in FUSED_AFTER_PRODUCT:
            return False
