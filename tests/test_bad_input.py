"""Bad input: each an error in OpenAI's form with the right status, counted once in the right
series, one log line."""

import http.client
import json
import socket
import time
from typing import Any

import pytest

from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Gateway

pytestmark = pytest.mark.e2e

CHAT = "/v1/chat/completions"
GOOD: dict[str, Any] = {"model": "demo-small", "messages": [{"role": "user", "content": "hi"}]}
COUNTED = (
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_requests_started_total",
    "nexus_http_rejected_total",
)
JSON = "application/json"


def ask(
    gateway: Gateway, method: str, path: str, body: bytes | None, content_type: str | None = JSON
):
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    headers = {"content-type": content_type} if content_type else {}
    connection.request(method, path, body=body, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.headers), content


CASES = [
    ("not JSON", "POST", CHAT, b"{oops", JSON, 400, "invalid_json", "parse_error"),
    ("not UTF-8", "POST", CHAT, b'{"model": "\xff"}', JSON, 400, "invalid_json", "parse_error"),
    ("empty", "POST", CHAT, b"", JSON, 400, "invalid_json", "parse_error"),
    ("a list", "POST", CHAT, b"[]", JSON, 400, "invalid_request", "invalid_request"),
    (
        "no model",
        "POST",
        CHAT,
        json.dumps({"messages": GOOD["messages"]}).encode(),
        JSON,
        400,
        "invalid_request",
        "invalid_request",
    ),
    (
        "model not a string",
        "POST",
        CHAT,
        json.dumps({**GOOD, "model": 7}).encode(),
        JSON,
        400,
        "invalid_request",
        "invalid_request",
    ),
    (
        "model empty",
        "POST",
        CHAT,
        json.dumps({**GOOD, "model": ""}).encode(),
        JSON,
        400,
        "invalid_request",
        "invalid_request",
    ),
    (
        "messages empty",
        "POST",
        CHAT,
        json.dumps({**GOOD, "messages": []}).encode(),
        JSON,
        400,
        "invalid_request",
        "invalid_request",
    ),
    (
        "messages no list",
        "POST",
        CHAT,
        json.dumps({**GOOD, "messages": "hi"}).encode(),
        JSON,
        400,
        "invalid_request",
        "invalid_request",
    ),
    (
        "no messages",
        "POST",
        CHAT,
        b'{"model": "demo-small"}',
        JSON,
        400,
        "invalid_request",
        "invalid_request",
    ),
    (
        "no prompt",
        "POST",
        "/v1/completions",
        b'{"model": "demo-small"}',
        JSON,
        400,
        "invalid_request",
        "invalid_request",
    ),
    (
        "no input",
        "POST",
        "/v1/embeddings",
        b'{"model": "demo-small"}',
        JSON,
        400,
        "invalid_request",
        "invalid_request",
    ),
    (
        "stream no boolean",
        "POST",
        CHAT,
        json.dumps({**GOOD, "stream": "yes"}).encode(),
        JSON,
        400,
        "invalid_request",
        "invalid_request",
    ),
    ("wrong method", "GET", CHAT, None, None, 405, "method_not_allowed", "invalid_request"),
    (
        "another wrong method",
        "DELETE",
        "/v1/embeddings",
        None,
        None,
        405,
        "method_not_allowed",
        "invalid_request",
    ),
    (
        "wrong content type",
        "POST",
        CHAT,
        json.dumps(GOOD).encode(),
        "text/plain",
        415,
        "unsupported_media_type",
        "invalid_request",
    ),
    (
        "a form",
        "POST",
        CHAT,
        b"model=x",
        "application/x-www-form-urlencoded",
        415,
        "unsupported_media_type",
        "invalid_request",
    ),
    (
        "over the limit",
        "POST",
        CHAT,
        b" " * (32 * 1024 * 1024 + 1),
        JSON,
        413,
        "body_too_large",
        "invalid_request",
    ),
]
ENDPOINT = {
    CHAT: "chat_completions",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
}


@pytest.mark.parametrize(
    ("method", "path", "body", "content_type", "status", "code", "error_type"),
    [c[1:] for c in CASES],
    ids=[c[0] for c in CASES],
)
def test_each_is_refused_and_counted(
    gateway, method, path, body, content_type, status, code, error_type
):
    before, lines = gateway.settled(), len(gateway.lines("request"))
    got, headers, content = ask(gateway, method, path, body, content_type)
    assert got == status
    error = json.loads(content)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert headers["x-request-id"]
    expected = {
        ("nexus_requests_started_total", frozenset({("endpoint", ENDPOINT[path])})): 1.0,
        (
            "nexus_requests_total",
            frozenset({("model", "unknown"), ("backend", "none"), ("status", str(status))}),
        ): 1.0,
        ("nexus_errors_total", frozenset({("error_type", error_type), ("model", "unknown")})): 1.0,
    }
    until(lambda: moved(before, gateway.settled(), COUNTED) == expected)
    line = gateway.request_line(lines)
    assert (line["status"], line["fault"]) == (status, code)


