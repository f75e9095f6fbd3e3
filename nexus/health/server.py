"""The HTTP server of the operations port.

gunicorn's parser reads requests; it refuses ambiguous framing. Everything that a client can hold is
bounded: connections, the time for a request, the size of its body, the time that a write may wait.
A connection over the limit closes the one whose last request is oldest, so that idle connections
never keep others out.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import resource
import socket
from collections.abc import Callable, Iterable
from typing import Any

import gevent
from gevent.server import StreamServer
from gunicorn.config import Config as ParserConfig
from gunicorn.http import RequestParser, errors, wsgi

from nexus.dialects.openai.errors import error_body

log = logging.getLogger("nexus.health")

MAX_BODY_BYTES = 64 * 1024
_MAX_CONNECTIONS = 128
_CONNECTION_SHARE = 4
"""This port uses at most one in so many of the process's descriptors."""
_HEAD_S = 10.0
"""Limit for a request's head, and for the time between two requests of a connection."""
_BODY_S = 10.0
_WRITE_S = 10.0
_ACCEPT_AT_ONCE = 8
"""After so many, the greenlets of accepted connections run before more are accepted."""
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class OperationsServer(StreamServer):
    """Serves one WSGI application."""

    max_accept = _ACCEPT_AT_ONCE

    def __init__(self, address: tuple[str, int], app: Callable[..., Iterable[bytes]]) -> None:
        super().__init__(address, spawn=gevent.spawn)
        self._app = app
        self._parser = ParserConfig()
        self._parser.set("limit_request_field_size", 8190)
        self._parser.set("limit_request_line", 8190)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._max_connections = min(_MAX_CONNECTIONS, max(soft // _CONNECTION_SHARE, 1))
        self._connections: dict[socket.socket, gevent.Greenlet[..., Any]] = {}
        """Connection → its greenlet; the one whose last request is oldest comes first."""

    def do_read(self) -> Any:
        """Accept a connection; close the oldest if no descriptor is left."""
        try:
            return super().do_read()
        except OSError as error:
            if error.errno not in _OUT_OF_DESCRIPTORS or not self._connections:
                raise
            self._close_oldest()
            return None

    def handle(self, sock: socket.socket, address: Any) -> None:
        """Serve one connection until it ends or a limit is reached."""
        self._connections[sock] = gevent.getcurrent()  # type: ignore[assignment]
        while len(self._connections) > self._max_connections:
            self._close_oldest()
        sock.settimeout(_WRITE_S)
        parser = RequestParser(self._parser, sock, address)
        try:
            while self._serve_next(parser, sock, address):
                pass
        except (OSError, StopIteration, errors.NoMoreData):
            pass  # the client has closed the connection, or does not read
        except Exception:
            log.exception("a request to the operations port failed")
        finally:
            self._connections.pop(sock, None)
            sock.close()

    def _close_oldest(self) -> None:
        sock = next(iter(self._connections))
        greenlet = self._connections.pop(sock)
        greenlet.kill(block=False)

    def _serve_next(self, parser: RequestParser, sock: socket.socket, address: Any) -> bool:
        """Serve a connection's next request; returns whether another one may follow it."""
        request = body = None
        try:
            with gevent.Timeout(_HEAD_S, False):  # type: ignore[arg-type]  # silent
                request = next(parser)
            if request is None:
                return False
            self._connections[sock] = self._connections.pop(sock)  # now the newest
            with gevent.Timeout(_BODY_S, False):  # type: ignore[arg-type]
                if request._expected_100_continue:
                    sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                    request._expected_100_continue = False
                body = request.body.read(MAX_BODY_BYTES + 1)
        except (
            errors.ParseException,
            errors.ChunkMissingTerminator,
            errors.InvalidChunkSize,
        ) as error:
            return _refuse(
                sock, _status_of(error), "The request is not valid HTTP/1.1, or is too long."
            )
        if body is None:
            return _refuse(sock, 408, f"The body did not come within {_BODY_S:.0f} s.")
        if len(body) > MAX_BODY_BYTES:
            return _refuse(sock, 413, f"The body is over {MAX_BODY_BYTES} bytes.")
        headers = dict(request.headers)
        if request.version >= (1, 1) and "HOST" not in headers:
            return _refuse(sock, 400, "The request has no Host header.")
        if len(body) < int(headers.get("CONTENT-LENGTH", 0)):
            return False  # the client has gone away within its body
        return self._respond(request, body, sock, address)

    def _respond(self, request: Any, body: bytes, sock: socket.socket, address: Any) -> bool:
        response, environ = wsgi.create(request, sock, address, sock.getsockname(), self._parser)
        environ["wsgi.input"] = io.BytesIO(body)
        environ["wsgi.multithread"] = True
        chunks = self._app(environ, response.start_response)
        try:
            for chunk in chunks:
                response.write(chunk)
            response.close()
        finally:
            if close := getattr(chunks, "close", None):
                close()
        return not response.should_close()


def _status_of(error: Exception) -> int:
    match error:
        case errors.LimitRequestLine():
            return 414
        case errors.LimitRequestHeaders():
            return 431
        case errors.ExpectationFailed():
            return 417
        case errors.UnsupportedTransferCoding():
            return 501
    return 400


def _refuse(sock: socket.socket, status: int, message: str) -> bool:
    """Answer a request that never reaches the application, and end the connection."""
    content = error_body(message, status=status, code="bad_request")
    head = (
        f"HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
    )
    with contextlib.suppress(OSError):
        sock.sendall(head.encode() + content)
        sock.shutdown(socket.SHUT_WR)
        # Without reading on, a reset could overtake the response.
        with gevent.Timeout(1.0, False):  # type: ignore[arg-type]
            while sock.recv(64 * 1024):
                pass
    return False
