"""One request to one backend over a connection, within its time limits."""

from __future__ import annotations

import math

from nexus.config.secrets import SecretError
from nexus.dialects.base import AttemptDialect, StreamReader
from nexus.dialects.translation import Translation
from nexus.errors import RequestFailed
from nexus.http.address import Address
from nexus.http.connection_pool import Connection, EarlyResponse
from nexus.http.request_template import RequestTemplate
from nexus.http.response_parser import MalformedResponse, ResponseParser
from nexus.proxy.admission import Reservation
from nexus.proxy.engine import Engine
from nexus.proxy.request import Request
from nexus.proxy.upload import Upload

_FAIR_SHARE = 0.1
"""A backend that got the request after more than this share of its time is not blamed for the
deadline."""


class BackendCall:
    """Sends a request and receives the response. What these mean is decided by `Attempt`.

    Attributes:
        response: The backend's response, as far as it has come.
        dialect: The protocol that the client speaks, or the translation into it.
        translation: What the request and its response go through; None for nothing.
        stream: The reader of a streamed response; None for a whole one.
        sent_at: When the request began to be sent, on the engine's clock.
        method: The method of a request to a path of its own; None for POST to an endpoint.
        idle_s: For how long the backend may be silent within its response.
    """

    response: ResponseParser
    stream: StreamReader | None = None
    sent_at = 0.0
    method: str | None = None
    translation: Translation | None = None
    _address: Address
    _template: RequestTemplate
    _connection: Connection | None = None

    def __init__(
        self,
        engine: Engine,
        request: Request,
        reservation: Reservation,
        request_id: str,
    ) -> None:
        self._engine = engine
        self._request = request
        self.dialect: AttemptDialect = request.target.endpoint.dialect
        self._reservation = reservation
        self._backend = reservation.choice.backend
        self.request_id = request_id
        config = self._backend.config
        # For the whole request, or a stream up to its first content.
        timeout_s = reservation.view.snapshot.config.server.request_timeout_seconds
        self._first_byte_s = config.first_byte_timeout_seconds or timeout_s
        self.idle_s = config.idle_timeout_seconds or timeout_s
        self._timeout_s = config.total_timeout_seconds or timeout_s
        self._deadline: float | None = request.received + self._timeout_s

    @property
    def connection(self) -> Connection:
        """The connection that the response comes from."""
        assert self._connection is not None
        return self._connection

    def _send(self, path: str, body: bytes | Upload) -> None:
        """Send the request over a kept connection, or a new one.

        A kept connection may have died meanwhile: if it fails before the first byte of the
        response, the request is sent once more over a new one.
        """
        config = self._backend.config
        template = self._template = self._request_template()
        self._address = template.address
        head = template.head(
            self._request.headers,
            path=path,
            request_id=self.request_id,
            length=len(body),
            query=self._request.target.query if self.translation is None else "",
            client_keys=self._request.client_keys,
            method=self.method,
        )
        self.sent_at = self._engine.clock()
        connections, watch = self._engine.connections, self._request.watch
        # A POST to something stored is not idempotent. A new connection cannot have died while it
        # was idle, so the request is never sent twice.
        once = self.method == "POST"
        connection = self._connection = connections.acquire(
            self._address, config, watch=watch, fresh=once
        )
        if once:
            connection.ends = 0.0  # nor is it kept: only such requests would use it
        if connection.reused:
            try:
                self._send_over(connection, head, body)
            except ConnectionError:
                connection.close()
            else:
                return
            connection = self._connection = connections.acquire(
                self._address, config, watch=watch, fresh=True
            )
        try:
            self._send_over(connection, head, body)
        except ConnectionError as error:
            raise self._lost("before it responded") from error

    def _request_template(self) -> RequestTemplate:
        try:
            return self._reservation.view.request_template(
                self._backend, self._engine.environ, self._engine.name
            )
        except SecretError as error:
            message = f"Backend {self._backend.name} cannot be used: no header can carry its key."
            raise RequestFailed("backend_key_unusable", message) from error

    def _send_over(self, connection: Connection, head: bytes, body: bytes | Upload) -> None:
        """Raises ConnectionError if the connection ends before the first byte of a response."""
        try:
            deadline = self._request.received + self._timeout_s
            self.response = connection.response = ResponseParser(connection.response.cached_head)
            watch, idle_s = self._request.watch, self.idle_s
            if isinstance(body, bytes):
                connection.send(head, body, watch, idle_s=idle_s, deadline=deadline)
            else:
                connection.send(head, b"", watch, idle_s=idle_s, deadline=deadline)
                for piece in body.pieces():
                    connection.send(b"", piece, watch, idle_s=idle_s, deadline=deadline)
        except TimeoutError as error:
            raise RequestFailed(
                "idle_timeout", f"Backend {self._backend.name} does not take the request."
            ) from error
        except ConnectionError as error:
            # It may have responded (with 413, say) and closed without reading everything: read
            # that response.
            if connection.reused and not isinstance(error, EarlyResponse):
                raise
        except OSError as error:  # TLS, or the network
            raise ConnectionResetError(str(error)) from error
        started = False
        while not connection.response.head_complete:
            try:
                received = self._receive(connection, self._first_byte_s, "first_byte_timeout")
            except ConnectionError:
                if started:
                    raise self._lost("within its head") from None
                raise
            if not received:
                if started:
                    raise self._lost("within its head")
                raise ConnectionError
            started = True

    def _receive(self, connection: Connection, limit_s: float, fault: str) -> bool:
        """Feed the parser with what comes within `limit_s`; False if the backend closed."""
        wait_s = limit_s
        if self._deadline is not None:
            wait_s = min(limit_s, self._deadline - self._engine.clock())
        try:
            data = connection.receive(self._request.watch, wait_s)
            connection.response.feed(data)
            return bool(data)
        except TimeoutError as error:
            fault = fault if wait_s == limit_s else self._deadline_fault()
            raise RequestFailed(
                fault, f"Backend {self._backend.name} did not respond in time."
            ) from error
        except MalformedResponse as error:
            raise RequestFailed(
                "malformed_answer",
                f"Backend {self._backend.name} sent a response that cannot be trusted: {error}.",
            ) from error
        except ConnectionError:
            raise
        except OSError as error:
            raise ConnectionResetError(str(error)) from error

    def _deadline_fault(self) -> str:
        """The fault if the whole request's time is over: the backend's only if it had that
        time."""
        waited_s = self.sent_at - self._request.received
        return "deadline" if waited_s < _FAIR_SHARE * self._timeout_s else "out_of_time"

    def _read(self, limit_s: float, fault: str) -> bytes:
        """The next bytes of the body; empty at its end. Raises `RequestFailed` if it breaks off,
        or is silent."""
        connection = self.connection
        while True:
            if data := connection.response.body():
                return data
            if connection.response.complete:
                return b""
            try:
                received = self._receive(connection, limit_s, fault)
            except ConnectionError as error:
                raise self._lost("within its response") from error
            if not received and not connection.response.complete:
                raise self._lost("within its response")

    def _read_before_content(self, until: float | None = None) -> bytes | None:
        """As `_read`, before any content: each sign of life starts the limit anew.

        Returns None if nothing has come `until` then.
        """
        alive_at = self.stream.alive_at if self.stream is not None else 0.0
        since = max(self.sent_at, alive_at)
        now = self._engine.clock()
        limit_s = since + self._first_byte_s - now
        if until is None or limit_s <= until - now:
            return self._read(limit_s, "first_byte_timeout")
        try:
            return self._read(max(0.0, until - now), "first_byte_timeout")
        except RequestFailed as failure:
            if failure.fault.code != "first_byte_timeout":
                raise
            return None

    def silence_limit(self, quiet_s: float = 0.0) -> tuple[float, RequestFailed]:
        """For how much longer the backend may be silent after `quiet_s` of silence, in seconds,
        and the failure when that is over."""
        limit_s, fault = self.idle_s - quiet_s, "stream_idle"
        if self.stream is not None and not self.stream.first_token_at:
            limit_s = max(self.idle_s, self._first_byte_s) - quiet_s
        if self._deadline is not None:
            remaining_s = self._deadline - self._engine.clock()
            if remaining_s < limit_s:
                limit_s, fault = remaining_s, "stream_deadline"
        message = f"Backend {self._backend.name} did not respond in time."
        return limit_s, RequestFailed(fault, message)

    def receive(self, quiet_s: float = 0.0, most_s: float = math.inf) -> bytes | None:
        """The next bytes of a stream, after `quiet_s` of silence; empty if the backend closed.

        Returns None if nothing has come within `most_s`.

        Raises `RequestFailed` if the backend is silent for too long, OSError if the connection
        breaks, and `ClientGone`.
        """
        limit_s, failure = self.silence_limit(quiet_s)
        try:
            return self.connection.receive(self._request.watch, min(limit_s, most_s))
        except TimeoutError as error:
            if most_s < limit_s:
                return None
            raise failure from error

    def _limit_only_silences(self) -> None:
        """A stream that goes on has no deadline, unless its backend has one for all of it."""
        if self._backend.config.total_timeout_seconds is None:
            self._deadline = None

    def _lost(self, when: str) -> RequestFailed:
        return RequestFailed(
            "connection_lost", f"Backend {self._backend.name} closed the connection {when}."
        )
