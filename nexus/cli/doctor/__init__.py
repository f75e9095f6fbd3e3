"""`nexus doctor`, by what it looks at."""
