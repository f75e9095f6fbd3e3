"""Amazon Bedrock with an API key, whose url ends with `/openai/v1`. Requests are not signed."""

from nexus.providers.base import Provider

PROVIDER = Provider(name="bedrock", cloud=True)
