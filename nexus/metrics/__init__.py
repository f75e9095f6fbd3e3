"""The figures: one table of families, one place that records a finished request, one reader over all processes."""
