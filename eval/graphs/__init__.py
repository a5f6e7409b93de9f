"""Graphs of one model under many calibrations: cut and filled instead of exported, and told apart."""
