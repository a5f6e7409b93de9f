"""Ranges and weights that other toolkits quantized."""
