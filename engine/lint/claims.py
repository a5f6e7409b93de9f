"""Whom the linter judges for, and what a rule may say of them; light, for a command that is only asked for its help."""

from __future__ import annotations

LEVELS = ("error", "warning", "note")
CONSUMERS = ("tensorrt", "tensorrt8", "onnxruntime", "openvino")
TENSORRT = ("tensorrt", "tensorrt8")
# What a rule says of the consumer, which `benchmarks/lint/agreement.py` compares with what it does.
REFUSED = "refused"  # it does not load, build or run the file
FLOAT = "float"  # the product does not run in INT8
NUMBERS = "numbers"  # it runs, and gives other numbers than were meant
UNSEEN = "unseen"  # nobody can say what runs there
COST = "cost"  # it runs as it is written, and that costs time: no word of refusal or of float
CLAIMS = (REFUSED, FLOAT, NUMBERS, UNSEEN, COST)
