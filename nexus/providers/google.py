"""Google's Gemini API. Its OpenAI-compatible endpoints are a backend of kind `openai`."""

from nexus.providers.base import Provider

PROVIDER = Provider(
    name="google",
    cloud=True,
    key_header="x-goog-api-key",
    key_prefix="",
    dialects=frozenset({"google"}),
    unsupported="its protocol is not supported yet",
)
