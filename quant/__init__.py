"""What a quantized PyTorch model is: recipe, quantizers, insertion, checkpoint, torch to ONNX."""
