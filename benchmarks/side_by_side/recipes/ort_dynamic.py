"""ONNX Runtime's tool, dynamic: what its documentation recommends for transformers on a CPU. Uses no samples."""

import sys  # job

import torch
from onnxruntime.quantization import quantize_dynamic
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MODEL, _, OUT = sys.argv[1:]  # job
tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForSequenceClassification.from_pretrained(MODEL, dtype="float32").eval()
names = ["input_ids", "attention_mask", "token_type_ids"]
example = tokenizer("an example", return_tensors="pt")
axes = {name: {0: "batch", 1: "tokens"} for name in names}
options = {"input_names": names, "output_names": ["logits"], "dynamic_axes": axes, "dynamo": False}
torch.onnx.export(model, tuple(example[name] for name in names), f"{OUT}/float.onnx", **options)
quantize_dynamic(f"{OUT}/float.onnx", f"{OUT}/model.onnx")
