"""The protocols that clients speak, one folder or module for each: pure functions, no I/O."""
