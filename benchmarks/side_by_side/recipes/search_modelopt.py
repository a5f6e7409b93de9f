"""ModelOpt's auto_quantize: INT8 with SmoothQuant, or nothing, for each layer; its budget is bits of a weight."""

import sys  # job

import modelopt.torch.quantization as mtq
import pandas
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MODEL, SAMPLES, OUT = sys.argv[1:]  # job
tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForSequenceClassification.from_pretrained(MODEL, dtype="float32", attn_implementation="eager").eval()
frame = pandas.read_parquet(SAMPLES)
sentences, labels = frame["sentence"].tolist(), torch.tensor(frame["label"].tolist())
batches = [
    {**tokenizer(sentences[i : i + 32], padding=True, return_tensors="pt"), "labels": labels[i : i + 32]}
    for i in range(0, len(sentences), 32)
]
model, _ = mtq.auto_quantize(
    model,
    constraints={"effective_bits": 8.8},
    quantization_formats=["INT8_SMOOTHQUANT_CFG"],
    data_loader=batches,
    forward_step=lambda model, batch: model(**batch),
    loss_func=lambda output, batch: output.loss,
    num_calib_steps=len(batches) // 2,
    num_score_steps=len(batches),
)
names = ["input_ids", "attention_mask", "token_type_ids"]
axes = {name: {0: "batch", 1: "tokens"} for name in names}
options = {"input_names": names, "output_names": ["logits"], "dynamic_axes": axes, "dynamo": False}
example = tokenizer("an example", return_tensors="pt")
torch.onnx.export(model, tuple(example[name] for name in names), f"{OUT}/model.onnx", **options)
