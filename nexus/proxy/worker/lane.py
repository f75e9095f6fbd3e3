"""The short way: plain requests go from the client's socket straight to the engine, and their answers straight back.

What gunicorn and Flask would do for such a request is done here once, or not needed. Whatever is not plain is left
untouched for gunicorn, with the bytes that were read.
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

from nexus.errors import RequestFailed
from nexus.proxy.client import ClientGone, Request, Stopping
from nexus.proxy.comments import CommentedBody
from nexus.proxy.connections import Connection
from nexus.proxy.engine import Answer, Engine
from nexus.proxy.exchange import Exchange, WholeBody
from nexus.proxy.relay import StreamBody, chunk
from nexus.proxy.worker.heads import HeadReader, Limits
from nexus.proxy.worker.hub import HubRelay, HubWatch, Outlet, Waits

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
log = logging.getLogger("nexus.proxy")

_TO_SAY_GOODBYE_S = 0.5
_MOST_DRAINED = 1024 * 1024
"""Bytes of a body that are read though it was refused: where they are not, the client may never see why it was."""
_LAST_CHUNK = b"0\r\n\r\n"


class _Clock:
    """The lines that all answers of a second have, `Date` among them."""

    def __init__(self) -> None:
        self._second = 0
        self._lines = {True: "", False: ""}

    def lines(self, *, keep_alive: bool) -> str:
        second = int(time.time())
        if second != self._second:
            server = f"Server: gunicorn\r\nDate: {formatdate(second, usegmt=True)}\r\nConnection: "
            self._second, self._lines = second, {True: f"{server}keep-alive\r\n", False: f"{server}close\r\n"}
        return self._lines[keep_alive]


class Lane:
    """Serves one connection for as long as its requests are plain."""

    _clock = _Clock()

    def __init__(
        self,
        engine: Engine,
        client: socket.socket,
        limits: Limits,
        *,
        waits: Waits,
        keep_alive: Callable[[], bool],
    ) -> None:
        """`keep_alive` says, when an answer begins, whether the connection may carry another request."""
        client.setblocking(False)
        self._engine = engine
        self._client = client
        self._heads = HeadReader(limits)
        self._keep_alive = keep_alive
        self._timeout_s = 0.0
        self._watch = HubWatch(client, waits)
        self._outlet = Outlet(self._watch.sock)

    def receive(self, timeout_s: float) -> bytes:
        """What the client sends next; empty where it closes, or sends nothing for so long."""
        return self._watch.receive(timeout_s)

    def serve(self, data: bytes) -> bytes | None:
        """Serve the request that `data` begins with.

        Gives what the client sent after it, None where the connection is to be closed. Raises `NotPlain` where the
        request is not plain, before anything was done, and `ClientGone`.
        """
        head = self._heads.read(data)
        engine = self._engine
        server = engine.server()
        if head is None or head.length > server.max_request_bytes:
            raise NotPlain
        received = engine.clock()
        self._timeout_s = server.client_timeout_seconds
        end = head.end + head.length
        if len(data) >= end:
            request = Request("POST", head.target, head.headers, data[head.end : end], received, self._watch)
            answer = Exchange(engine, request, head.target.endpoint).answer()
            return data[end:] if self._write(answer, keep_alive=head.keep_alive and self._keep_alive()) else None
        body = _Body(self._watch, data[head.end :], head.length, self._timeout_s)
        request = Request("POST", head.target, head.headers, body.read, received, self._watch)
        answer = Exchange(engine, request, head.target.endpoint).answer()
        if self._write(answer, keep_alive=head.keep_alive and self._keep_alive() and body.complete):
            return body.ahead
        if not body.complete and isinstance(answer.body, WholeBody):
            body.drain()
        return None

    def _write(self, answer: Answer, *, keep_alive: bool) -> bool:
        """Write the answer; gives whether the connection can carry another request."""
        body = answer.body
        if isinstance(body, WholeBody):
            try:
                head = self._head(answer, keep_alive=keep_alive)
                self._outlet.send(head + body.content, self._timeout_s)
            except OSError:
                body.close()
                return False
            except BaseException:
                body.close()
                raise
            body.written()
            return keep_alive
        if answer.status == 499:
            return False
        return self._write_stream(answer, keep_alive=keep_alive)

    def _write_stream(self, answer: Answer, *, keep_alive: bool) -> bool:
        body, send = answer.body, self._send
        chunked = not any(name == "content-length" for name, _ in answer.headers)
        head = self._head(answer, keep_alive=keep_alive, chunked=chunked)
        try:
            if isinstance(body, StreamBody) and (backend := body.backend) is not None:
                send(head + chunk(body.begin()))
                keep_alive = self._relay(body, backend) and keep_alive
                send(_LAST_CHUNK)
                body.written()
            else:
                for shown in body:
                    data, head = head + (chunk(shown) if chunked else shown), b""
                    send(data)
                send(head + (_LAST_CHUNK if chunked else b""))
        except (OSError, ClientGone):
            return False
        except Stopping:
            if isinstance(body, StreamBody | CommentedBody):
                ending = chunk(body.stop()) + _LAST_CHUNK
                with contextlib.suppress(OSError):
                    self._outlet.send(bytes(self._outlet.unsent) + ending, _TO_SAY_GOODBYE_S)
            raise
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()
        return keep_alive

    def _send(self, data: bytes) -> None:
        self._outlet.send(data, self._timeout_s)

    def _relay(self, body: StreamBody, backend: Connection) -> bool:
        """Relay a stream to its end; gives False where that is not its own."""
        relay = HubRelay(body, backend, self._watch, timeout_s=self._timeout_s)
        try:
            relay.run()
        except ClientGone:
            if not relay.unsent:
                body.left()
            raise
        except OSError:
            raise
        except Stopping:
            ending = chunk(body.stop())
        except Exception:
            log.exception("stream failed inside the gateway")
            failure = RequestFailed("internal", "The gateway failed; its log tells more.")
            ending = b"" if body.over else chunk(body.fail(failure))
        else:
            return True
        self._outlet.send(relay.unsent + ending, _TO_SAY_GOODBYE_S)
        return False

    def _head(self, answer: Answer, *, keep_alive: bool, chunked: bool = False) -> bytes:
        status = _STATUS_LINES.get(answer.status) or f"HTTP/1.1 {answer.status} Status\r\n"
        lines = "".join([f"{name}: {value}\r\n" for name, value in answer.headers])
        coding = "Transfer-Encoding: chunked\r\n" if chunked else ""
        return f"{status}{self._clock.lines(keep_alive=keep_alive)}{coding}{lines}\r\n".encode("latin-1")

    def close(self) -> None:
        self._watch.close()


class NotPlain(Exception):
    """The request is gunicorn's to read."""


