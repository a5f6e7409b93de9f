"""Accuracy of models and recipes on real data, beside the peers."""
