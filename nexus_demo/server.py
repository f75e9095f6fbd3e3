"""The demo backend's server: HTTP/1.1 over gevent, close enough to the socket to break off
anywhere."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import gevent
from gevent.server import StreamServer
from httptools import HttpParserError, HttpRequestParser

from nexus_demo import files, media, messages, responses, stored_responses
from nexus_demo.faults import FaultSource, FaultSpec
from nexus_demo.prefix_cache import PrefixCache

_PIECE_BYTES = 64 * 1024
_LONGEST_SHOWN = 4 * 1024 * 1024
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}


_NOT_THERE: dict[str, tuple[str, ...]] = {
    "any": ("/props",),
    "ollama": ("/health", "/props"),
    "llamacpp": ("/api/tags", "/api/show"),
    "vllm": ("/props", "/api/tags", "/api/show"),
    "generic": ("/props", "/api/tags", "/api/show"),
}


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How a demo backend behaves when nothing is wrong."""

    name: str = "demo"
    models: tuple[str, ...] = ("demo-small",)
    pace: float = 40.0  # events a second; 0 for as fast as it can
    length: int = 40  # words of an answer
    usage: str = "asked"  # in streams: "asked", "always" or "never"
    seed: int = 0
    kind: str = "any"  # whose management paths: "ollama", "llamacpp", "vllm", "generic", "any"
    cache_blocks: int = 0  # of the simulated prefix cache; 0 for none
    prefill_ms: float = 1.0  # for each block that is not cached
    slots: int = 8  # requests that it works on at once, if it has a cache
    says: dict[str, Any] = field(
        default_factory=dict
    )  # path → what it answers to a GET there; None: 404


class _Request:
    """One request as the parser calls it out."""

    def __init__(self) -> None:
        self.path = ""
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True


