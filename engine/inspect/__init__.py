"""What an engine really runs: precision, kernel and time of each layer."""
