"""One attempt at one backend: sends the request, reads the response, and ends exactly once."""

from __future__ import annotations

from collections.abc import Sequence

from nexus.dialects.base import InvalidBody, StreamReader
from nexus.dialects.binary_stream import BinaryStream
from nexus.dialects.translation import TRANSLATIONS
from nexus.dialects.translation.rules import BadResponse, Untranslatable
from nexus.dialects.translation.translation import NO_CONTEXT, Receiver
from nexus.errors import FAULTS, Fault, RequestFailed
from nexus.http.client_watch import ClientGone, Stopping
from nexus.http.sse import starts_events
from nexus.proxy.backend_call import BackendCall
from nexus.proxy.backend_failures import JSON_HEADER, BackendFailures, is_plain
from nexus.proxy.upload import Upload

_MAX_WITHHELD = 256 * 1024
"""Bytes of a stream withheld while no content has come. A longer start goes on as it is."""
_MAX_SNIFFED = 64 * 1024
"""Bytes of empty lines before a response must show whether it is a stream."""
_FIRST_MOMENTS_S = 1.0
"""For so long a stream's signs of life are withheld: after a failure this early another backend
can still be tried."""
_ERROR_BODY_BYTES = 1024 * 1024
_ERROR_BODY_S, _SERVER_ERROR_BODY_S = 1.0, 0.25
"""How long the body of a failed response may take. That of a 5xx only shows whether the client is
at fault, and another backend can serve meanwhile."""
_STREAM_HEADERS = [("content-type", "text/event-stream; charset=utf-8")]


