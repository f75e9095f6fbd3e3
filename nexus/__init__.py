"""Nexus: one OpenAI-compatible endpoint in front of any fleet of LLM backends."""

__version__ = "0.1.0"
