"""`nexus …` at the prompt."""

from nexus.cli.main import main

__all__ = ["main"]
