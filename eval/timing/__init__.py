"""Latency, ratios of latencies, load."""
