"""ModelOpt's ONNX quantization, as its guide shows it, for a CPU: what is not quantized stays fp32, not fp16."""

import sys  # job

import pandas
import torch
from modelopt.onnx.quantization import quantize
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MODEL, SAMPLES, OUT = sys.argv[1:]  # job
tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForSequenceClassification.from_pretrained(MODEL, dtype="float32").eval()
names = ["input_ids", "attention_mask", "token_type_ids"]
example = tokenizer("an example", return_tensors="pt")
axes = {name: {0: "batch", 1: "tokens"} for name in names}
options = {"input_names": names, "output_names": ["logits"], "dynamic_axes": axes, "dynamo": False}
torch.onnx.export(model, tuple(example[name] for name in names), f"{OUT}/float.onnx", **options)
sentences = pandas.read_parquet(SAMPLES)["sentence"].tolist()
quantize(
    f"{OUT}/float.onnx",
    quantize_mode="int8",
    calibration_data=dict(tokenizer(sentences, padding=True, return_tensors="np")),
    calibration_eps=["cpu"],
    high_precision_dtype="fp32",
    output_path=f"{OUT}/model.onnx",
)