class _Body(msgspec.Struct):
    """The body of a request, of `length` bytes, of which only the beginning came with the head. `ahead`: what came
    after it."""

    watch: HubWatch
    begun: bytes
    length: int
    timeout_s: float
    complete: bool = False
    ahead: bytes = b""

    def read(self, limit: int) -> bytes:
        """The whole body. Raises `RequestFailed` for one too large, too slow or cut short."""
        if self.length > limit:
            raise RequestFailed("body_too_large", f"The body is {self.length} bytes; at most {limit} are taken.")
        pieces, missing = [self.begun], self.length - len(self.begun)
        while missing > 0:
            try:
                piece = self.watch.receive(self.timeout_s)
            except OSError as error:
                raise ClientGone from error
            if not piece:
                raise self._short(self.length - missing)
            pieces.append(piece)
            missing -= len(piece)
        body = b"".join(pieces)
        self.ahead = body[self.length :]
        self.complete = True
        return body[: self.length] if self.ahead else body

    def drain(self) -> None:
        """Read what is left of it, within bounds, and forget it."""
        missing = min(self.length - len(self.begun), _MOST_DRAINED)
        with contextlib.suppress(OSError):
            while missing > 0 and (piece := self.watch.receive(_TO_SAY_GOODBYE_S)):
                missing -= len(piece)

    def _short(self, got: int) -> RequestFailed:
        if self.watch.closed():
            return RequestFailed("body_cut_short", f"The body ended after {got} of {self.length} bytes.")
        return RequestFailed("body_too_slow", "The body did not arrive in time.")
