"""The fast path: eligible requests go from the client's socket to the engine without Flask.

A request is eligible if its head is unambiguous and needs nothing special. All others go to
gunicorn's parser and Flask, with the bytes that were read.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus

import msgspec

from nexus.config.records import Server
from nexus.errors import INTERNAL_MESSAGE, RequestFailed
from nexus.http.client_watch import ClientGone, Stopping
from nexus.http.connection_pool import Connection
from nexus.proxy.engine import ClientResponse, Engine
from nexus.proxy.keepalive_comments import CommentedBody
from nexus.proxy.own_error import own_error
from nexus.proxy.relay import StreamBody, chunk
from nexus.proxy.request import Request
from nexus.proxy.responses import WholeBody
from nexus.proxy.serve import serve
from nexus.server.body_pace import BodyPace
from nexus.server.event_loop import HubDisconnectWatch, WaitScheduler
from nexus.server.refusals import dialect_of_head
from nexus.server.request_head import HeadLimits, RequestHeadParser
from nexus.server.stream_relay import BufferedWriter, StreamRelay

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus
}
log = logging.getLogger("nexus.proxy")

_LAST_SEND_S = 0.5
HEAD_S = 30.0
"""How long a request's head may take from its first byte to its last."""
_MAX_HEAD = 64 * 1024
LINGER_S = 30.0
"""How long the rest of a refused body is read and dropped. If the connection were closed at once,
the client could lose the response (RFC 9112, section 9.6)."""
_LINGER_SILENCE_S = 2.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_HEADS_REFUSED = {
    "head_too_large": f"The head of a request may have {_MAX_HEAD} bytes.",
    "head_too_slow": "The head of the request did not arrive in time.",
}
_LAST_CHUNK = b"0\r\n\r\n"


class _Clock:
    """The header lines that all responses of a second share, such as `Date`."""

    def __init__(self) -> None:
        self._second = 0
        self._lines = {True: "", False: ""}

    def lines(self, *, keep_alive: bool) -> str:
        second = int(time.time())
        if second != self._second:
            server = f"Server: gunicorn\r\nDate: {formatdate(second, usegmt=True)}\r\nConnection: "
            self._second, self._lines = (
                second,
                {True: f"{server}keep-alive\r\n", False: f"{server}close\r\n"},
            )
        return self._lines[keep_alive]


