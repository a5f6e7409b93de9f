"""ONNX Runtime's tool, static: Q/DQ, per channel, matrix products alone, uint8 activations.

With its own choice of operators it also quantizes the sum with the attention mask, which costs most of the accuracy;
of its own choice of int8 activations fewer products run in INT8 on a CPU, and they are slower.
"""

import sys  # job

import pandas
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MODEL, SAMPLES, OUT = sys.argv[1:]  # job
tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForSequenceClassification.from_pretrained(MODEL, dtype="float32").eval()
names = ["input_ids", "attention_mask", "token_type_ids"]
example = tokenizer("an example", return_tensors="pt")
axes = {name: {0: "batch", 1: "tokens"} for name in names}
options = {"input_names": names, "output_names": ["logits"], "dynamic_axes": axes, "dynamo": False}
torch.onnx.export(model, tuple(example[name] for name in names), f"{OUT}/float.onnx", **options)
quant_pre_process(f"{OUT}/float.onnx", f"{OUT}/prepared.onnx", skip_symbolic_shape=True)


class Reader(CalibrationDataReader):
    def __init__(self):
        sentences = pandas.read_parquet(SAMPLES)["sentence"]
        self.samples = iter([dict(tokenizer(each, return_tensors="np")) for each in sentences])

    def get_next(self):
        return next(self.samples, None)


quantize_static(
    f"{OUT}/prepared.onnx",
    f"{OUT}/model.onnx",
    Reader(),
    per_channel=True,
    activation_type=QuantType.QUInt8,
    op_types_to_quantize=["MatMul", "Gemm"],
)
