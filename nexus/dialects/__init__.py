"""The protocols that clients speak, one folder or module for each. Pure functions, no I/O."""
