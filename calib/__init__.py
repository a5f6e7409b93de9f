"""What data says about a model: samples, statistics, calibrators, SmoothQuant."""
