"""The matrix of families."""
