"""Responses that say nothing, or something odd, about themselves, and what clients get of them."""

import http.client
import json
import os
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nexus.config import Config
from nexus.config.records import CircuitBreaker, Routing
from tests.support.metrics import moved
from tests.support.processes import Workers, backend
from tests.support.replay import Replay

pytestmark = pytest.mark.e2e

CONFIG = Config(routing=Routing(max_retries=0), circuit_breaker=CircuitBreaker(enabled=False))
FLASK = pytest.mark.parametrize("flask", [False, True], ids=["fast path", "flask"])
COMPLETION = (
    b'{"id":"c","object":"chat.completion","model":"odd","choices":[{"index":0,"finish_reason":'
    b'"stop","message":{"role":"assistant","content":"x"}}],"usage":{"prompt_tokens":3,'
    b'"completion_tokens":1}}'
)
ERROR = b'{"error":{"message":"not now"}}'


@pytest.fixture(scope="module")
def replay():
    with Replay() as replay:
        yield replay


@pytest.fixture(scope="module")
def gateway(module_dir: Path, replay: Replay):
    with Workers(module_dir, CONFIG, [backend("up", replay.url, "odd")]) as workers:
        yield workers


def ask(
    gateway: Workers, path: str, *, flask: bool = False, **body: Any
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers, and body; through Flask, which gets requests with a chunked body."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    content = json.dumps(body).encode()
    connection.request(
        "POST",
        path,
        iter([content]) if flask else content,
        {"content-type": "application/json"},
        encode_chunked=flask,
    )
    response = connection.getresponse()
    found = response.status, response.getheaders(), response.read()
    connection.close()
    return found


def chat(gateway: Workers, **more: Any) -> tuple[int, list[tuple[str, str]], bytes]:
    messages = [{"role": "user", "content": "hi"}]
    return ask(gateway, "/v1/chat/completions", model="odd", messages=messages, **more)


def responds(replay: Replay, status: int, body: bytes, *headers: str) -> None:
    lines = [f"HTTP/1.1 {status} X", *headers, f"content-length: {len(body)}", "connection: close"]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    replay.scripts["odd"] = lambda _, sock: sock.sendall(head + body)


@FLASK
@pytest.mark.parametrize(("status", "body"), [(200, COMPLETION), (400, ERROR)])
def test_no_content_type_is_none(gateway, replay, status, body, flask):
    responds(replay, status, body)
    got, headers, content = chat(gateway, flask=flask)
    assert (got, content) == (status, body)
    assert "content-type" not in {name.lower() for name, _ in headers}


@FLASK
@pytest.mark.parametrize(("sent", "got"), [("soon", "1"), ("-3", "1"), ("7", "7")])
def test_the_client_gets_one_retry_after(gateway, replay, sent, got, flask):
    gateway.publish(CONFIG, [backend("up", replay.url, "odd")])
    responds(replay, 503, ERROR, "content-type: application/json", f"retry-after: {sent}")
    status, headers, content = chat(gateway, flask=flask)
    assert (status, content) == (503, ERROR)
    assert [value for name, value in headers if name.lower() == "retry-after"] == [got]
    gateway.publish(CONFIG, [backend("up", replay.url, "odd")])


@FLASK
def test_a_delay_in_the_body_is_a_retry_after(gateway, replay, flask):
    """Google's errors have no other."""
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "38.2s"}
    error = {"error": {"code": 429, "message": "no", "details": [info]}}
    gateway.publish(CONFIG, [backend(f"google {flask}", replay.url, "odd")])
    responds(replay, 429, json.dumps([error]).encode(), "content-type: application/json")
    status, headers, body = chat(gateway, flask=flask)
    assert (status, json.loads(body)) == (429, [error])
    assert [value for name, value in headers if name.lower() == "retry-after"] == ["39"]
    assert chat(gateway, flask=flask)[0] == 503, "the backend counts as busy"
    gateway.publish(CONFIG, [backend("up", replay.url, "odd")])


@FLASK
def test_a_status_that_is_none_is_a_bad_gateway(gateway, replay, flask):
    """For a dialect that passes errors on, too, and wherever the status stands."""
    speaks = backend("up", replay.url, "odd", dialects=["anthropic"])
    gateway.publish(CONFIG, [speaks])
    responds(replay, 999, ERROR, "content-type: application/json")
    messages = [{"role": "user", "content": "hi"}]
    before = gateway.settled()
    status, _, content = ask(
        gateway, "/v1/messages", flask=flask, model="odd", max_tokens=5, messages=messages
    )
    error = json.loads(content)
    assert (status, error["type"], error["error"]["code"]) == (502, "error", "malformed_answer")
    gateway.publish(CONFIG, [backend("up", replay.url, "odd", dialects=["openai"])])
    responds(replay, 200, b'{"error":{"message":"why","code":302}}')
    status, _, content = ask(
        gateway, "/v1/messages", flask=flask, model="odd", max_tokens=5, messages=messages
    )
    assert (status, json.loads(content)["error"]["code"]) == (500, "error_event")
    counted = moved(before, gateway.settled(), ["nexus_requests_total"])
    assert {dict(labels)["status"] for _, labels in counted} == {"502", "500"}


def test_a_translation_has_its_own_headers(gateway, replay):
    """Not those of what was translated: a coding, a type, a range."""
    gateway.publish(CONFIG, [backend("up", replay.url, "odd", dialects=["openai"])])
    responds(replay, 200, COMPLETION, "content-type: text/plain", "content-encoding: gzip")
    status, headers, content = ask(
        gateway,
        "/v1/messages",
        model="odd",
        max_tokens=5,
        messages=[{"role": "user", "content": "hi"}],
    )
    assert (status, json.loads(content)["type"]) == (200, "message")
    found = {name.lower(): value for name, value in headers}
    assert found["content-type"] == "application/json"
    assert "content-encoding" not in found


class Dying:
    """A backend that responds to the first request on a connection, and closes at the second."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        lines = sock.makefile("rb")
        for responds in (True, False):
            if not (line := lines.readline()):
                break
            length = 0
            while (field := lines.readline()) not in (b"\r\n", b""):
                name, _, value = field.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            lines.read(length)
            self.requests.append(line.decode().rpartition(" ")[0])
            if responds:
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        lines.close()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(sock.detach())


@FLASK
def test_a_batch_is_started_once(gateway, flask):
    """It gets no kept connection, whose end would not say whether the backend has the request."""
    dying = Dying()
    endpoints = msgspec.structs.replace(CONFIG.endpoints, files="up")
    config = msgspec.structs.replace(CONFIG, endpoints=endpoints)
    gateway.publish(config, [backend("up", dying.url, "odd")])
    for _ in range(3):
        assert ask(gateway, "/v1/batches", flask=flask, input_file_id="f")[0] == 200
    assert dying.requests == ["POST /v1/batches"] * 3
