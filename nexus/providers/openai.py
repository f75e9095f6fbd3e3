"""OpenAI, and cloud services with OpenAI's API."""

from nexus.providers.base import OPENAI_CLOUD, Provider

PROVIDER = Provider(
    name="openai",
    cloud=True,
    accepts_client_keys=True,
    dialects=OPENAI_CLOUD,
    takes=frozenset({"max_completion_tokens"}),
    encrypts_reasoning=True,
)
