"""Azure's OpenAI service, whose url ends with `/openai/v1`."""

from nexus.providers.base import OPENAI_CLOUD, Provider

PROVIDER = Provider(
    name="azure",
    cloud=True,
    key_header="api-key",
    key_prefix="",
    dialects=OPENAI_CLOUD,
    takes=frozenset({"max_completion_tokens"}),
    encrypts_reasoning=True,
)
