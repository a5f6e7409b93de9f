"""Rules about operators: what holds products that nobody sees, what a consumer cannot import, and which operators it
has no INT8 kernel for. Each is what the consumers themselves did (`benchmarks/results/lint_agreement.md`)."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from engine.graph import constant, shape_of, users
from engine.lint.claims import COST, FLOAT, REFUSED, TENSORRT, UNSEEN
from engine.lint.findings import Hit, Rule
from engine.lint.graph import LintGraph
from engine.operands import FLOAT_TYPES, float_type, operand_of
from engine.products import INTEGER_PRODUCTS, MICROSOFT, Product, hides_products

ALL = (*TENSORRT, "onnxruntime", "openvino")
# Operators that compute with integers by themselves: other formats than Q/DQ.
INTEGER_OPS = (
    *INTEGER_PRODUCTS, "DynamicQuantizeLinear", "QLinearAdd", "QLinearMul", "QLinearSoftmax", "QLinearConcat",
    "QLinearSigmoid", "QLinearLeakyRelu", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearReduceMean",
    "QLinearWhere", "QAttention", "QEmbedLayerNormalization",
)  # fmt: skip
RECURRENT = ("LSTM", "GRU", "RNN")
BODIES = ("If", "Loop", "Scan")
# What ONNX Runtime moves a QuantizeLinear back through, from behind a product to the product.
MOVES_Q_BACK = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Identity")
OUTPUT_MENDS = {
    "Gemm": "split it into MatMul and Add (--target onnxruntime does), or quantize its bias to INT32",
    "Conv": "run the file in OpenVINO (--target openvino), or leave the layer float (match: '*patch_embeddings*')",
}


def not_seen(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every operator whose products cannot be seen, and a file in which none was found."""
    for node in graph.all_nodes:
        reason = hides_products(node)
        if reason is not None:
            yield Hit(node, f"{reason}: what runs there in INT8 is not seen")
    first = next(iter(graph.all_nodes), None)
    if not graph.products and first is not None and not any(map(hides_products, graph.all_nodes)):
        reason = "no product was found in the file (no MatMul, Gemm, Conv, Einsum, Attention, ...): nothing is judged"
        yield Hit(first, reason, claim=COST)


