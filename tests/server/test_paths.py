"""The several ways in which clients write a path: each is served, or refused in one sentence and
counted."""

import json
import re
from urllib.parse import quote

import pytest

from nexus.proxy.endpoints import ENDPOINTS
from tests.server.asking import (
    BODY,
    CHAT,
    GOOD,
    JSON,
    Counting,
    ask,
    counted,
    raw,
    rejected,
    series,
)  # fmt: skip

CHATS = [
    "/v1/chat/completions",
    "/v1//chat/completions",
    "//v1/chat//completions",
    "/v1/chat/completions/",
    "/chat/completions",
    "/chat/completions/",
    "/openai/v1/chat/completions",
    "/openai/deployments/demo-small/chat/completions?api-version=2024-10-21",
    "/v1/chat%2Fcompletions",
    "http://gateway.example/v1/chat/completions",
    "http://gateway.example//chat/completions?x=1",
]


@pytest.mark.e2e
@pytest.mark.parametrize("target", CHATS)
def test_each_way_to_write_a_path_is_served(gateway, target):
    with Counting(gateway, counted(200)):
        reply = ask(gateway, target)
    assert reply.status == 200
    assert json.loads(reply.content)["model"] == "demo-small"


@pytest.mark.e2e
@pytest.mark.parametrize(
    "path", ["/v1/models", "/models", "/v1/models/", "/v1//models", "/openai/v1/models"]
)
def test_the_models_are_listed(gateway, path):
    with Counting(gateway, {}):
        assert [
            model["id"]
            for model in json.loads(ask(gateway, path, method="GET", body=None).content)["data"]
        ] == ["demo-small"]
        assert (
            json.loads(ask(gateway, f"{path}/demo-small", method="GET", body=None).content)["id"]
            == "demo-small"
        )


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("POST", "/v1/v1/chat/completions", 404, "not_found"),
        ("POST", "/chat", 404, "not_found"),
        ("POST", "/v1//nothing", 404, "not_found"),
        ("POST", "/openai/deployments/demo-small", 404, "not_found"),
        ("DELETE", "//models/", 405, "method_not_allowed"),
    ],
)
def test_a_path_that_does_not_exist_is_rejected(gateway, method, path, status, reason):
    with Counting(gateway, rejected(reason)):
        reply = ask(gateway, path, method=method)
    assert (reply.status, reply.code) == (status, reason)


EVERY = json.dumps(
    {
        "model": "demo-small",
        **dict.fromkeys(("prompt", "input", "query", "text_1", "text_2"), "x"),
        "documents": ["x"],
        "messages": GOOD["messages"],
    }
).encode()
FORM = (
    b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\ndemo-small\r\n'
    b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n--x--\r\n'
)
WITH_BODY = [endpoint for endpoint in ENDPOINTS if endpoint.by_model]


@pytest.mark.e2e
@pytest.mark.parametrize("endpoint", WITH_BODY, ids=lambda endpoint: endpoint.name)
def test_every_endpoint_is_served_without_its_version(gateway, endpoint):
    expected = {
        series("nexus_requests_started_total", endpoint=endpoint.name): 1.0,
        series("nexus_requests_total", model="demo_small", backend="demo", status="200"): 1.0,
    }
    body, headers = EVERY, JSON
    if endpoint.body == "multipart":
        body, headers = FORM, {"content-type": "multipart/form-data; boundary=x"}
    with Counting(gateway, expected):
        path = endpoint.path.removeprefix("/v1")
        assert ask(gateway, path, body=body, headers=headers).status == 200


@pytest.mark.e2e
@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/files"), ("POST", "/batches")])
def test_an_endpoint_without_a_backend(gateway, method, path):
    """It says which key of the configuration is missing."""
    reply = ask(gateway, path, method=method, body=b"")
    assert (reply.status, reply.code) == (404, "endpoint_not_configured")
    assert b"[endpoints] files" in reply.content


@pytest.mark.e2e
@pytest.mark.parametrize("given", ["another", None])
@pytest.mark.parametrize("name", ["demo-small", "demo%2Dsmall"])
def test_a_deployment_is_the_model(gateway, demo, given, name):
    body = {**GOOD, "model": given}
    if given is None:
        del body["model"]
    with Counting(gateway, counted(200)):
        reply = ask(
            gateway,
            f"/openai/deployments/{name}/chat/completions?api-version=1",
            body=json.dumps(body).encode(),
        )
    assert reply.status == 200
    assert json.loads(demo.last()["body"])["model"] == "demo-small"


