"""`python -m nexus` is the same as `nexus`."""

from nexus.cli import main

main()
