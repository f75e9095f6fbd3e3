"""Each error is in the dialect of its path, on the fast path and through Flask alike.

It is counted once.
"""

import json
import re
import time

import pytest

from nexus.config import Config
from nexus.dialects import anthropic, openai
from nexus.server.refusals import dialect_of, dialect_of_head
from tests.server.asking import BODY, COUNTED, Counting, raw, rejected, series
from tests.server.conftest import WAYS
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Workers, backend

CHAT, MESSAGES, STATS = "/v1/chat/completions", "/v1/messages", "/v1/stats"
NAMES = {CHAT: "chat_completions", MESSAGES: "messages"}
JSON = "Content-Type: application/json"
LONG = "a" * 9000
CASES = {
    "no such path": ("PUT {}/nothing HTTP/1.1", [], b"{}", 404, "not_found"),
    "a wrong method": ("DELETE {} HTTP/1.1", [], b"", 405, "method_not_allowed"),
    "no host": ("PUT {} HTTP/1.1", None, b"{}", 400, "bad_request"),
    "a bad header": ("POST {} HTTP/1.1", ["X-A : 1"], b"{}", 400, "bad_request"),
    "a bad version": ("POST {} HTTP/7.x", [], b"{}", 400, "bad_request"),
    "a bad coding": ("POST {} HTTP/1.1", ["Transfer-Encoding: x"], b"", 501, "bad_request"),
    "an expectation": ("POST {} HTTP/1.1", ["Expect: 200-ok"], b"{}", 417, "bad_request"),
    "a long line": ("POST {}?" + LONG + " HTTP/1.1", [], b"{}", 414, "bad_request"),
    "a long header": ("POST {} HTTP/1.1", ["X: " + LONG * 2], b"{}", 431, "head_too_large"),
    "many headers": ("POST {} HTTP/1.1", ["X: 1"] * 120, b"{}", 431, "head_too_large"),
    "a head a little too large": (
        "POST {} HTTP/1.1",
        [f"X-{n}: " + LONG for n in range(8)],
        b"{}",
        431,
        "head_too_large",
    ),
    "a large head": ("POST {} HTTP/1.1", ["X: " + LONG * 9], b"{}", 431, "head_too_large"),
    "not JSON": ("POST {} HTTP/1.1", [JSON], b"{", 400, "invalid_json"),
    "too large": ("POST {} HTTP/1.1", [JSON], b" " * 200_001, 413, "body_too_large"),
    "a form": ("POST {} HTTP/1.1", ["Content-Type: x/y"], b"{}", 415, "unsupported_media_type"),
}
"""The first line, further headers (None: not even Host), the body; the status and the code."""
OF_ENDPOINTS = {"a wrong method": "invalid_request", "too large": "invalid_request"} | {
    "not JSON": "parse_error",
    "a form": "invalid_request",
}
"""What an endpoint refuses, with the type of error that it counts. No view of the operators reads
such a body."""


def data(line: str, headers: list[str] | None, body: bytes) -> bytes:
    lines = [line] if headers is None else [line, "Host: x", *headers]
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode() + body


def check_error(reply: bytes, path: str, status: int, code: str) -> dict:
    """The only response is this error, in the dialect of the path. Returns its body."""
    assert reply.count(b"HTTP/1.1 ") == 1, reply
    head, _, content = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), reply
    assert b"\r\ncontent-type: application/json" in head.lower()
    found = json.loads(content)
    ids = re.findall(rb"\r\n(x-request-id|request-id): ([!-~]+)", head)
    assert len({value for _, value in ids}) == 1
    assert [name for name, _ in ids] == [b"x-request-id", b"request-id"][: 1 + (path == MESSAGES)]
    if path == MESSAGES:
        assert found["request_id"].encode() == ids[0][1]
        kind = {404: "not_found_error", 413: "request_too_large", 500: "api_error"}
        other = "invalid_request_error" if status < 500 else "api_error"
        assert found["type"] == "error"
        assert "param" not in found["error"]
        expected = kind.get(status, other)
    else:
        assert set(found) == {"error"}
        assert set(found["error"]) == {"type", "message", "code", "param"}
        expected = "invalid_request_error" if status < 500 else "server_error"
    assert (found["error"]["type"], found["error"]["code"]) == (expected, code)
    return found


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("case", "path"),
    [
        (case, path)
        for case in CASES
        for path in (CHAT, MESSAGES, STATS)
        # No view of the operators reads such a body.
        if path in NAMES or case not in OF_ENDPOINTS or case == "a wrong method"
    ],
)
def test_refused(gateway, case, path):
    line, headers, body, status, code = CASES[case]
    if case in OF_ENDPOINTS and path in NAMES:
        expected = {
            series("nexus_requests_started_total", endpoint=NAMES[path]): 1,
            series("nexus_requests_total", model="unknown", backend="none", status=str(status)): 1,
            series("nexus_errors_total", error_type=OF_ENDPOINTS[case], model="unknown"): 1,
        }
    else:
        expected = rejected(code)
    with Counting(gateway, expected):
        reply = raw(gateway, data(line.format(path), headers, body))
    check_error(reply, path, status, code)


