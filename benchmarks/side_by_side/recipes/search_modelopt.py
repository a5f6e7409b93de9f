"""ModelOpt's auto_quantize: for each layer INT8 with SmoothQuant, without, or nothing. Its budget is bits of a weight.

Taken: the fewest of five whose logits move by at most 0.06 on the half that did not calibrate.
"""

import sys  # job

import modelopt.torch.quantization as mtq
import pandas
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MODEL, SAMPLES, OUT = sys.argv[1:]  # job
tokenizer = AutoTokenizer.from_pretrained(MODEL)
frame = pandas.read_parquet(SAMPLES)
sentences, labels = frame["sentence"].tolist(), torch.tensor(frame["label"].tolist())
batches = [
    {**tokenizer(sentences[i : i + 32], padding=True, return_tensors="pt"), "labels": labels[i : i + 32]}
    for i in range(0, len(sentences), 32)
]
calibrating, held_out = batches[: len(batches) // 2], batches[len(batches) // 2 :]


def load():
    options = {"dtype": "float32", "attn_implementation": "eager"}
    return AutoModelForSequenceClassification.from_pretrained(MODEL, **options).eval()


@torch.no_grad()
def logits(model):
    return torch.cat([model(**batch).logits for batch in held_out])


expected = logits(load())
for bits in (8.12, 8.4, 8.8, 9.6, 10.4):
    model, _ = mtq.auto_quantize(
        load(),
        constraints={"effective_bits": bits},
        quantization_formats=["INT8_SMOOTHQUANT_CFG", "INT8_DEFAULT_CFG"],
        data_loader=calibrating,
        forward_step=lambda model, batch: model(**batch),
        loss_func=lambda output, batch: output.loss,
        disabled_layers=["*classifier*", "*pooler*"],
        num_calib_steps=len(calibrating),
        num_score_steps=len(calibrating),
    )
    if (logits(model.eval()) - expected).abs().mean() <= 0.06:
        break
names = ["input_ids", "attention_mask", "token_type_ids"]
axes = {name: {0: "batch", 1: "tokens"} for name in names}
options = {"input_names": names, "output_names": ["logits"], "dynamic_axes": axes, "dynamo": False}
example = tokenizer("an example", return_tensors="pt")
torch.onnx.export(model, tuple(example[name] for name in names), f"{OUT}/model.onnx", **options)
