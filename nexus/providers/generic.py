"""Any server that is compatible with OpenAI's API."""

from nexus.providers.base import Provider

PROVIDER = Provider(name="generic")
