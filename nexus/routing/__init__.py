"""Chooses the next backend and explains why. Pure functions: no I/O, no clock, no globals."""
