"""Fine-tuning with quantizers: QAT, distillation, resume, the run folder."""