def unshown_bodies(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every If, Loop or Scan that holds products: OpenVINO's runtime model does not show what runs inside."""
    for node in graph.nodes(*BODIES):
        inside = {each for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH for each in a.as_graph()}
        if any(site.node in inside for site in graph.products):
            reason = f"OpenVINO shows nothing of the bodies of {node.op_type}: its products may run in INT8 or in float"
            yield Hit(node, reason, "warning")


def local_functions(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield the first node of a file with local functions, which OpenVINO cannot read."""
    if graph.functions and graph.all_nodes:
        shown = ", ".join(graph.functions[:3])
        yield Hit(graph.all_nodes[0], f"the file calls local functions ({shown}), for which OpenVINO has no importer")


def integer_operators(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every operator that TensorRT has no importer for since it holds integers without Q/DQ."""
    for node in graph.nodes(*INTEGER_OPS):
        yield Hit(node, f"{node.op_type} computes with integers without Q/DQ; TensorRT cannot import it")


def integers_unfused(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every integer product that OpenVINO takes apart into floats, or cannot read."""
    for site in graph.products:
        operator = site.node.op_type
        if operator not in INTEGER_PRODUCTS or operator in ("QLinearMatMul", "QLinearConv"):
            continue
        if operator == "QGemm":
            yield Hit(site, "OpenVINO has no importer for com.microsoft QGemm", claim=REFUSED)
        else:
            yield Hit(site, f"OpenVINO takes {operator} apart and multiplies floats")


def scan(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every Scan over integers, which TensorRT does not import."""
    for node in graph.nodes("Scan"):
        yield Hit(node, "TensorRT-RTX's parser refused every Scan that was tried")


def attention_operator(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every quantized Attention of opset 23: its softmax cannot be quantized, and it is fused in half precision
    alone."""
    for site in _attention_sites(graph):
        scales = [side.dequantize.inputs[1] for side in site.sides if side.dequantize is not None]
        is_fp32 = any(scale is not None and float_type(scale) == ir.DataType.FLOAT for scale in scales)
        if consumer in TENSORRT and is_fp32:
            yield Hit(site, "TensorRT-RTX has no kernel for Attention of opset 23 in fp32 and stops", claim=REFUSED)
        elif consumer in (*TENSORRT, "onnxruntime") and site.is_int8:
            yield Hit(site, "Attention of opset 23 is computed in float, whatever stands before it")


def no_kernel(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every quantized product of an operator for which the consumer has no INT8 kernel."""
    for site in graph.products:
        operator = site.node.op_type
        if not any(side.is_quantized for side in site.sides):
            continue
        if operator in RECURRENT:
            yield Hit(site, f"{operator} runs in float everywhere: its INT8 weights are dequantized at each call")
        elif operator == "Einsum" and consumer == "onnxruntime":
            yield Hit(site, "ONNX Runtime computes Einsum in float", None, "write it as MatMul")
        elif operator == "ConvTranspose" and site.is_int8 and (consumer != "openvino" or _has_zero_point(site)):
            what = "with a zero point" if consumer == "openvino" else "whatever its Q/DQ"
            yield Hit(site, f"{consumer} convolves transposed in float {what}")


def float_output(graph: LintGraph, consumer: str) -> Iterator[Hit]:
    """Yield every INT8 Gemm and Conv that ONNX Runtime has no kernel for, by its output, its bias or its factors.

    It makes a Gemm of a MatMul of two matrices and the Add of a vector, before it looks for INT8.
    """
    for site in graph.products:
        operator = "Gemm" if _becomes_gemm(site) else site.node.op_type
        if not site.is_int8:
            continue
        if operator == "MatMul" and _is_rounded_behind_relu(site.node.outputs[0]):
            reason = "a Relu stands between it and a QuantizeLinear that does not cut off at 0"
            mend = "quantize behind the Relu with a uint8 zero point of 0, or add a bias"
            yield Hit(site, f"{reason}: ONNX Runtime runs it in float", None, mend)
        if operator not in OUTPUT_MENDS:
            continue
        last = users(site.node.outputs[0])[0] if _becomes_gemm(site) else site.node
        factors = [site.node.attributes[k].as_float() for k in ("alpha", "beta") if k in site.node.attributes]
        if any(factor != 1 for factor in factors):
            yield Hit(site, "ONNX Runtime multiplies a Gemm with alpha or beta other than 1 in float")
        elif _is_output_quantized(last.outputs[0]):
            continue
        elif last is not site.node:
            reason = "ONNX Runtime makes a Gemm of a MatMul of matrices and its bias, and runs it in float"
            yield Hit(site, reason, "note", "build it with build_engine.py, which fuses both, or quantize its output")
        elif operator == "Conv" or _has_float_bias(site.node):
            what = "Conv with a float output" if operator == "Conv" else "Gemm with a float bias and a float output"
            yield Hit(site, f"ONNX Runtime runs an INT8 {what} in float", None, OUTPUT_MENDS[operator])


def _becomes_gemm(site: Product) -> bool:
    """Return whether a product is a MatMul of two matrices to which a float vector is added."""
    readers = users(site.node.outputs[0])
    if site.node.op_type != "MatMul" or len(readers) != 1 or readers[0].op_type != "Add":
        return False
    ranks = [len(shape) for side in site.sides if (shape := shape_of(side.value)) is not None]
    bias = next((x for x in readers[0].inputs if x is not None and x is not site.node.outputs[0]), None)
    columns = shape_of(site.sides[1].value)
    return ranks == [2, 2] and bias is not None and columns is not None and shape_of(bias) == columns[-1:]


def _attention_sites(graph: LintGraph) -> list[Product]:
    sites = [site for site in graph.products if site.node.op_type == "Attention" and site.node.domain != MICROSOFT]
    quantized = {site.node for site in sites if any(side.is_quantized for side in site.sides)}
    return [site for site in sites if site.node in quantized]


def _has_zero_point(site: Product) -> bool:
    return any(side.zero_points is not None and bool(side.zero_points.any()) for side in site.sides)


def _has_float_bias(gemm: ir.Node) -> bool:
    bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
    return bias is not None and operand_of(bias).dtype in FLOAT_TYPES


def _is_output_quantized(value: ir.Value) -> bool:
    """Return whether a QuantizeLinear is all that reads a value, behind what ONNX Runtime moves it back through."""
    readers = users(value)
    if len(readers) != 1 or value.is_graph_output():
        return False
    (node,) = readers
    if node.op_type == "QuantizeLinear":
        return True
    if node.op_type == "Relu" and _only_quantizer(node.outputs[0]) is not None:
        return _cuts_off_at_0(node)
    return node.op_type in MOVES_Q_BACK and _is_output_quantized(node.outputs[0])


def _is_rounded_behind_relu(value: ir.Value) -> bool:
    """Return whether all that reads a value, but for an Add of zeros, is a Relu whose output is quantized otherwise."""
    readers = users(value)
    if len(readers) == 1 and readers[0].op_type == "Add":
        added = [constant(each) for each in readers[0].inputs if each is not value]
        if added and added[0] is not None and not added[0].any():
            readers = users(readers[0].outputs[0])
    is_relu = len(readers) == 1 and readers[0].op_type == "Relu"
    return is_relu and _only_quantizer(readers[0].outputs[0]) is not None and not _cuts_off_at_0(readers[0])


def _cuts_off_at_0(relu: ir.Node) -> bool:
    """Return whether the QuantizeLinear behind a Relu cuts off what the Relu does."""
    quantize = _only_quantizer(relu.outputs[0])
    zeros = constant(quantize.inputs[2]) if quantize is not None and len(quantize.inputs) > 2 else None
    return zeros is not None and zeros.dtype.kind == "u" and not zeros.any()


def _only_quantizer(value: ir.Value) -> ir.Node | None:
    readers = users(value)
    return readers[0] if len(readers) == 1 and readers[0].op_type == "QuantizeLinear" else None


OPERATOR_RULES = (
    Rule(
        "not-seen",
        "error",
        UNSEEN,
        ALL,
        "write it with standard operators (export without the fusion that made it), and lint that file",
        not_seen,
    ),
    Rule(
        "body-not-shown",
        "warning",
        UNSEEN,
        ("openvino",),
        "export the branch that is used; look at its time with 'python -m engine.inspect'",
        unshown_bodies,
    ),
    Rule(
        "local-function",
        "error",
        REFUSED,
        ("openvino",),
        "inline them (onnx.inliner.inline_local_functions)",
        local_functions,
    ),
    Rule(
        "integer-operators",
        "error",
        REFUSED,
        TENSORRT,
        "quantize into Q/DQ (ONNX Runtime's tool: quant_format=QuantFormat.QDQ and static quantization)",
        integer_operators,
    ),
    Rule(
        "integers-unfused",
        "error",
        FLOAT,
        ("openvino",),
        "quantize into Q/DQ (ONNX Runtime's tool: quant_format=QuantFormat.QDQ and static quantization)",
        integers_unfused,
    ),
    Rule("scan", "error", REFUSED, TENSORRT, "unroll the loop, or export it as Loop", scan),
    Rule(
        "attention-operator",
        "error",
        FLOAT,
        ALL,
        "export attention as MatMul, Softmax, MatMul (this project's exports do)",
        attention_operator,
    ),
    Rule("no-kernel", "error", FLOAT, ALL, "leave the layer float", no_kernel),
    Rule("float-output", "warning", FLOAT, ("onnxruntime",), "leave it float", float_output),
)