class DemoBackend:
    """Serves until stopped; `tally` counts what it was asked and how it answered; `last` is the
    last request."""

    def __init__(self, manner: Behaviour, fault: FaultSpec) -> None:
        self.manner = manner
        self._faults = FaultSource(fault)
        self._rng = random.Random(manner.seed)
        self._cache = (
            PrefixCache(manner.cache_blocks, prefill_s=manner.prefill_ms / 1000, slots=manner.slots)
            if manner.cache_blocks
            else None
        )
        self.requests: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.models: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.open = self.most_open = 0
        self._hurried = 0
        self.last: dict[str, Any] = {}
        self._stored = stored_responses.StoredResponses()
        self._files = files.FileStore()
        self._generated = {
            *responses.GENERATED, *media.FORMS, media.SPEECH, messages.PATH, stored_responses.PATH,
        }  # fmt: skip
        self._computed = responses.COMPUTED | messages.COMPUTED
        self._routes: dict[tuple[str, str], Callable[[_Request], Any]] = {
            ("GET", "/v1/models"): lambda _: responses.model_list(
                list(manner.models), manner.name, context=manner.kind in ("any", "vllm")
            ),
            ("GET", "/health"): lambda _: {"status": "ok"},
            ("GET", "/props"): lambda _: {"total_slots": 4},
            ("GET", "/api/tags"): lambda _: responses.ollama_tags(list(manner.models)),
            ("POST", "/api/show"): lambda request: responses.ollama_show(
                str(_json(request).get("model"))
            ),
            ("GET", "/demo/tally"): lambda _: self.tally(),
            ("GET", "/demo/last"): lambda _: self.last,
            ("POST", "/demo/fault"): self._set_fault,
            ("POST", "/demo/hurry"): self._hurry,
            ("POST", "/demo/forget"): self._forget,
        }
        for path, said in manner.says.items():
            self._routes["GET", path] = partial(_said, said)
        for path in (
            *_NOT_THERE[manner.kind],
            *(path for path, said in manner.says.items() if said is None),
        ):
            for method in ("GET", "POST"):
                self._routes.pop((method, path), None)

    def serve(self, host: str, port: int) -> StreamServer:
        """Listen; the caller keeps the server running. Port 0 takes a free one
        (`server.server_port`)."""
        server = StreamServer((host, port), self._handle)
        server.start()
        return server

    def tally(self) -> dict[str, Any]:
        """Counts of proxied requests by path, model and status (`cut`: broken off by us, `gone`:
        by the caller)."""
        return {
            "requests": dict(self.requests),
            "models": dict(self.models),
            "statuses": dict(self.statuses),
            "events": dict(self.events),
            "open": self.open,
            "most_open": self.most_open,
            "blocks": {"found": self._cache.found, "seen": self._cache.seen} if self._cache else {},
        }

    def _set_fault(self, request: _Request) -> Any:
        spec = FaultSpec.parse(request.body.decode())
        self._faults = FaultSource(spec)
        return asdict(spec)

    def _hurry(self, _: _Request) -> Any:
        """Streams that go on send what is left of them at once."""
        self._hurried += 1
        return self.tally()

    def _forget(self, _: _Request) -> Any:
        """The simulated prefix cache is empty again."""
        if self._cache is not None:
            self._cache.clear()
        return self.tally()

    def _handle(self, sock: socket.socket, _address: object) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while self._serve_one(sock):
                pass
        except (OSError, HttpParserError):
            pass
        finally:
            sock.close()

    def _serve_one(self, sock: socket.socket) -> bool:
        """One request; False where the connection ends with it."""
        request = _Request()
        parser = HttpRequestParser(request)
        while not request.complete:
            data = sock.recv(65536)
            if not data:
                return False
            parser.feed_data(data)
        method = parser.get_method().decode()
        path = request.path.partition("?")[0]
        route = self._routes.get((method, path))
        if route is not None:
            if path in ("/v1/models", "/api/tags", "/health") and self._faults.spec.models:
                return self._strike(sock, self._faults.next(), path, request.headers)
            try:
                _respond(sock, 200, route(request))
            except ValueError as error:
                _respond(sock, 400, responses.error(str(error), code="invalid"))
            return True
        if path.startswith(f"{stored_responses.PATH}/"):
            return self._below_responses(sock, request, method, path)
        if f"{path}/".startswith(("/v1/files/", "/v1/batches/")):
            return self._file(sock, request, method, path)
        if method != "POST" or path not in self._generated | self._computed.keys():
            _respond(sock, 404, responses.error(f"nothing at {method} {path}", code="not_found"))
            return True
        return self._proxied(sock, request, path)

    def _below_responses(
        self, sock: socket.socket, request: _Request, method: str, path: str
    ) -> bool:
        self._note(request)
        self.requests[f"{method} {path}"] += 1
        fault = self._faults.next()
        if fault.status or fault.hang or fault.close or fault.reset or fault.malformed:
            return self._strike(sock, fault, path, request.headers)
        status, said = self._stored.answer(method, path)
        self.statuses[str(status)] += 1
        _respond(sock, status, said)
        return True

    def _file(self, sock: socket.socket, request: _Request, method: str, path: str) -> bool:
        self._note(request)
        self.requests[f"{method} {path}"] += 1
        fault = self._faults.next()
        if fault.status or fault.hang or fault.close or fault.reset or fault.malformed:
            return self._strike(sock, fault, path, request.headers)
        content_type = request.headers.get("content-type", "")
        try:
            status, said = self._files.answer(method, path, content_type, bytes(request.body))
        except ValueError as error:
            status, said = 400, responses.error(str(error), code="invalid")
        if isinstance(said, bytes):
            pieces = (said[n : n + _PIECE_BYTES] for n in range(0, len(said), _PIECE_BYTES))
            return self._pieces(sock, "application/octet-stream", pieces, fault)
        self.statuses[str(status)] += 1
        _respond(sock, status, said)
        return True

    def _note(self, request: _Request) -> None:
        self.last = {
            "target": request.path,
            "headers": request.headers,
            "body": request.body[:_LONGEST_SHOWN].decode("latin-1"),
            "sha256": hashlib.sha256(request.body).hexdigest(),
        }

    def _proxied(self, sock: socket.socket, request: _Request, path: str) -> bool:
        if request.body == b"{}":  # so gateways find out which paths there are
            _respond(sock, 400, responses.error("a model is required", code="invalid"))
            return True
        self._note(request)
        given = request.headers.get("x-demo-fault")
        try:
            fault = FaultSpec.parse(given) if given is not None else self._faults.next()
            body = {} if fault.unread else _fields(request, path)
        except ValueError as error:
            _respond(sock, 400, responses.error(str(error), code="invalid"))
            return True
        self.requests[path] += 1
        self.models[str(body.get("model"))] += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            return self._answer(sock, request, body, path, fault)
        except OSError:
            self.statuses["gone"] += 1
            raise
        finally:
            self.open -= 1

    def _answer(
        self,
        sock: socket.socket,
        request: _Request,
        body: dict[str, Any],
        path: str,
        fault: FaultSpec,
    ) -> bool:
        if fault.delay and not _wait(sock, fault.delay):
            self.statuses["gone"] += 1
            return False
        if fault.status or fault.hang or fault.close or fault.reset or fault.malformed:
            return self._strike(sock, fault, path, request.headers)
        usage = not fault.no_usage
        if path in (media.SPEECH, media.IMAGES, *media.FORMS):
            if body.get("stream") in (True, "true") or body.get("stream_format") == "sse":
                reply = media.MediaReply(body, path)
                return self._stream(sock, reply, fault, request.headers, usage=usage)
            if path == media.SPEECH:
                return self._pieces(sock, "audio/mpeg", media.speech(body), fault)
            if path in media.TRANSCRIPTIONS:
                return self._transcript(sock, body, fault)
            if path in media.FORMS:
                return self._whole(sock, responses.images(body, usage=usage), fault)
        if (compute := self._computed.get(path)) is not None:
            return self._whole(sock, compute(body, usage=usage), fault)
        if self._cache is not None:
            with self._cache.slots:
                cached, prefill_s = self._cache.read(body)
                if prefill_s and not _wait(sock, prefill_s):
                    self.statuses["gone"] += 1
                    return False
                return self._reply(sock, request, body, fault, cached_tokens=cached)
        return self._reply(sock, request, body, fault)

    def _reply(
        self,
        sock: socket.socket,
        request: _Request,
        body: dict[str, Any],
        fault: FaultSpec,
        *,
        cached_tokens: int | None = None,
    ) -> bool:
        usage, path = not fault.no_usage, request.path.partition("?")[0]
        if path == messages.PATH:
            message = messages.MessageReply(body, rng=self._rng, length=self.manner.length)
            if body.get("stream") is True:
                return self._stream(sock, message, fault, request.headers, usage=usage)
            return self._whole(sock, message.whole(usage=usage), fault)
        if path == stored_responses.PATH:
            named = body.get("previous_response_id")
            if named is not None and named not in self._stored:
                self.statuses["404"] += 1
                _respond(sock, 404, stored_responses.missing(named))
                return True
            response = stored_responses.ResponseReply(
                body, rng=self._rng, length=self.manner.length
            )
            self._stored.add(response, body)
            if body.get("stream") is True:
                return self._stream(sock, response, fault, request.headers, usage=usage)
            said = response.queued() if body.get("background") is True else None
            return self._whole(sock, said or response.whole(usage=usage), fault)
        reply = responses.Reply(
            body, chat=responses.GENERATED[path], rng=self._rng, length=self.manner.length
        )
        if cached_tokens is not None:
            reply.usage["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
        if body.get("stream") is True:
            reply.usage_asked = {"always": True, "never": False}.get(
                self.manner.usage, reply.usage_asked
            )
            return self._stream(sock, reply, fault, request.headers, usage=usage)
        return self._whole(sock, reply.whole(usage=usage), fault)

    def _pieces(
        self, sock: socket.socket, content_type: str, pieces: Iterable[bytes], fault: FaultSpec
    ) -> bool:
        """Answer with bytes that are no JSON."""
        sock.sendall(_head(200, content_type, "transfer-encoding: chunked"))
        for sent, piece in enumerate(pieces):
            if sent in (fault.break_after, fault.stall_after):
                self.statuses["cut"] += 1
                if sent == fault.stall_after:
                    _wait(sock, 3600)
                return False
            if self.manner.pace and sent and not _wait(sock, 1 / self.manner.pace):
                self.statuses["gone"] += 1
                return False
            _chunk(sock, piece)
        sock.sendall(b"0\r\n\r\n")
        self.statuses["200"] += 1
        return True

    def _transcript(self, sock: socket.socket, body: dict[str, Any], fault: FaultSpec) -> bool:
        said = media.transcript(body)
        if body.get("response_format") != "text":
            return self._whole(sock, said, fault)
        text = f"{said['text']}\n".encode()
        sock.sendall(_head(200, "text/plain", f"content-length: {len(text)}") + text)
        self.statuses["200"] += 1
        return True

    def _strike(
        self, sock: socket.socket, fault: FaultSpec, path: str, headers: dict[str, str]
    ) -> bool:
        if fault.status:
            self.statuses[str(fault.status)] += 1
            extra = [f"retry-after: {fault.retry_after}"] if fault.retry_after else []
            extra += [f"location: {fault.location}"] if fault.location else []
            message = fault.message or f"{path} fails as asked"
            if fault.body == "echo":
                message = f"wrong key: {headers.get('authorization')}"
            error = responses.error(message, code=fault.error_code or "demo_fault", kind=fault.kind)
            if fault.body in ("", "echo"):
                _respond(sock, fault.status, error, extra)
                return True
            return self._other_body(sock, fault, json.dumps(error).encode(), extra)
        self.statuses["cut"] += 1
        if fault.hang:
            _wait(sock, 3600)
        elif fault.malformed:
            sock.sendall(b"HTTP/1.1 banana\r\n\r\nwhat?")
        elif fault.reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    def _other_body(
        self, sock: socket.socket, fault: FaultSpec, error: bytes, extra: list[str]
    ) -> bool:
        """Answer with one of `BODIES`; False where the connection ends with it."""
        kind, content = "application/json", error
        if fault.body == "html":
            kind, content = (
                "text/html",
                b"<!DOCTYPE html><html><head><title>Tunnel offline</title></head></html>",
            )
        elif fault.body == "empty":
            content = b""
        elif fault.body == "nan":
            content = b'{"id":"x","object":"chat.completion","choices":[{"index":0,"logprob":NaN}]}'
        elif fault.body == "large":
            content = b'{"object":"list","data":"' + b"x" * fault.size + b'"}'
        if fault.body in ("cut", "unclosed"):
            content = (
                b'{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"hal"}}'
            )
            content += b"]}" if fault.body == "unclosed" else b""
            sock.sendall(_head(fault.status, kind, "connection: close", *extra) + content)
            return False
        if fault.body == "blank":
            sock.sendall(_head(fault.status, kind, "connection: close", *extra))
            while True:
                sock.sendall(b"\n" * 16384)
        sent = content if fault.body not in ("stalled", "dripped") else content[:8]
        sock.sendall(_head(fault.status, kind, f"content-length: {len(content)}", *extra) + sent)
        while fault.body == "dripped" and len(sent) < len(content) and _wait(sock, 0.5):
            sock.sendall(content[len(sent) : len(sent) + 1])
            sent = content[: len(sent) + 1]
        if fault.body == "stalled":
            _wait(sock, 3600)
        return len(sent) == len(content)

    def _whole(self, sock: socket.socket, answer: dict[str, Any], fault: FaultSpec) -> bool:
        if fault.break_after >= 0 or fault.stall_after >= 0:
            content = json.dumps(answer).encode()
            sock.sendall(
                _head(200, "application/json", f"content-length: {len(content)}")
                + content[: len(content) // 2]
            )
            self.statuses["cut"] += 1
            if fault.stall_after >= 0:
                _wait(sock, 3600)
            return False
        _respond(sock, 200, answer, [fault.header] if fault.header else [])
        self.statuses["200"] += 1
        return True

    def _stream(
        self,
        sock: socket.socket,
        reply: responses.Reply
        | media.MediaReply
        | messages.MessageReply
        | stored_responses.ResponseReply,
        fault: FaultSpec,
        headers: dict[str, str],
        *,
        usage: bool,
    ) -> bool:
        sock.sendall(
            _head(
                200,
                "text/event-stream; charset=utf-8",
                "transfer-encoding: chunked",
                "cache-control: no-cache",
            )
        )
        pause = 1 / self.manner.pace if self.manner.pace > 0 else 0
        hurried = self._hurried
        for sent, event in enumerate(reply.events(usage=usage)):
            if pause and sent and self._hurried == hurried and not _wait(sock, pause):
                self.statuses["gone"] += 1
                return False
            if sent == fault.break_after:
                self.statuses["cut"] += 1
                return False
            if sent == fault.stall_after:
                self.statuses["cut"] += 1
                _wait(sock, 3600)
                return False
            if sent == fault.error_after:
                message = (
                    f"wrong key: {headers.get('authorization')}"
                    if fault.body == "echo"
                    else "the stream fails as asked"
                )
                _chunk(sock, reply.error(message, fault.error_code) + reply.END)
                sock.sendall(b"0\r\n\r\n")
                self.statuses["cut"] += 1
                return True
            if fault.no_done and reply.is_end(event):
                break
            _chunk(sock, reply.encode(event))
            self.events["sent"] += 1
        if not fault.no_done and reply.END:
            _chunk(sock, reply.END)
        sock.sendall(b"0\r\n\r\n")
        self.statuses["cut" if fault.no_done else "200"] += 1
        return True


def _said(said: Any, _request: _Request) -> Any:
    return said


def _json(request: _Request) -> dict[str, Any]:
    body = json.loads(request.body)
    if not isinstance(body, dict):
        raise ValueError("the body must be an object")
    return body


def _fields(request: _Request, path: str) -> dict[str, Any]:
    if path in media.FORMS:
        return media.form(request.headers.get("content-type", ""), bytes(request.body))
    return _json(request)


def _wait(sock: socket.socket, seconds: float) -> bool:
    """Wait; False at once when the caller closes its side meanwhile."""
    try:
        with gevent.Timeout(seconds):
            return bool(sock.recv(1, socket.MSG_PEEK))
    except gevent.Timeout:
        return True
    except OSError:
        return False


def _head(status: int, content_type: str, *headers: str) -> bytes:
    lines = [
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}",
        f"content-type: {content_type}",
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _respond(
    sock: socket.socket, status: int, answer: Any, headers: list[str] | None = None
) -> None:
    content = b"" if status == 204 else json.dumps(answer).encode()
    length = [] if status == 204 else [f"content-length: {len(content)}"]
    sock.sendall(_head(status, "application/json", *length, *(headers or ())) + content)


def _chunk(sock: socket.socket, data: bytes) -> None:
    sock.sendall(b"%x\r\n%s\r\n" % (len(data), data))
