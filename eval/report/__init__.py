"""The report of a sweep: report.md and a self-contained report.html, every figure of which is a row's."""
