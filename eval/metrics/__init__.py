"""Metrics, their ranges and directions."""
