"""Request heads for backends: which headers are sent, and whose key."""

import pytest

from nexus.config import BackendConfig
from nexus.http.address import Address
from nexus.http.credentials import CREDENTIALS, backend_query
from nexus.http.headers import RequestHeaders
from nexus.http.request_template import RequestTemplate
from nexus.providers import PROVIDERS, Provider

CLIENT = [
    ("host", "gateway"),
    ("authorization", "Bearer client"),
    ("content-type", "application/json"),
    ("content-length", "999"),
    ("connection", "keep-alive, x-hop"),
    ("x-hop", "1"),
    ("te", "trailers"),
    ("accept-encoding", "gzip"),
    ("openai-organization", "org"),
    ("openai-beta", "assistants=v2"),
    ("x-nexus-priority", "high"),
    ("x-bad", "a\r\nb: c"),
    ("forwarded", "for=10.0.0.1"),
    ("x-forwarded-for", "10.0.0.1"),
    ("x-real-ip", "10.0.0.1"),
    ("origin", "https://page.example"),
    ("referer", "https://page.example/"),
    ("sec-fetch-site", "cross-site"),
    ("sec-ch-ua", "x"),
    ("cookie", "session=1"),
    ("content-encoding", "gzip"),
]
BASE = "http://h:81/base/v1"
OURS = {"api_key_env": "K"}


def head(headers=CLIENT, *, key: str | None = None, query: str = "", url=BASE, **config):
    """The lines of a head, after a first one whose parts are cached."""
    backend = BackendConfig(name="b", url=url, **config)
    template = RequestTemplate.of(
        backend, Address.of_backend(backend), environ={"K": key} if key else {}, via="gateway"
    )
    given = RequestHeaders.of(headers)
    for _ in range(2):
        data = template.head(given, path="/v1/embeddings", request_id="r", length=7, query=query)
    assert data.endswith(b"\r\n\r\n")
    return data.decode().split("\r\n")[:-2]


def keys(lines: list[str]) -> list[str]:
    return [line for line in lines if line.partition(":")[0] in CREDENTIALS]


@pytest.fixture
def x_test(monkeypatch):
    provider = Provider(
        name="vllm",
        key_header="x-key-of-test",
        key_prefix="",
        headers=(("x-version", "1"),),
        paths={"/v1/embeddings": "/embed"},
    )
    monkeypatch.setitem(PROVIDERS, "vllm", provider)


def test_what_is_sent():
    assert head() == [
        "POST /base/v1/embeddings HTTP/1.1",
        "host: h:81",
        "accept-encoding: identity",
        "via: 1.1 gateway",
        "content-length: 7",
        "x-request-id: r",
        "content-type: application/json",
        "openai-beta: assistants=v2",
    ]


@pytest.mark.parametrize(
    ("config", "key", "sent"),
    [
        ({}, None, []),
        ({"type": "openai"}, None, ["authorization: Bearer client", "openai-organization: org"]),
        ({"type": "openai", **OURS}, "own", ["authorization: Bearer own"]),
        ({"type": "openai", **OURS}, None, []),
        ({"type": "openai", "forward_authorization": False}, None, []),
        ({"type": "anthropic", **OURS}, "own", ["x-api-key: own"]),
        ({"type": "azure", **OURS}, "own", ["api-key: own"]),
        ({"type": "bedrock", **OURS}, "own", ["authorization: Bearer own"]),
        ({"type": "sglang", **OURS}, "own", ["authorization: Bearer own"]),
        (
            {"forward_authorization": True},
            None,
            ["authorization: Bearer client", "openai-organization: org"],
        ),
        ({"forward_authorization": True, **OURS}, "own", ["authorization: Bearer own"]),
        (
            {"forward_authorization": True, **OURS},
            None,
            ["authorization: Bearer client", "openai-organization: org"],
        ),
    ],
)
def test_whose_key(config, key, sent):
    assert keys(head(key=key, **config)) == sent


@pytest.mark.parametrize("name", sorted(CREDENTIALS))
@pytest.mark.parametrize(
    ("config", "key", "sent"),
    [
        ({}, None, []),
        ({"forward_authorization": True}, None, ["client-key"]),
        ({"forward_authorization": True, **OURS}, "own", ["Bearer own"]),
    ],
)
def test_a_client_key_in_any_header_is_treated_as_authorization(name, config, key, sent):
    headers = [("content-type", "application/json"), (name, "client-key")]
    assert RequestHeaders.of(headers).credentials
    lines = keys(head(headers, key=key, url="http://h", **config))
    assert [line.partition(": ")[2] for line in lines] == sent


def test_a_client_cannot_remove_our_key():
    lines = head([("connection", "authorization, content-length")], key="own", **OURS)
    assert "authorization: Bearer own" in lines
    assert "content-length: 7" in lines


def test_header_path_and_default_headers_of_a_kind(x_test):
    lines = head([("accept", "x")], key="own", url="http://h/a", type="vllm", **OURS)
    assert lines[0] == "POST /a/embed HTTP/1.1"
    assert lines[4:] == [
        "x-key-of-test: own", "content-length: 7", "x-request-id: r", "accept: x", "x-version: 1"
    ]  # fmt: skip
    lines = head([("x-version", "2")], url="http://h", type="vllm")
    assert [line for line in lines if line.startswith("x-version")] == ["x-version: 2"]


def test_a_clients_query():
    assert head(query="a=1&key=k")[0] == "POST /base/v1/embeddings?a=1 HTTP/1.1"
    assert head(query="api_key=k")[0] == "POST /base/v1/embeddings HTTP/1.1"
    assert backend_query("a=\xe9&key=k", client_keys=True) == "a=%E9&key=k"
