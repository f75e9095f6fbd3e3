"""The command line, `nexus`."""

from nexus.cli.main import main

__all__ = ["main"]
