"""One try at one backend: the request sent, the answer read, its end told to the figures exactly once."""

from __future__ import annotations

from collections.abc import Iterator

from nexus.backends.address import Address, own_key
from nexus.errors import Fault, RequestFailed
from nexus.fleet.records import Backend
from nexus.proxy.client import Request
from nexus.proxy.connections import Connection
from nexus.proxy.engine import Engine
from nexus.proxy.headers import request_head
from nexus.proxy.http1 import MalformedAnswer
from nexus.proxy.sse import StreamObserver, Usage

_MOST_HELD_BACK = 256 * 1024
"""Bytes of a stream held back while no content has come; beyond that they go on as they are."""


class Attempt:
    """Holds the backend's place in the load table from its making until `end()`."""

    def __init__(
        self, engine: Engine, request: Request, backend: Backend, *, address: Address, timeout_s: float, request_id: str
    ) -> None:
        """`timeout_s` bounds the whole request, a stream up to its first content; then silence alone is bounded."""
        self._engine = engine
        self._request = request
        self._backend = backend
        self._address = address
        self._request_id = request_id
        config = backend.config
        self._first_byte_s = config.first_byte_timeout_seconds or timeout_s
        self._idle_s = config.idle_timeout_seconds or timeout_s
        self._deadline: float | None = request.received + timeout_s
        self._connection: Connection | None = None
        self._observer = StreamObserver()
        self._held: list[bytes] = []
        self._ended = False
        engine.recorder.attempt_began(backend.column)

    @property
    def status(self) -> int:
        return self._open.answer.status

    @property
    def headers(self) -> list[tuple[str, str]]:
        return self._open.answer.headers

    @property
    def event_stream(self) -> bool:
        return (self._open.answer.header("content-type") or "").lower().startswith("text/event-stream")

    @property
    def usage(self) -> Usage | None:
        return self._observer.usage

    @property
    def _open(self) -> Connection:
        assert self._connection is not None
        return self._connection

    def send(self, path: str, body: bytes) -> None:
        """Send the request and read the head of the answer.

        A connection that was kept for reuse may have died meanwhile: where one fails before the first byte of the
        answer, the request is sent once more over a new one. Raises `RequestFailed`.
        """
        config = self._backend.config
        head = request_head(
            self._request.headers,
            path=path,
            address=self._address,
            config=config,
            key=own_key(config, self._engine.environ),
            request_id=self._request_id,
            length=len(body),
        )
        connection = self._connection = self._engine.connections.open(self._address, config)
        if connection.reused:
            try:
                self._send_over(connection, head, body)
            except ConnectionError:
                connection.close()
            else:
                return
            connection = self._connection = self._engine.connections.open(self._address, config, fresh=True)
        try:
            self._send_over(connection, head, body)
        except ConnectionError as error:
            raise self._lost("before it answered") from error

    def _send_over(self, connection: Connection, head: bytes, body: bytes) -> None:
        """Raises ConnectionError where the connection ends before the first byte of an answer."""
        try:
            connection.send(head, body, self._idle_s)
        except TimeoutError as error:
            raise RequestFailed("idle_timeout", f"Backend {self._backend.name} does not take the request.") from error
        except ConnectionError:
            # It may have answered (413, say) and closed without reading all: what it said is still to be read.
            if connection.reused:
                raise
        answered = False
        while not connection.answer.head_complete:
            try:
                more = self._receive(connection, self._first_byte_s, "first_byte_timeout")
            except ConnectionError:
                if answered:
                    raise self._lost("within its head") from None
                raise
            if not more:
                if answered:
                    raise self._lost("within its head")
                raise ConnectionError
            answered = True

    def _receive(self, connection: Connection, limit_s: float, fault: str) -> bool:
        name = self._backend.name
        if self._deadline is not None:
            left_s = self._deadline - self._engine.clock()
            if left_s < limit_s:
                limit_s, fault = left_s, "deadline"
        try:
            return connection.receive(self._request.connection, limit_s)
        except TimeoutError as error:
            raise RequestFailed(fault, f"Backend {name} did not answer in time.") from error
        except MalformedAnswer as error:
            raise RequestFailed(
                "malformed_answer", f"Backend {name} gave an answer that cannot be trusted: {error}."
            ) from error
        except ConnectionError:
            raise
        except OSError as error:
            raise ConnectionResetError(str(error)) from error

    def _more(self, fault: str) -> bytes:
        """The next bytes of the body; empty at its end. Raises `RequestFailed` where it breaks off."""
        connection = self._open
        while True:
            if data := connection.answer.body():
                return data
            if connection.answer.complete:
                return b""
            try:
                more = self._receive(connection, self._idle_s, fault)
            except ConnectionError as error:
                raise self._lost("within its answer") from error
            if not more and not connection.answer.complete:
                raise self._lost("within its answer")

    def read_all(self) -> bytes:
        """The whole body."""
        pieces = []
        while data := self._more("idle_timeout"):
            pieces.append(data)
        return b"".join(pieces)

    def await_content(self) -> None:
        """Read a stream up to its first content, so that until then another backend can still be tried."""
        held = 0
        while not self._observer.content and held < _MOST_HELD_BACK:
            data = self._more("first_byte_timeout")
            if not data:
                self._observer.end()
                if self._observer.error is None and not self._observer.content:
                    raise self._lost("before any content")
            self._observer.feed(data)
            self._held.append(data)
            held += len(data)
            if self._observer.error is not None:
                raise RequestFailed("error_event", f"Backend {self._backend.name}: {self._observer.error}")
        self._deadline = None

    def stream(self) -> Iterator[bytes]:
        """The bytes of the stream as they come, from its start. Raises `RequestFailed` with a fault within a stream."""
        yield b"".join(self._held)
        self._held.clear()
        name, observer = self._backend.name, self._observer
        try:
            while data := self._more("stream_idle"):
                observer.feed(data)
                yield data
        except RequestFailed as failure:
            if failure.fault.name == "stream_idle":
                raise
            raise RequestFailed("stream_broken", f"The stream from backend {name} broke off.") from failure
        observer.end()
        if observer.error is not None:
            raise StreamError(observer.error)
        if not observer.finished:
            raise RequestFailed("stream_broken", f"The stream from backend {name} ended before its end.")

    def _lost(self, when: str) -> RequestFailed:
        return RequestFailed("connection_lost", f"Backend {self._backend.name} closed the connection {when}.")

    def end(self, fault: Fault | None) -> None:
        """Give the connection back, or close it where the answer was not read to its end; count the attempt once."""
        if self._ended:
            return
        self._ended = True
        if self._connection is not None:
            self._engine.connections.give_back(self._address, self._connection)
        self._engine.recorder.attempt_ended(
            self._backend.column, self._backend.label, fault.error_type if fault else "ok"
        )


class StreamError(RequestFailed):
    """The backend told of the error itself, within its stream: the client has seen it already."""

    def __init__(self, message: str) -> None:
        super().__init__("stream_error", message)