class FastPath:
    """Serves one connection while its requests are eligible."""

    _clock = _Clock()
    _head_s = 0.0

    def __init__(
        self,
        engine: Engine,
        client: socket.socket,
        limits: HeadLimits | None,
        *,
        scheduler: WaitScheduler,
        keep_alive: Callable[[], bool],
    ) -> None:
        """`keep_alive` returns whether the connection may carry another request."""
        client.setblocking(False)
        self._engine = engine
        self._client = client
        self._heads = RequestHeadParser(limits)
        self._keep_alive = keep_alive
        self._timeout_s = 0.0
        self._watch = HubDisconnectWatch(client, scheduler)
        self._writer = BufferedWriter(self._watch.sock)

    def receive(self, timeout_s: float) -> bytes:
        """The client's next bytes; empty if it closes, or sends nothing within the timeout."""
        return self._watch.receive(timeout_s)

    def complete_head(self, data: bytes, timeout_s: float) -> bytes:
        """`data` and further bytes, up to a whole head; empty if the connection is to be closed.

        A head with bare line feeds is returned incomplete: gunicorn's parser refuses it.
        """
        started = time.monotonic()
        deadline = started + min(timeout_s, HEAD_S)
        while b"\r\n\r\n" not in data and data.count(b"\n") == data.count(b"\r\n"):
            if len(data) > _MAX_HEAD:
                return self._refuse_head(data, 431, "head_too_large")
            piece = self._watch.receive(max(0.0, deadline - time.monotonic()))
            if not piece:
                if self._watch.closed():
                    return b""
                return self._refuse_head(data, 408, "head_too_slow")
            data += piece
            self._head_s = time.monotonic() - started
        if data.find(b"\r\n\r\n") > _MAX_HEAD:
            return self._refuse_head(data, 431, "head_too_large")
        return data

    def take_head_s(self) -> float:
        """How long the head of the request that is served now took to arrive."""
        head_s, self._head_s = self._head_s, 0.0
        return head_s

    def _refuse_head(self, data: bytes, status: int, reason: str) -> bytes:
        self._engine.recorder.rejected(reason)
        headers, content = own_error(
            dialect_of_head(data), _HEADS_REFUSED[reason], status=status, code=reason
        )
        lines = "\r\n".join(map(": ".join, headers))
        head = f"{_STATUS_LINES[status]}{self._clock.lines(keep_alive=False)}{lines}\r\n\r\n"
        with contextlib.suppress(OSError):
            self._writer.send(head.encode() + content, _LAST_SEND_S)
        self.linger()
        return b""

    def linger(self) -> None:
        """Close for writing, and drop what the client still sends, within limits."""
        deadline = time.monotonic() + LINGER_S
        with contextlib.suppress(OSError):
            self._watch.sock.shutdown(socket.SHUT_WR)
            while (
                self._keep_alive()
                and time.monotonic() < deadline
                and self._watch.receive(_LINGER_SILENCE_S)
            ):
                pass

    def serve(self, data: bytes) -> bytes | None:
        """Serve the request that `data` starts with.

        Returns the bytes after it; None if the connection is to be closed. Raises `NotEligible`,
        before it has done anything, and `ClientGone`.
        """
        head = self._heads.parse(data)
        engine = self._engine
        server = engine.server()
        if head is None:
            raise NotEligible
        received = engine.clock()
        self._timeout_s = server.client_timeout_seconds
        end = head.end + head.length
        if len(data) >= end:
            request = Request(
                "POST", head.target, head.headers, data[head.end : end], received, self._watch
            )
            if self._head_s:
                request.head_s = self.take_head_s()
            response = serve(engine, request)
            kept = self._write(response, keep_alive=head.keep_alive and self._keep_alive())
            return data[end:] if kept else None
        body = _Body(self._watch, self._writer, server, data[head.end :], head.length, head.expects)
        request = Request("POST", head.target, head.headers, body.read, received, self._watch)
        request.head_s = self.take_head_s()
        response = serve(engine, request)
        keep_alive = head.keep_alive and self._keep_alive() and body.complete
        if self._write(response, keep_alive=keep_alive):
            return body.pipelined
        if not body.complete and isinstance(response.body, WholeBody):
            self.linger()
        return None

    def _write(self, response: ClientResponse, *, keep_alive: bool) -> bool:
        """Write the response; returns whether the connection can carry another request."""
        body = response.body
        if isinstance(body, WholeBody):
            try:
                head = self._head(response, keep_alive=keep_alive)
                self._writer.send(head + body.content, self._timeout_s)
            except OSError:
                body.close()
                return False
            except BaseException:
                body.close()
                raise
            body.written()
            return keep_alive
        if response.status == 499:
            return False
        return self._write_stream(response, keep_alive=keep_alive)

    def _write_stream(self, response: ClientResponse, *, keep_alive: bool) -> bool:
        body, send = response.body, self._send
        chunked = not any(name == "content-length" for name, _ in response.headers)
        head = self._head(response, keep_alive=keep_alive, chunked=chunked)
        try:
            if isinstance(body, StreamBody) and (backend := body.backend) is not None:
                first, head = head + chunk(body.start()), b""
                send(first)
                keep_alive = self._relay(body, backend) and keep_alive and not body.cut
                body.written()  # a client that has all events may close now
                send(b"" if body.cut else _LAST_CHUNK)
            else:
                for piece in body:
                    data, head = head + (chunk(piece) if chunked else piece), b""
                    send(data)
                send(head + (_LAST_CHUNK if chunked else b""))
        except (OSError, ClientGone):
            return False
        except Exception:
            if head:
                raise  # the client has got nothing yet
            log.exception("response failed inside the gateway")
            return False
        except Stopping as stopping:
            if isinstance(body, StreamBody | CommentedBody):
                ending = chunk(body.stop(stopping))
                ending += b"" if isinstance(body, StreamBody) and body.cut else _LAST_CHUNK
                with contextlib.suppress(OSError):
                    self._writer.finish(ending, _LAST_SEND_S)
            raise
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()
        return keep_alive

    def _send(self, data: bytes) -> None:
        self._writer.send(data, self._timeout_s)

    def _relay(self, body: StreamBody, backend: Connection) -> bool:
        """Relay a stream; returns False if it did not end by itself."""
        relay = StreamRelay(body, backend, self._writer, timeout_s=self._timeout_s)
        try:
            relay.run()
        except ClientGone:
            if not self._writer.unsent:
                body.client_left()
            raise
        except OSError:
            raise
        except Stopping as stopping:
            ending = chunk(body.stop(stopping))
        except Exception:
            log.exception("stream failed inside the gateway")
            failure = RequestFailed("internal", INTERNAL_MESSAGE)
            ending = b"" if body.ended else chunk(body.fail(failure))
        else:
            return True
        self._writer.finish(ending, _LAST_SEND_S)
        return False

    def _head(self, response: ClientResponse, *, keep_alive: bool, chunked: bool = False) -> bytes:
        status = _STATUS_LINES.get(response.status) or f"HTTP/1.1 {response.status} Status\r\n"
        lines = "\r\n".join(map(": ".join, response.headers))
        coding = "Transfer-Encoding: chunked\r\n" if chunked else ""
        head = f"{status}{self._clock.lines(keep_alive=keep_alive)}{coding}{lines}\r\n\r\n"
        return head.encode("latin-1")

    def close(self) -> None:
        self._watch.close()


class NotEligible(Exception):
    """The request is for gunicorn's parser."""


class _Body(msgspec.Struct):
    """The body of a request, of which only a part arrived with the head.

    Attributes:
        first: The part that arrived with the head.
        length: Bytes of the whole body.
        expects: The client waits for `100 Continue` before it sends the body.
        pipelined: Bytes after the body.
    """

    watch: HubDisconnectWatch
    writer: BufferedWriter
    server: Server
    first: bytes
    length: int
    expects: bool
    complete: bool = False
    pipelined: bytes = b""

    def read(self, limit: int, hold: Callable[[int], None]) -> bytes:
        """The whole body. Raises `RequestFailed` for one too large, too slow or cut short."""
        if self.length > limit:
            raise RequestFailed(
                "body_too_large", f"The body is {self.length} bytes; at most {limit} are taken."
            )
        pieces, received = [self.first], len(self.first)
        hold(received)
        pace = BodyPace(time.monotonic(), self.server)
        try:
            if self.expects and not self.first:
                self.writer.send(_CONTINUE, self.server.client_timeout_seconds)
            while received < self.length:
                piece = self.watch.receive(max(0.0, pace.remaining_s(time.monotonic(), received)))
                if not piece:
                    raise self._short(received)
                hold(len(piece))
                pieces.append(piece)
                received += len(piece)
        except OSError as error:
            raise ClientGone from error
        body = b"".join(pieces)
        self.pipelined = body[self.length :]
        self.complete = True
        return body[: self.length] if self.pipelined else body

    def _short(self, received: int) -> RequestFailed:
        if self.watch.closed():
            return RequestFailed(
                "body_cut_short", f"The body ended after {received} of {self.length} bytes."
            )
        return RequestFailed("body_too_slow", "The body did not arrive in time.")