NOBODY = backend("nobody", "http://127.0.0.1:1", "demo-small")


@pytest.fixture(scope="module", params=WAYS)
def failing(request, tmp_path_factory):
    """Workers whose code has defects."""
    directory = tmp_path_factory.mktemp("failing")
    environ = WAYS[request.param]
    with Workers(
        directory, Config(), [NOBODY], environ=environ, app="tests.support.failing_app:app"
    ) as workers:
        workers.way = request.param
        yield workers


def ask_failing(workers: Workers, path: str, defect: str) -> tuple[bytes, dict, list[dict]]:
    """The response, what it moved, and the lines that it logged with a trace."""
    before, known = workers.settled(), len(traces(workers))
    post = data(f"POST {path} HTTP/1.1", [JSON, f"X-Fail: {defect}"], BODY)
    get = data(f"GET {path} HTTP/1.1", [f"X-Fail: {defect}"], b"")
    reply = raw(workers, get if path == STATS else post)
    until(lambda: len(traces(workers)) > known)
    return reply, moved(before, workers.settled(), COUNTED), traces(workers)[known:]


def traces(workers: Workers) -> list[dict]:
    return [line for line in workers.lines() if "Defect" in json.dumps(line)]


@pytest.mark.e2e
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_request_fails(failing, path):
    reply, counts, logged = ask_failing(failing, path, "within")
    found = check_error(reply, path, 500, "internal")
    assert found["error"]["message"] == "The gateway failed; see its log."
    assert ("request_id" in found) == (path == MESSAGES)
    assert b"\r\nx-should-retry: false" in reply
    assert [line["event"] for line in logged] == ["request failed inside the gateway"]
    assert counts == {
        series("nexus_requests_started_total", endpoint=NAMES[path]): 1,
        series("nexus_requests_total", model="unknown", backend="none", status="500"): 1,
        series("nexus_errors_total", error_type="other", model="unknown"): 1,
    }


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("defect", "path"),
    [(defect, path) for defect in ("before", "Flask", "outside") for path in (CHAT, MESSAGES)]
    + [("Flask", STATS), ("outside", STATS)],  # only a proxied request gets as far as "before"
)
def test_no_request_has_started(failing, path, defect):
    """Before it is counted, in Flask, and outside of Flask."""
    if defect != "before" and path != STATS and failing.way == "fast path":
        reply = raw(failing, data(f"POST {path} HTTP/1.1", [JSON, f"X-Fail: {defect}"], BODY))
        assert b'"internal"' not in reply, "the fast path goes round Flask"
        return
    reply, counts, logged = ask_failing(failing, path, defect)
    found = check_error(reply, path, 500, "internal")
    assert found["error"]["message"] == "The gateway failed; see its log."
    assert b"\r\nx-should-retry: false" in reply
    assert len(logged) == 1
    assert counts == rejected("internal")


@pytest.mark.e2e
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_response_fails(failing, path):
    """Its client sees that it is cut short, and no second response."""
    reply, counts, logged = ask_failing(failing, path, "response")
    assert reply.count(b"HTTP/1.1 ") == 1
    assert reply.startswith(b"HTTP/1.1 200 ")
    assert b"the first piece" in reply
    assert not reply.endswith(b"0\r\n\r\n")
    assert len(logged) == 1
    assert counts[series("nexus_requests_started_total", endpoint=NAMES[path])] == 1
    assert not [sample for sample in counts if sample[0] == "nexus_http_rejected_total"]


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/messages", anthropic),
        ("/v1/messages/", anthropic),
        ("/messages", anthropic),
        ("/messages/batches", anthropic),
        ("/v1/messages/count_tokens", anthropic),
        ("/v1/chat/completions/messages", openai),
        ("/v1/messagesx", openai),
        ("/v1/models", openai),
        ("/metrics", openai),
        ("/", openai),
        ("", openai),
        ("/v1/" + "messages/" * 10_000, anthropic),
        ("/" * 100_000 + "v1/messages", openai),
    ],
)
def test_dialect_of_a_path(path, dialect):
    assert dialect_of(path) is dialect
    line = f"GET {path} HTTP/1.1\r\nHost: x".encode()
    for head in (line, b"\r\n" + line, line.replace(b"GET ", b"GET http://x:1")):
        assert dialect_of_head(head) is dialect


def test_a_client_of_anthropics_api_names_itself():
    for path, dialect in ((b"/v1/models", anthropic), (b"/v1/chat/completions", openai)):
        head = b"GET " + path + b" HTTP/1.1\r\nAnthropic-Version: 1\r\n"
        assert dialect_of_head(head) is dialect
        assert dialect_of(path.decode(), anthropic_client=True) is dialect
    body = b"POST /v1/models HTTP/1.1\r\n\r\n{\nanthropic-version: 1}"
    assert dialect_of_head(body) is openai
    assert dialect_of_head(b"\x16\x03\x01") is openai
    assert dialect_of_head(b"") is openai


def test_the_work_for_a_long_line_is_linear():
    started = time.process_time()
    assert dialect_of_head(b"POST /v1/messages?" + b"a" * 60_000 + b" HTTP/1.1\r\n") is anthropic
    assert time.process_time() - started < 1
