"""Endpoints that the operators add: over the fast path and through Flask."""

import hashlib
import http.client
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.access.limited import key_of, keys_toml
from tests.server.asking import Reply, ask
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Gateway, get_json

pytestmark = pytest.mark.e2e

WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}
CUSTOM = """
[[endpoints.custom]]
path = "/tokenize"
[[endpoints.custom]]
path = "/v1/audio/voices"
body = "multipart"
model = "form:model"
name = "voices"
[[endpoints.custom]]
path = "/v1/video"
streams = true
[[endpoints.custom]]
path = "/version"
body = "none"
model = "backend:one"
[[endpoints.custom]]
path = "/v1/train"
model = "backend:two"
streams = true
"""
SETTINGS = """
[circuit_breaker]
enabled = false
[auth]
mode = "keys"
[routing]
strategy = "priority_only"
[routing.aliases]
old = "m"
[[limits]]
name = "two"
requests = "2/h"
match = { key = "two", endpoint = "token*" }
"""
FAMILIES = (
    "nexus_requests_started_total",
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_http_rejected_total",
    "nexus_tokens_total_sum",
    "nexus_upload_bytes_count",
    "nexus_stream_ends_total",
    "nexus_upstream_attempts_total",
)


class Backend:
    """A backend that says what it got, in the form that the path asks for."""

    def __init__(self, name: str) -> None:
        self.name, self.last, self.dies = name, dict[str, Any](), False
        this = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                this.answer(self)

            do_POST = do_GET  # noqa: N815 - its base class calls it so

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        body = handler.rfile.read(int(handler.headers["content-length"] or 0))
        if path == "/v1/models":
            return self._send(handler, b'{"data":[{"id":"m"}]}')
        self.last = {"path": handler.path, "method": handler.command, "body": body}
        if self.dies:
            handler.close_connection = True
            return None
        if path == "/v1/train":
            return self._send(handler, b"")
        if path == "/version":
            return self._send(handler, b"<html>1.0</html>", "text/html")
        if path != "/v1/video":
            sha256 = hashlib.sha256(body).hexdigest()
            said = {"sha256": sha256, "usage": {"prompt_tokens": 7, "total_tokens": 7}}
            return self._send(handler, json.dumps(said).encode())
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream" if b"sse" in body else "video/x")
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        for piece in (b"some ", b"bytes", b"", b"!") if b"cut" in body else (b"some ", b"bytes"):
            if not piece:
                handler.close_connection = True
                return None
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n")
        return None

    def _send(
        self, handler: BaseHTTPRequestHandler, body: bytes, kind: str = "application/json"
    ) -> None:
        handler.send_response(200)
        handler.send_header("content-type", kind)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


class Fleet:
    def __init__(self, gateway: Gateway, one: Backend, two: Backend, config: str) -> None:
        self.gateway, self.one, self.two, self.config = gateway, one, two, config
        self._before = gateway.settled()

    def moves(self) -> dict[str, float]:
        """What has moved since the last call, by family and label values."""
        before, self._before = self._before, self.gateway.settled()
        return {
            f"{name} {' '.join(value for _, value in sorted(labels))}".strip(): change
            for (name, labels), change in moved(before, self._before, FAMILIES).items()
        }

    def ask(self, path: str, body: Any = None, *, key: str = "any", **more: Any) -> Reply:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        authorization = f"Bearer {key_of(key)}"
        return ask(self.gateway, path, **{"body": data, "authorization": authorization, **more})

    def reload(self, config: str) -> None:
        reloads = len(self.gateway.lines("configuration reloaded"))
        self.gateway.write(config)
        os.kill(self.gateway.health_pid(), signal.SIGHUP)
        assert until(lambda: len(self.gateway.lines("configuration reloaded")) > reloads)


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def running(request, tmp_path_factory) -> Iterator[Fleet]:
    one, two = Backend("one"), Backend("two")
    keys = keys_toml("any", "two") + keys_toml("few") + 'endpoints = ["voices"]\n'
    backends = "".join(
        f'[[backends]]\nname = "{one.name}"\nurl = "{one.url}"\ntype = "generic"\n'
        f"priority = {number}\n"
        for number, one in enumerate((one, two), 1)
    )
    config = CUSTOM + SETTINGS + keys + backends
    directory = tmp_path_factory.mktemp("own")
    with Gateway(directory, config, workers=1, environ=request.param) as gateway:
        yield Fleet(gateway, one, two, config)
    for backend in (one, two):
        backend.server.shutdown()
        backend.server.server_close()


@pytest.fixture
def fleet(running: Fleet) -> Iterator[Fleet]:
    running.moves()
    yield running
    running.one.dies = False


def counted(name: str, **more: float) -> dict[str, float]:
    return {
        f"nexus_requests_started_total {name}": 1,
        "nexus_requests_total one m 200": 1,
        "nexus_upstream_attempts_total one ok": 1,
        **more,
    }


def test_the_model_of_a_json_body_decides(fleet):
    body = {"model": "old", "prompt": "hello", "stream": "any value"}
    reply = fleet.ask("/tokenize?add=1", body)
    assert reply.status == 200
    assert fleet.one.last["path"] == "/tokenize?add=1"
    assert json.loads(fleet.one.last["body"]) == {**body, "model": "m"}
    tokens = {"nexus_tokens_total_sum one m prompt": 7}
    assert fleet.moves() == counted("tokenize") | tokens


