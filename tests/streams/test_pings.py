"""Pings of the gateway's own, for a client whose backend is silent within a stream."""

import contextlib
import http.client
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus.config import Config
from nexus.config.records import Server
from nexus.config.routing_records import Routing
from tests.support.processes import ROOT, Workers, backend
from tests.support.replay import HEAD, Replay

pytestmark = pytest.mark.e2e

FLASK = pytest.mark.parametrize("flask", [False, True], ids=["fast path", "flask"])
SOON = "from nexus.dialects import anthropic\nanthropic.PING_S = 0.3\n"
"""Python runs `sitecustomize.py` at the start of every process."""
PING = b'event: ping\ndata: {"type": "ping"}\n\n'


def event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


START = event("message_start", message={"id": "m", "usage": {"input_tokens": 3}})
DELTA = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "x"})
END = event("message_delta", usage={"output_tokens": 1}) + event("message_stop")
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'


class Silent:
    """A backend that sends its first part, and the rest when it is told to."""

    def __init__(self, first: bytes, rest: bytes) -> None:
        self.go_on = threading.Event()
        self._first, self._rest = first, rest

    def __call__(self, _: object, sock: socket.socket) -> None:
        head = HEAD + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        sock.sendall(head + b"%x\r\n%b\r\n" % (len(self._first), self._first))
        if self.go_on.wait(20) and self._rest:
            sock.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(self._rest), self._rest))


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    with Replay() as replay:
        yield replay


@pytest.fixture(scope="module")
def gateway(module_dir: Path, replay: Replay) -> Iterator[Workers]:
    (module_dir / "sitecustomize.py").write_text(SOON)
    environ = {"PYTHONPATH": os.pathsep.join([str(module_dir), str(ROOT)])}
    config = Config(routing=Routing(max_retries=0))
    with Workers(
        module_dir, config, [backend("up", replay.url, "m")], workers=1, environ=environ
    ) as workers:
        yield workers


@contextlib.contextmanager
def opened(gateway: Workers, path: str, *, flask: bool) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    request = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    body = json.dumps(request).encode()
    headers = {"content-type": "application/json"}
    connection.request("POST", path, iter([body]) if flask else body, headers, encode_chunked=flask)
    try:
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def read_until(response: http.client.HTTPResponse, end: bytes) -> bytes:
    content = b""
    while not content.endswith(end):
        piece = response.read1()
        assert piece, content
        content += piece
    return content


@FLASK
@pytest.mark.parametrize("first", [START, START + DELTA])
def test_a_silent_message(gateway, replay, first, flask):
    """After what has come, and never before: until then another backend could be tried."""
    replay.scripts["m"] = silent = Silent(first, DELTA + END)
    before = gateway.settled()
    with opened(gateway, "/v1/messages", flask=flask) as response:
        assert read_until(response, 2 * PING) == first + 2 * PING
        silent.go_on.set()
        rest = response.read()
    assert rest.removeprefix(PING) == DELTA + END
    after = gateway.settled()
    pings = 2 + rest.startswith(PING)
    name = "nexus_stream_pings_total"
    assert after.value(name) - before.value(name) == pings
    ends = {"backend": "up", "reason": "complete"}
    assert after.total("nexus_stream_ends_total", **ends) == 1 + before.total(
        "nexus_stream_ends_total", **ends
    )


@FLASK
def test_other_streams_have_none_unless_they_are_wanted(gateway, replay, flask):
    wanted = Config(server=Server(stream_keepalive_seconds=0.3), routing=Routing(max_retries=0))
    for config, comment in ((wanted, b": waiting\n\n"), (Config(), b"")):
        gateway.publish(config, [backend("up", replay.url, "m", idle_timeout_seconds=1)])
        replay.scripts["m"] = Silent(CHUNK, b"")
        with opened(gateway, "/v1/chat/completions", flask=flask) as response:
            content = response.read()
        assert content.startswith(CHUNK + 2 * comment)
        assert comment or b": waiting" not in content
        assert b"stream_idle" in content, "the limit holds all the same"
    gateway.publish(Config(routing=Routing(max_retries=0)), [backend("up", replay.url, "m")])
