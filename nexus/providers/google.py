"""Google's Gemini API, by its endpoints in OpenAI's form."""

from nexus.providers.base import Provider

PROVIDER = Provider(
    name="google",
    base="/v1beta/openai",
    canonical_name=lambda name: name.removeprefix("models/"),
    cloud=True,
    takes=frozenset({"thought_signature"}),
)
