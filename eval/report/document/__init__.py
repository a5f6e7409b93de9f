"""A report as data: its sections and blocks, and the two ways to write them down: Markdown, and one page of HTML."""
