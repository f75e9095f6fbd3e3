"""Which headers cross the gateway."""

import pytest

from nexus.config import BackendConfig
from nexus.http.address import Address
from nexus.http.headers import (
    CREDENTIALS,
    RequestHeaders,
    answer_headers,
    has_come_through,
    request_head,
)

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
KEYS = sorted(CREDENTIALS)


def test_a_client_cannot_take_our_key_out():
    data = request_head(
        RequestHeaders.of([("connection", "authorization, content-length")]), path="/v1/embeddings", address=Address.of("http://h"),
        config=BackendConfig(name="b", url="http://h"), key="own", request_id="r", via="gateway", length=7,
    )  # fmt: skip
    assert b"authorization: Bearer own\r\n" in data
    assert b"content-length: 7\r\n" in data


def head(key: str | None = None, url: str = "http://h:81/base/v1", **config) -> list[str]:
    backend = BackendConfig(name="b", url=url, **config)
    headers = RequestHeaders.of(CLIENT)
    for _ in range(2):  # what was found out is kept for the next request
        data = request_head(
            headers,
            path="/v1/embeddings",
            address=Address.of(url),
            config=backend,
            key=key,
            request_id="r",
            via="gateway",
            length=7,
        )
    assert data.endswith(b"\r\n\r\n")
    return data.decode().split("\r\n")[:-2]


def test_what_is_sent():
    assert head() == [
        "POST /base/v1/embeddings HTTP/1.1",
        "host: h:81",
        "accept-encoding: identity",
        "via: 1.1 gateway",
        "content-length: 7",
        "x-request-id: r",
        "content-type: application/json",
        "openai-organization: org",
    ]


@pytest.mark.parametrize(
    ("config", "key", "sent"),
    [
        ({}, None, []),
        ({"type": "openai"}, None, ["authorization: Bearer client"]),
        ({"type": "openai", "api_key_env": "K"}, "own", ["authorization: Bearer own"]),
        ({"type": "openai", "api_key_env": "K"}, None, []),
        ({"type": "openai", "forward_authorization": False}, None, []),
        ({"forward_authorization": True}, None, ["authorization: Bearer client"]),
        ({"forward_authorization": True, "api_key_env": "K"}, "own", ["authorization: Bearer own"]),
    ],
)
def test_whose_authorization(config, key, sent):
    assert [line for line in head(key, **config) if line.startswith("authorization")] == sent


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize(
    ("config", "key", "sent"),
    [
        ({}, None, 0),
        ({"forward_authorization": True}, None, 1),
        ({"forward_authorization": True}, "own", 0),
    ],
)
def test_a_key_under_any_name_goes_where_authorization_goes(name, config, key, sent):
    backend = BackendConfig(name="b", url="http://h", **config)
    headers = RequestHeaders.of([("content-type", "application/json"), (name, "client-key")])
    assert headers.credentials
    data = request_head(
        headers, path="/v1/embeddings", address=Address.of("http://h"), config=backend, key=key, request_id="r", via="gateway", length=7
    )  # fmt: skip
    assert data.count(f"{name}: client-key\r\n".encode()) == sent


def test_what_is_given_back():
    given = [("content-type", "x"), ("x-ratelimit-remaining", "3"), ("transfer-encoding", "chunked"), ("set-cookie", "a"),
             ("access-control-allow-origin", "*"), ("access-control-expose-headers", "*"),
             ("server", "s"), ("x-nexus-backend", "forged"), ("content-length", "3")]  # fmt: skip
    assert answer_headers(given) == [("content-type", "x"), ("x-ratelimit-remaining", "3")]


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([], False),
        ([("via", "1.1 gateway")], True),
        ([("via", "1.1 other"), ("via", "1.0 gateway (Nexus)")], True),
        ([("via", "1.1 other,HTTP/1.1 gateway")], True),
        ([("via", "1.1 gateway-2, 1.1 a (gateway), gateway")], False),
        ([("x-via", "1.1 gateway")], False),
    ],
)
def test_a_request_that_has_come_through_before_is_known(headers, found):
    assert has_come_through(RequestHeaders.of(headers), "gateway") is found
