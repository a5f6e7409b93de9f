"""Passes over exported graphs: from one file to the file of each target."""
