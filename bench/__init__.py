"""Benchmarks: what the program's claims about speed rest on. Each says how to repeat it."""
