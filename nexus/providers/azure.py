"""Azure's OpenAI service, whose url ends with `/openai/v1`."""

from nexus.providers.base import Provider

PROVIDER = Provider(name="azure", cloud=True, key_header="api-key", key_prefix="")
