"""HTTP/1.1 towards backends, and what is read of a client's connection; no routing, no metrics."""