def test_made_up_model_is_unknown(gateway):
    before = gateway.settled()
    status, _, content = ask(
        gateway, "POST", CHAT, json.dumps({**GOOD, "model": 'x"} made\nup'}).encode()
    )
    assert status == 404
    error = json.loads(content)["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "demo-large, demo-small" in error["message"]
    assert moved(before, gateway.settled(), ("nexus_requests_total", "nexus_errors_total")) == {
        (
            "nexus_requests_total",
            frozenset({("model", "unknown"), ("backend", "none"), ("status", "404")}),
        ): 1.0,
        (
            "nexus_errors_total",
            frozenset({("error_type", "model_not_found"), ("model", "unknown")}),
        ): 1.0,
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("POST", "/nothing", 404, "not_found"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
    ],
)
def test_paths_outside_are_rejected(gateway, method, path, status, reason):
    before = gateway.settled()
    got, _, content = ask(gateway, method, path, None)
    assert got == status
    assert json.loads(content)["error"]["code"] == reason
    assert moved(before, gateway.settled(), COUNTED) == {
        ("nexus_http_rejected_total", frozenset({("reason", reason)})): 1.0
    }


def test_head_that_cannot_be_parsed_is_rejected(gateway):
    before = gateway.settled()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nbad header line\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 400")
    until(
        lambda: (
            moved(before, gateway.settled(), COUNTED)
            == {("nexus_http_rejected_total", frozenset({("reason", "bad_request")})): 1.0}
        )
    )


def test_body_cut_off(gateway):
    """The client ends its side in the middle of the body, and still reads the response."""
    before = gateway.settled()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as sock:
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 100\r\n\r\n{"
        )
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while data := sock.recv(4096):
            answer += data
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_cut_short"
    until(
        lambda: (
            moved(before, gateway.settled(), ("nexus_requests_total",))
            == {
                (
                    "nexus_requests_total",
                    frozenset({("model", "unknown"), ("backend", "none"), ("status", "400")}),
                ): 1.0
            }
        )
    )


@pytest.mark.parametrize("query", ["", "?through=flask"])
def test_body_cut_off_by_a_client_that_is_gone(gateway, query):
    """It closes its connection in the middle of the body, so nobody reads the response."""
    before = gateway.settled()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as sock:
        sock.sendall(
            b"POST /v1/chat/completions%s HTTP/1.1\r\nhost: x\r\n"
            b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{" % query.encode()
        )
    counted = ("nexus_requests_total", "nexus_errors_total")
    unread = {("model", "unknown"), ("backend", "none"), ("status", "400")}
    error = {("model", "unknown"), ("error_type", "invalid_request")}
    until(
        lambda: (
            moved(before, gateway.settled(), counted)
            == {
                ("nexus_requests_total", frozenset(unread)): 1.0,
                ("nexus_errors_total", frozenset(error)): 1.0,
            }
        )
    )


@pytest.mark.parametrize("query", ["", "?through=flask"])
def test_a_duration_starts_with_the_first_byte(gateway, query):
    """A head that arrives slowly counts, once, for the request that it starts."""
    body = json.dumps(GOOD).encode()
    head = (
        f"POST {CHAT}{query} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode()
    name, before = "nexus_request_duration_seconds_sum", gateway.settled()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as sock:
        sock.sendall(head[:30])
        time.sleep(1.5)
        sock.sendall(head[30:] + body)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        slow = gateway.settled()
        sock.sendall(head + body)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
    first, second = slow.total(name) - before.total(name), gateway.settled().total(name)
    assert first >= 1.5
    assert second - slow.total(name) < first


def test_chunked_body_is_read(gateway):
    body = json.dumps(GOOD).encode()
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    connection.request(
        "POST",
        CHAT,
        body=iter([body[:20], body[20:]]),
        headers={"content-type": JSON},
        encode_chunked=True,
    )
    assert connection.getresponse().status == 200
    connection.close()


def test_nothing_else_was_logged(gateway):
    """No trace, and no warning but gunicorn's one line for the head that it could not parse."""
    assert "Traceback" not in gateway.output()
    others = [line["event"] for line in gateway.lines() if line["level"] != "info"]
    assert len(others) == 1
    assert others[0].startswith("Invalid request from ip=127.0.0.1")
