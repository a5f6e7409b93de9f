"""Runs an ONNX file node by node as it is written, on the CPU: the judge of files whose own consumer needs a GPU.

ONNX Runtime with its optimizer off. It has kernels (or puts Casts, and skips a rounding between two of them) for fp16
but not for bf16; there each result is computed in fp32 and rounded to bf16 by a pair of Casts, which is what a bf16
kernel that sums in fp32 gives.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from engine.backends.onnxruntime.backend import OrtRunner, plain_session
from engine.backends.runner import Runner


def plain_runner(onnx_path: str | Path) -> Runner:
    """Return a runner of the file without any optimization.

    Raises: RuntimeError: ONNX Runtime does not take the file.
    """
    is_bfloat16 = half_type(onnx.load(str(onnx_path), load_external_data=False)) == "bf16"
    content = widen_bfloat16(onnx.load(str(onnx_path))).SerializeToString() if is_bfloat16 else str(onnx_path)
    try:
        session = plain_session(content)
    except Exception as error:  # its errors derive from Exception alone
        raise RuntimeError(f"onnxruntime cannot run {onnx_path}: {' '.join(str(error).split())[:300]}") from error
    return OrtRunner(session, {})


def float32_runner(onnx_path: str | Path) -> Runner:
    """Return a runner of a half file's graph, without any optimization, with all that was fp16 or bf16 in fp32."""
    return OrtRunner(plain_session(widen_halves(onnx.load(str(onnx_path))).SerializeToString()), {})


def widen_halves(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every fp16 and bf16 constant, cast and value in fp32; the constants keep their numbers."""
    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    wide = ir.from_proto(model)
    _widen_constants(wide, halves)
    for node in wide.graph:
        for output in node.outputs:
            if output.dtype in halves:
                output.dtype = ir.DataType.FLOAT
        for key, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in halves:
                node.attributes[key] = ir.AttrTensor(key, ir.tensor(attribute.as_tensor().numpy().astype(np.float32)))
            elif node.op_type == "Cast" and key == "to" and attribute.as_int() in halves:
                node.attributes[key] = ir.AttrInt64(key, int(ir.DataType.FLOAT))
    return ir.to_proto(wide)


def _widen_constants(model: ir.Model, types: tuple[ir.DataType, ...]) -> None:
    """Turn the initializers of these types into fp32, with the same numbers."""
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype in types:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=name)
            value.dtype = ir.DataType.FLOAT


def half_type(model: onnx.ModelProto) -> str | None:
    """Return "fp16" or "bf16" where the file's weights or scales are of that type, else None."""
    types = {tensor.data_type for tensor in model.graph.initializer}
    if onnx.TensorProto.BFLOAT16 in types:
        return "bf16"
    return "fp16" if onnx.TensorProto.FLOAT16 in types else None


def widen_bfloat16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in fp32 with every result that was bf16 rounded to it by Cast → Cast."""
    wide = ir.from_proto(model)
    _widen_constants(wide, (ir.DataType.BFLOAT16,))
    for node in list(wide.graph):
        for output in node.outputs:
            if output.dtype != ir.DataType.BFLOAT16:
                continue
            output.dtype = ir.DataType.FLOAT
            is_cast = node.op_type == "Cast"
            if is_cast:
                node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.BFLOAT16))
                output.dtype = ir.DataType.BFLOAT16
            readers = list(output.uses())
            last, steps = output, (ir.DataType.FLOAT,) if is_cast else (ir.DataType.BFLOAT16, ir.DataType.FLOAT)
            new = []
            for step in steps:
                new.append(ir.node("Cast", [last], {"to": int(step)}, name=f"{output.name}_to_{step.name}"))
                last = new[-1].outputs[0]
                last.dtype = step
            wide.graph.insert_after(node, new)
            for reader in readers:
                reader.node.replace_input_with(reader.idx, last)
    return ir.to_proto(wide)