def test_another_backend_is_tried(fleet):
    fleet.one.dies = True
    reply = fleet.ask("/tokenize", {"model": "m"})
    assert (reply.status, reply.headers["x-nexus-backend"]) == (200, "two")
    moves = fleet.moves()
    assert moves["nexus_upstream_attempts_total one backend_error"] == 1
    assert moves["nexus_requests_total two m 200"] == 1


def test_the_model_of_a_form_decides(fleet):
    body = (
        b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--x\r\n'
        b'content-disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n--x--\r\n'
    )
    form = {"content-type": "multipart/form-data; boundary=x"}
    reply = fleet.ask("/audio/voices", key="few", body=body, headers=form)
    assert json.loads(reply.content)["sha256"] == hashlib.sha256(body).hexdigest()
    moves = fleet.moves()
    assert moves["nexus_requests_started_total voices"] == moves["nexus_upload_bytes_count"] == 1


@pytest.mark.parametrize("kind", ["video", "sse"])
def test_responses_pass_piece_by_piece(fleet, kind):
    reply = fleet.ask("/v1/video", {"model": "m", "kind": kind})
    assert (reply.status, reply.content) == (200, b"some bytes")
    assert fleet.moves() == counted("video") | {"nexus_stream_ends_total one complete": 1}


def test_a_response_that_breaks_off_is_cut(fleet):
    body = json.dumps({"model": "m", "kind": "cut"})
    headers = {"content-type": "application/json", "authorization": f"Bearer {key_of('any')}"}
    with closing(http.client.HTTPConnection("127.0.0.1", fleet.gateway.port)) as client:
        client.request("POST", "/v1/video", body, headers)
        with pytest.raises(http.client.IncompleteRead) as caught:
            client.getresponse().read()
    assert caught.value.partial == b"some bytes"
    assert fleet.moves() == {
        "nexus_requests_started_total video": 1,
        "nexus_requests_total one m 502": 1,
        "nexus_errors_total stream_interrupted m": 1,
        "nexus_upstream_attempts_total one stream_interrupted": 1,
        "nexus_stream_ends_total one upstream_reset": 1,
    }


def test_one_backend_gets_all(fleet):
    reply = fleet.ask("/version", method="GET", headers={})
    assert (reply.status, reply.content) == (200, b"<html>1.0</html>")
    assert fleet.moves() == {
        "nexus_requests_started_total version": 1,
        "nexus_requests_total one unknown 200": 1,
        "nexus_upstream_attempts_total one ok": 1,
    }
    reply = fleet.ask("/v1/train", ["not", "an", "object"])
    assert (reply.status, reply.content, fleet.two.last["body"]) == (
        200,
        b"",
        b'["not", "an", "object"]',
    )
    assert fleet.moves()["nexus_requests_total two unknown 200"] == 1


@pytest.mark.parametrize(
    ("path", "more", "status", "code"),
    [
        ("/tokenize", {"body": {}}, 400, "invalid_request"),
        ("/tokenize", {"body": {"model": "nobody"}}, 404, "model_not_found"),
        ("/tokenize", {"method": "GET"}, 405, "method_not_allowed"),
        ("/tokenize", {"body": {}, "headers": {"content-type": "text/plain"}}, 415,
         "unsupported_media_type"),
        ("/tokenize", {"body": {}, "key": "few"}, 403, "endpoint_not_allowed"),
        ("/version", {"method": "GET", "key": "nobody"}, 401, "invalid_api_key"),
        ("/v1/tokenize", {"body": {}}, 404, "not_found"),
        ("/other", {"body": {}}, 404, "not_found"),
    ],
)  # fmt: skip
def test_refusals(fleet, path, more, status, code):
    reply = fleet.ask(path, **more)
    assert (reply.status, reply.code) == (status, code)
    rejected = fleet.moves().get(f"nexus_http_rejected_total {code}", 0)
    assert rejected == (code == "not_found")


def test_limits_hold(fleet):
    statuses = [fleet.ask("/tokenize", {"model": "m"}, key="two").status for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert fleet.ask("/v1/video", {"model": "m"}, key="two").status == 200


def test_openapi_describes_them(fleet):
    paths = get_json(f"{fleet.gateway.base}/openapi.json")["paths"]
    assert set(paths["/version"]) == {"get"}
    body = paths["/tokenize"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["model"]
    assert "multipart/form-data" in paths["/v1/audio/voices"]["post"]["requestBody"]["content"]


def test_a_reload_changes_them(fleet):
    """Also for a client whose connection stays open, and whose requests are all alike."""
    body = json.dumps({"model": "m"})
    headers = {"content-type": "application/json", "authorization": f"Bearer {key_of('any')}"}
    with closing(http.client.HTTPConnection("127.0.0.1", fleet.gateway.port)) as client:

        def status(path: str = "/tokenize") -> int:
            client.request("POST", path, body, headers)
            answer = client.getresponse()
            answer.read()
            return answer.status

        assert (status(), status()) == (200, 200)
        fleet.reload(fleet.config.replace('"/tokenize"', '"/v1/detokenize"'))
        try:
            assert until(lambda: status() == 404)
            assert (status(), status("/v1/detokenize"), status("/detokenize")) == (404, 200, 200)
        finally:
            fleet.reload(fleet.config)
        assert until(lambda: status() == 200)
