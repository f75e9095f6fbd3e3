"""`nexus doctor`: one module for each subject."""