@pytest.mark.e2e
def test_a_deployment_that_is_no_model(gateway):
    name = "größer"
    expected = counted(404, "model_not_found", model="unknown", backend="none")
    with Counting(gateway, expected):
        reply = ask(gateway, f"/openai/deployments/{quote(name)}/chat/completions")
    assert (reply.status, reply.code) == (404, "model_not_found")
    assert name in json.loads(reply.content)["error"]["message"]


@pytest.mark.e2e
def test_a_deployment_with_a_body_that_is_not_json(gateway):
    expected = counted(400, "parse_error", model="unknown", backend="none")
    with Counting(gateway, expected):
        assert (
            ask(gateway, "/openai/deployments/demo-small/chat/completions", body=b"{nonsense").code
            == "invalid_json"
        )


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("query", "sent"),
    [
        ("beta=true", "?beta=true"),
        ("a=1&a=2&b=%20x", "?a=1&a=2&b=%20x"),
        ("key=secret&a=1&API_KEY=secret&%6bey=secret", "?a=1"),
        ("key=secret", ""),
        ('a="{}"', "?a=%22%7B%7D%22"),
        ("", ""),
    ],
)
def test_a_query_goes_on_to_the_backend_without_keys(gateway, demo, query, sent):
    with Counting(gateway, counted(200)):
        assert ask(gateway, f"{CHAT}?{query}").status == 200
    assert demo.last()["target"] == CHAT + sent


@pytest.mark.e2e
def test_a_request_without_host_is_refused(gateway):
    head = (
        f"POST {CHAT} HTTP/1.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(BODY)}\r\n".encode()
    )
    with Counting(gateway, rejected("bad_request")):
        reply = raw(gateway, head + b"Connection: close\r\n\r\n" + BODY)
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert b"must name a Host" in reply
    with Counting(gateway, counted(200)):
        assert raw(gateway, head.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n" + BODY).startswith(
            b"HTTP/1.0 200 "
        )


@pytest.mark.e2e
@pytest.mark.parametrize(
    "headers",
    [
        {"x-forwarded-proto": "https", "x-forwarded-ssl": "off"},
        {"x-forwarded-proto": "https,http", "x-forwarded-protocol": "ssl"},
        {"x-forwarded-proto": "https", "forwarded": "proto=http"},
        {"script_name": "/elsewhere"},
    ],
    ids=", ".join,
)
def test_what_proxies_in_front_say_refuses_nobody_and_stays_here(gateway, demo, headers):
    with Counting(gateway, counted(200)):
        assert ask(gateway, headers={**JSON, **headers}).status == 200
    assert not headers.keys() & demo.last()["headers"].keys()


@pytest.mark.e2e
def test_request_ids_are_uuids(gateway, demo):
    form = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    ids = []
    for _ in range(3):
        ids.append(ask(gateway).headers["x-request-id"])
        assert demo.last()["headers"]["x-request-id"] == ids[-1]
    assert len(set(ids)) == 3
    assert all(re.fullmatch(form, found) for found in ids), ids


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/", ("/", None)),
        ("//", ("/", None)),
        ("", ("/", None)),
        ("/v1/chat/completions", ("/v1/chat/completions", None)),
        ("/v1/models/a/b", ("/v1/models/a/b", None)),
        ("/models/a//b/", ("/v1/models/a/b", None)),
        ("/modelsx", ("/modelsx", None)),
        ("/openai/deployments/a/b/completions", ("/v1/completions", "a/b")),
        ("/openai/deployments/chat/completions", ("/v1/completions", "chat")),
        ("/openai/deployments//chat/completions", ("/v1/completions", "chat")),
        ("/openai/deployments/a", ("/openai/deployments/a", None)),
        ("/metrics/", ("/metrics", None)),
        ("/v2/rerank/", ("/v1/rerank", None)),
        ("/rerank", ("/v1/rerank", None)),
        ("/v2/embeddings", ("/v2/embeddings", None)),
    ],
)
def test_canonical(path, found):
    assert ENDPOINTS.canonical(path) == found


@pytest.mark.parametrize(
    "line",
    [
        "POST /v1/chat/completions HTTP/1.0",
        "GET /v1/chat/completions HTTP/1.1",
        "POST /v1/chat%2Fcompletions HTTP/1.1",
        "POST /v1/chat/completions#x HTTP/1.1",
        "POST http://x/v1/chat/completions HTTP/1.1",
        "POST /v1/nothing HTTP/1.1",
    ],
)
def test_first_lines_that_are_not_for_the_fast_path(line):
    assert ENDPOINTS.target_of(line) is None
