"""Which parts of a model to quantize: measured sensitivity, measured cost, an exact choice, proven in the runtime."""
