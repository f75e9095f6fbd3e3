"""HTTP/1.1: connections to backends, parsing, and headers. No routing, no metrics."""
