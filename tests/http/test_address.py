"""Where requests go: what a backend's url, kind, base_path and query come to."""

import pytest

from nexus.config import BackendConfig
from nexus.http.address import Address


def address(url: str, **settings) -> Address:
    return Address.of_backend(BackendConfig(name="b", url=url, **settings))


@pytest.mark.parametrize(
    ("url", "host", "header"),
    [
        ("http://h", ("h", 80, False), "h"),
        ("https://h/", ("h", 443, True), "h"),
        ("http://h:8000/v1", ("h", 8000, False), "h:8000"),
        ("http://[::1]:8080/v1/", ("::1", 8080, False), "[::1]:8080"),
        ("http://[fe80::1%eth0]:8080", ("fe80::1%eth0", 8080, False), "[fe80::1]:8080"),
    ],
)
def test_host(url, host, header):
    found = address(url)
    assert (found.host, found.port, found.tls) == host
    assert found.host_header == header


@pytest.mark.parametrize(
    ("path", "base"),
    [
        ("", "/v1"),
        ("/", "/v1"),
        ("/v1", "/v1"),
        ("/v1/", "/v1"),
        ("/openai/v1", "/openai/v1"),
        ("/api/openai/v1", "/api/openai/v1"),
        ("/compatible-mode/v1/", "/compatible-mode/v1"),
        ("/v1beta/openai", "/v1beta/openai"),
        ("/v1beta/openai/", "/v1beta/openai"),
        ("/api/paas/v4", "/api/paas/v4"),
        ("/v1/openai", "/v1/openai"),
        ("/api/v3", "/api/v3"),
        ("/v2", "/v2"),
        ("/inference", "/inference"),
    ],
)
@pytest.mark.parametrize("kind", ["openai", "vllm", "generic"])
def test_a_path_is_used_as_written(path, base, kind):
    """As the base_url of OpenAI's clients, but that /v1 is appended where there is no path at
    all."""
    found = address(f"https://h{path}", type=kind)
    assert found.target("/v1/chat/completions") == f"{base}/chat/completions"


@pytest.mark.parametrize("kind", ["ollama", "llamacpp", "lmstudio"])
@pytest.mark.parametrize(
    ("path", "base", "tags"),
    [
        ("", "/v1", "/api/tags"),
        ("/v1", "/v1", "/api/tags"),
        ("/inside", "/inside/v1", "/inside/api/tags"),
        ("/inside/v1/", "/inside/v1", "/inside/api/tags"),
        ("/v2", "/v2", "/api/tags"),
    ],
)
def test_kinds_with_an_api_of_their_own(kind, path, base, tags):
    """A path without a version is the root of both."""
    found = address(f"http://h{path}", type=kind)
    assert (found.target("/v1/models"), found.target("/api/tags")) == (f"{base}/models", tags)


@pytest.mark.parametrize(
    ("base_path", "base"),
    [("/openai", "/openai"), ("openai/v1/", "/openai/v1"), ("", ""), ("/", "")],
)
def test_base_path_replaces_it(base_path, base):
    found = address("http://h/v1", base_path=base_path)
    assert found.target("/v1/models") == f"{base}/models"


@pytest.mark.parametrize(
    ("query", "path", "target"),
    [
        ({}, "/v1/models", "/v1/models"),
        ({}, "/v1/models?a=1&a=2", "/v1/models?a=1&a=2"),
        ({"api-version": "2026-01-01"}, "/v1/models", "/v1/models?api-version=2026-01-01"),
        ({"k": "a b&c"}, "/v1/models?x=%20", "/v1/models?k=a+b%26c&x=%20"),
        ({"k": "ours"}, "/v1/models?k=theirs&x&k=&y=1", "/v1/models?k=ours&x&y=1"),
    ],
)
def test_query(query, path, target):
    assert address("http://h", query=query).target(path) == target


def test_backends_with_other_certificates_share_no_connection():
    """Connections are kept by address."""
    one, two = (address("https://h", client_cert_file=file) for file in ("/one.pem", "/two.pem"))
    assert one != two
    assert one == address("https://h", client_cert_file="/one.pem")