class Attempt(BackendCall):
    """Uses a reservation at a backend, and releases it with `end()`.

    Attributes:
        usage_asked: Whether the request was changed to ask for the usage of its stream.
        responded_at: When the whole response, or the first content of a stream, had come.
        refused_s: How long the backend took before that to refuse to report usage.
    """

    usage_asked = False
    responded_at = refused_s = 0.0
    _content: bytes | None = None
    _buffered = 0
    _whole = True
    _mislabelled = False
    _ended = False
    _withheld: Sequence[bytes] = ()
    _dropped: tuple[str, ...] = ()
    _context = NO_CONTEXT

    @property
    def status(self) -> int:
        return self.response.status

    @property
    def backend_name(self) -> str:
        return self._backend.name

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The response's headers that the client gets."""
        headers = self.response.client_headers()
        if self.translation is not None and self.stream is None:
            # They describe what the backend sent, not its translation.
            headers = [field for field in headers if not field[0].startswith("content-")]
            headers.append(JSON_HEADER)
        if self._dropped:
            headers = [*headers, ("x-nexus-translated-dropped", ", ".join(self._dropped))]
        if self._mislabelled:
            return [field for field in headers if field[0] != "content-type"] + _STREAM_HEADERS
        return headers

    @property
    def failures(self) -> BackendFailures:
        """Makes failures of what the backend sent."""
        request = self._request
        client_key = (
            request.headers.credentials and request.client_keys and self._template.client_keys
        )
        return BackendFailures(
            self.dialect,
            self._backend.name,
            self._template.key,
            not client_key,
            self.request_id,
            self.translation is not None,
        )

    def is_stream(self, *, requested: bool) -> bool:
        """Whether the response is a stream that can be read.

        An encoded one cannot, and goes on whole for the client to decode. If the client requested
        a stream, one with a wrong content type is recognized by its first bytes.
        """
        content_type = self.response.header("content-type")
        if content_type == "application/json" and not requested:
            return False
        if not is_plain(self.response):
            return False
        if content_type is not None and content_type.lower().startswith("text/event-stream"):
            return True
        self._mislabelled = requested and self._starts_events()
        return self._mislabelled

    def is_binary(self) -> bool:
        """Whether the response is no JSON, for an endpoint that may have such responses."""
        content_type = self.response.header("content-type") or ""
        return content_type.partition(";")[0].strip().lower() != "application/json"

    def _starts_events(self) -> bool:
        start = b""
        while (
            (verdict := starts_events(start)) is None
            and len(start) < _MAX_SNIFFED
            and (data := self._read_before_content())
        ):
            start += data
        self.response.unread(start)
        return bool(verdict)

    def translate(self, name: str, body: bytes) -> tuple[str, bytes]:
        """Translate the request, and its response from now on; returns the path and the body.

        Raises `RequestFailed` if that cannot be.
        """
        translation = self.dialect = self.translation = TRANSLATIONS[name]
        view, choice = self._reservation.view, self._reservation.choice
        receiver = Receiver(
            self._backend.config.provider.takes,
            view.max_output_tokens(self._backend, choice.model),
        )
        try:
            request = translation.request(body, receiver)
        except InvalidBody as error:
            code = error.code if isinstance(error, Untranslatable) else "not_translatable"
            raise RequestFailed(code, str(error), param=error.param) from error
        self._dropped, self._context = request.dropped, request.context
        return translation.path, request.body

    def translated(self, content: bytes) -> bytes:
        """A whole response as the client understands it. Raises `RequestFailed`."""
        if self.translation is None:
            return content
        try:
            return self.translation.response(content, self._context)
        except BadResponse as error:
            message = f"The response of backend {self._backend.name} cannot be translated: {error}."
            raise RequestFailed("malformed_answer", message) from error

    def send(self, path: str, body: bytes | Upload, *, ask_usage: bool = False) -> None:
        """Send the request and read the head of the response.

        `ask_usage` changes the request so that it asks for the usage of its stream. If the backend
        refuses that, the request is sent again unchanged; if it succeeds then, all workers
        remember it. A backend that took the change before may be another server by now: its
        refusal counts only if it names the option. Raises `RequestFailed`.
        """
        circuits, column = self._engine.circuits, self._backend.column
        if (
            not ask_usage
            or not isinstance(body, bytes)
            or (known := circuits.stream_usage(column)) is False
        ):
            self._send(path, body)
            return
        self.usage_asked = True
        self._send(path, self.dialect.ask_for_usage(body))
        if self.status in (400, 422) and (known is None or _names_usage(self._failed_body()[0])):
            self._failed_body()
            self.refused_s = self._engine.clock() - self.sent_at
            self._engine.connections.release(
                self._address, self.connection, self._backend.config.keepalive_seconds
            )
            self._connection = self._content = None
            self._engine.recorder.attempt_repeated(self._backend.label, "invalid_request")
            self.usage_asked = False
            self._send(path, body)
            if self.status < 300:
                circuits.record_stream_usage(column, supported=False)
        elif known is None and self.status < 300:
            circuits.record_stream_usage(column, supported=True)

    def read_all(self) -> bytes:
        """The whole body. Raises `RequestFailed` if it breaks off, is silent or over a limit.

        A body that comes in pieces counts as buffered until the request ends.
        """
        if self._content is None:
            limit = self._reservation.view.snapshot.config.server.max_answer_bytes
            if self.response.complete:
                content = self.response.body()
                self._check_size(len(content), limit)
            else:
                pieces, size = [], 0
                while data := self._read(self.idle_s, "idle_timeout"):
                    size += len(data)
                    self._check_size(size, limit)
                    self._engine.buffers.hold(self._request, len(data))
                    self._buffered += len(data)
                    pieces.append(data)
                content = b"".join(pieces)
            self._content = content
            self.responded_at = self._engine.clock()
        return self._content

    def _check_size(self, size: int, limit: int) -> None:
        if size > limit:
            raise RequestFailed(
                "answer_too_large",
                f"The response of backend {self._backend.name} is over {limit} bytes.",
            )

    def failure(self) -> RequestFailed:
        """The failure that a response without a success status means."""
        content, whole = self._failed_body()
        return self.failures.of_response(self.response, self.headers, content, whole=whole)

    def _failed_body(self) -> tuple[bytes, bool]:
        """What comes soon of a failed response's body, and whether that is the whole."""
        if self._content is None:
            pieces, size, whole = [], 0, False
            if not 300 <= self.status < 400:
                limit_s = _ERROR_BODY_S if self.status < 500 else _SERVER_ERROR_BODY_S
                until = self._engine.clock() + limit_s
                try:
                    while size <= _ERROR_BODY_BYTES and (
                        data := self._read(max(0.0, until - self._engine.clock()), "idle_timeout")
                    ):
                        pieces.append(data)
                        size += len(data)
                    whole = size <= _ERROR_BODY_BYTES
                except RequestFailed:
                    pass  # its head says enough
            self._content, self._whole = b"".join(pieces), whole
            self.responded_at = self._engine.clock()
        return self._content, self._whole

    def await_content(
        self, *, show_life: bool, binary: bool = False, ping_s: float = 0.0
    ) -> StreamReader:
        """Read a stream up to its first content: until then another backend can still be tried.

        With `show_life` a sign of life ends the wait, too, after the first moments: the client is
        to see it.

        With `ping_s` it also ends after so long if anything has come: the client gets pings then.
        """
        clock = self._engine.clock
        stream: StreamReader
        if binary:
            stream = BinaryStream(clock=clock)
        elif self.translation is not None:
            stream = self.translation.open_stream(
                clock=clock, hide_usage=True, own_key=self._template.key, context=self._context
            )
        else:
            stream = self.dialect.open_stream(
                clock=clock, hide_usage=self.usage_asked, own_key=self._template.key
            )
        self.stream = stream
        ping_at = self.sent_at + ping_s if ping_s and show_life else None
        self._withheld = withheld = []
        came: list[bytes] = []
        size = 0
        while not stream.content and size < _MAX_WITHHELD:
            data = self._read_before_content(ping_at if size else None)
            if data is None:
                self._limit_only_silences()
                break
            if data:
                withheld.append(stream.feed(data))
                came.append(data)
                size += len(data)
            else:
                withheld.append(stream.end())
                if stream.error is None and not stream.content:
                    # It may have sent an error as the whole body, not as an event.
                    if error := self.dialect.error_in_response(b"".join(came)):
                        raise self.failures.of_reported_error(error)
                    raise self._lost("before any content")
            if stream.error is not None:
                raise self.failures.of_reported_error(stream.error)
            if stream.alive_at >= self.sent_at + _FIRST_MOMENTS_S:
                self._limit_only_silences()
                if show_life:
                    break
        self.responded_at = self._engine.clock()
        self._limit_only_silences()
        return stream

    def release_withheld(self) -> bytes:
        """What the client gets of the stream so far."""
        shown = b"".join(self._withheld)
        self._withheld = ()
        return shown

    def end(self, fault: Fault | None, *, retry_after_s: float | None = None) -> None:
        """Release the connection, or close it if the response was not read to its end; then
        release the reservation. Only the first call counts."""
        if self._ended:
            return
        self._ended = True
        if self._buffered and fault is not None:
            self._engine.buffers.release(self._request, self._buffered)
        if self._connection is not None:
            done = self.stream is not None and self.stream.done
            self._engine.connections.release(
                self._address, self._connection, self._backend.config.keepalive_seconds, ending=done
            )
        self._reservation.release(fault, retry_after_s=retry_after_s)


def _names_usage(refusal: bytes) -> bool:
    return b"stream_options" in refusal or b"include_usage" in refusal


def fault_of(error: BaseException) -> Fault:
    """The fault that an exception means for the request."""
    if isinstance(error, RequestFailed):
        return error.fault
    if isinstance(error, ClientGone):
        return FAULTS["client_gone"]
    if isinstance(error, Stopping):
        return error.failure(within_stream=False).fault
    return FAULTS["internal"]
