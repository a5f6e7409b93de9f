"""NNCF on an OpenVINO model, as its documentation of post-training quantization shows it for transformers."""

import sys  # job

import nncf
import openvino as ov
import pandas
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MODEL, SAMPLES, OUT = sys.argv[1:]  # job
tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForSequenceClassification.from_pretrained(MODEL, dtype="float32").eval()
samples = [dict(tokenizer(each, return_tensors="np")) for each in pandas.read_parquet(SAMPLES)["sentence"]]
converted = ov.convert_model(model, example_input=samples[0])
dataset = nncf.Dataset(samples)
int8 = nncf.quantize(converted, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples))
ov.save_model(int8, f"{OUT}/model.xml")
