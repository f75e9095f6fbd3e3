"""The registered kinds, and what the record says of each."""

import pytest

from nexus.http.address import Address
from nexus.http.credentials import CREDENTIALS
from nexus.providers import PROVIDERS

KINDS = sorted(PROVIDERS)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_registered_by_its_name(name):
    assert PROVIDERS[name].name == name
    assert PROVIDERS[name].key_header in CREDENTIALS


def test_what_tells_kinds_apart():
    def having(attribute):
        return {name for name in KINDS if getattr(PROVIDERS[name], attribute)}

    assert having("cloud") == {"openai", "anthropic", "azure", "bedrock", "google", "gemini"}
    assert having("accepts_client_keys") == {"openai"}
    assert having("own_api") == {"ollama", "llamacpp", "lmstudio"}
    assert having("recognizes") == {"ollama", "llamacpp", "vllm"}
    assert having("canonical_name") == {"ollama", "google", "gemini"}
    local = {"ollama", "vllm", "sglang", "llamacpp", "lmstudio"}
    assert {name for name in KINDS if "anthropic" in PROVIDERS[name].dialects} == {
        "anthropic",
        *local,
    }


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("llama3.2", "llama3.2:latest"),
        ("Llama3.2:1B", "llama3.2:1b"),
        ("registry.ollama.ai/library/llama3.2", "llama3.2:latest"),
        ("library/llama3.2:latest", "llama3.2:latest"),
        ("host:5000/team/model", "host:5000/team/model:latest"),
    ],
)
def test_names_that_are_one_model_to_ollama(name, canonical):
    assert PROVIDERS["ollama"].canonical_name(name) == canonical


@pytest.mark.parametrize(
    ("kind", "url", "target"),
    [
        ("gemini", "https://host", "/v1beta/openai/chat/completions"),
        ("google", "https://host/", "/v1beta/openai/chat/completions"),
        ("google", "https://host/v1/openai", "/v1/openai/chat/completions"),
        ("generic", "https://host", "/v1/chat/completions"),
    ],
)
def test_where_the_endpoints_of_a_kind_are(kind, url, target):
    assert Address.of(url, PROVIDERS[kind]).target("/v1/chat/completions") == target


def test_names_that_are_one_model_to_gemini():
    assert PROVIDERS["gemini"].canonical_name("models/gemini-x") == "gemini-x"
