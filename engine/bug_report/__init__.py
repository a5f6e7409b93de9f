"""A report for an upstream issue."""
