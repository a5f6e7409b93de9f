"""optimum-intel's OVQuantizer, as its documentation shows it for classifiers.

Its command (`optimum-cli export openvino --quant-mode int8 --dataset ...`) knows names of hub data sets alone.
"""

import sys  # job

from datasets import Dataset
from optimum.intel import OVConfig, OVModelForSequenceClassification, OVQuantizationConfig, OVQuantizer
from transformers import AutoTokenizer

MODEL, SAMPLES, OUT = sys.argv[1:]  # job
tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = OVModelForSequenceClassification.from_pretrained(MODEL, export=True)
dataset = Dataset.from_parquet(SAMPLES).map(lambda row: tokenizer(row["sentence"]))
config = OVConfig(quantization_config=OVQuantizationConfig(num_samples=256))
quantizer = OVQuantizer.from_pretrained(model)
quantizer.quantize(calibration_dataset=dataset, ov_config=config, save_directory=OUT)
