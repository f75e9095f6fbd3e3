"""Metrics: the table of families, recording a request, and reading all processes' values."""
