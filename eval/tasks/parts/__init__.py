"""What tasks are made of: splits of data, texts as inputs, what a task returns, calibration rows, the user's file."""
