"""One try at one backend: the request sent, the answer read, its end told exactly once."""

from __future__ import annotations

import json

import msgspec

from nexus.config.secrets import SecretError
from nexus.dialects.openai.errors import error_body
from nexus.dialects.openai.stream import Stream, error_in
from nexus.dialects.openai.usage import Usage, usage_of, with_usage_asked
from nexus.errors import FAULTS, Fault, PassedOn, RequestFailed
from nexus.http.address import Address
from nexus.http.client_watch import ClientGone, Stopping
from nexus.http.connection_pool import Connection
from nexus.http.headers import retry_after_s
from nexus.http.request_template import RequestTemplate
from nexus.http.response_parser import MalformedResponse, ResponseParser
from nexus.http.sse import starts_events
from nexus.providers.errors import (
    classify,
    fault_within_stream,
    is_page,
    message_of,
    printable,
    status_for_client,
)
from nexus.proxy.admission import Reservation
from nexus.proxy.engine import Engine
from nexus.proxy.request import Request
from nexus.runtime.text import mask_key

_MOST_HELD_BACK = 256 * 1024
"""Bytes of a stream held back while no content has come; beyond that they go on as they are."""
_MOST_LOOKED_AT = 64 * 1024
"""Bytes at the beginning of an answer that may be empty lines before it shows whether it is a
stream."""
_FIRST_MOMENTS_S = 1.0
"""Until then a stream's signs of life are held back: a failure so early is another backend's
chance."""
_ERROR_BODY_BYTES = 1024 * 1024
_ERROR_BODY_S, _SERVER_ERROR_BODY_S = 1.0, 0.25
"""How long the body of a failed answer may take to come. That of a 5xx only tells whether the
client is at fault, and another backend can serve meanwhile."""
_JSON_HEADERS = [("content-type", "application/json")]
_STREAM_HEADERS = [("content-type", "text/event-stream; charset=utf-8")]
_ITS_OWN_TIME = 0.1
"""A backend that was asked after more than this share of the request's time had too little of it
to be blamed."""


class Attempt:
    """Uses a place at a backend, and gives it back with `end()`.

    `sent_at` and `answered_at` are when the request began to be sent, and when the whole answer, or
    the first content of a stream, was there; `refused_s` is how long the backend took before that
    to refuse to be asked for the usage.
    """

    answer: ResponseParser
    _address: Address
    _template: RequestTemplate
    stream: Stream | None = None
    usage_asked = False
    sent_at = answered_at = refused_s = 0.0
    _connection: Connection | None = None
    _content: bytes | None = None
    _counted = 0
    _whole = True
    _mislabelled = False
    _ended = False

    def __init__(
        self,
        engine: Engine,
        request: Request,
        place: Reservation,
        *,
        timeout_s: float,
        request_id: str,
    ) -> None:
        """`timeout_s` bounds the whole request, a stream up to its first content; a backend may
        have its own limits."""
        self._engine = engine
        self._request = request
        self._place = place
        self._backend = place.choice.backend
        self._request_id = request_id
        config = self._backend.config
        self._first_byte_s = config.first_byte_timeout_seconds or timeout_s
        self.idle_s = config.idle_timeout_seconds or timeout_s
        self._timeout_s = config.total_timeout_seconds or timeout_s
        self._deadline: float | None = request.received + self._timeout_s
        self._held: list[bytes] = []

    @property
    def status(self) -> int:
        return self.answer.status

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The answer's headers that the client gets."""
        headers = self.answer.client_headers()
        if self._mislabelled:
            return [entry for entry in headers if entry[0] != "content-type"] + _STREAM_HEADERS
        return headers

    @property
    def _own_key(self) -> bool:
        """Whether the request carries no key of the client's: our own key replaces it."""
        return not (self._request.headers.credentials and self._template.client_keys)

    def retry_after_s(self) -> float | None:
        """When the backend asked to come back, in seconds from now."""
        return retry_after_s(self.answer.headers)

    def is_stream(self, *, asked: bool) -> bool:
        """Whether the answer is a stream that can be read. One that is encoded, though we asked
        for none, cannot: it goes on whole, for the client to decode. If the client asked for a
        stream, its first bytes tell one that has another content type."""
        header = self.answer.header
        kind = header("content-type")
        if kind == "application/json" and not asked:
            return False
        if (header("content-encoding") or "identity").lower() != "identity":
            return False
        if kind is not None and kind.lower().startswith("text/event-stream"):
            return True
        self._mislabelled = asked and self._begins_events()
        return self._mislabelled

    def _begins_events(self) -> bool:
        begin = b""
        while (
            (found := starts_events(begin)) is None
            and len(begin) < _MOST_LOOKED_AT
            and (data := self._more_soon())
        ):
            begin += data
        self.answer.unread(begin)
        return bool(found)

    @property
    def _open(self) -> Connection:
        assert self._connection is not None
        return self._connection

    def send(self, path: str, body: bytes, *, ask_usage: bool = False) -> None:
        """Send the request and read the head of the answer.

        With `ask_usage` it is made to ask for the usage of its stream. A backend that refuses the
        request then is asked as the client asked, and where that is what it wanted it is
        remembered, for the whole host. One that once took it may be another server by now: then its
        refusal is taken for that only where it says so. Raises `RequestFailed`.
        """
        circuits, column = self._engine.circuits, self._backend.column
        if not ask_usage or (known := circuits.stream_usage(column)) is False:
            self._send(path, body)
            return
        self.usage_asked = True
        self._send(path, with_usage_asked(body))
        if self.status in (400, 422) and (known is None or _speaks_of_it(self._failed_body()[0])):
            self._failed_body()
            self.refused_s = self._engine.clock() - self.sent_at
            self._engine.connections.release(
                self._address, self._open, self._backend.config.keepalive_seconds
            )
            self._connection = self._content = None
            self._engine.recorder.attempt_repeated(self._backend.label, "invalid_request")
            self.usage_asked = False
            self._send(path, body)
            if self.status < 300:
                circuits.record_stream_usage(column, supported=False)
        elif known is None and self.status < 300:
            circuits.record_stream_usage(column, supported=True)

    def _send(self, path: str, body: bytes) -> None:
        """A connection that was kept for reuse may have died meanwhile: where one fails before
        the first byte of the answer, the request is sent once more over a new one."""
        config = self._backend.config
        template = self._template = self._request_template()
        self._address = template.address
        head = template.head(
            self._request.headers,
            path=path,
            request_id=self._request_id,
            length=len(body),
            query=self._request.target.query,
        )
        self.sent_at = self._engine.clock()
        connections, watch = self._engine.connections, self._request.watch
        connection = self._connection = connections.acquire(self._address, config, watch=watch)
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
            raise self._lost("before it answered") from error

    def _request_template(self) -> RequestTemplate:
        try:
            return self._place.view.request_template(
                self._backend, self._engine.environ, self._engine.name
            )
        except SecretError as error:
            message = f"Backend {self._backend.name} cannot be asked: no header can carry its key."
            raise RequestFailed("backend_key_unusable", message) from error

    def _send_over(self, connection: Connection, head: bytes, body: bytes) -> None:
        """Raises ConnectionError where the connection ends before the first byte of an answer."""
        try:
            deadline = self._request.received + self._timeout_s
            self.answer = connection.response = ResponseParser(connection.response.cached_head)
            connection.send(head, body, self._request.watch, idle_s=self.idle_s, deadline=deadline)
        except TimeoutError as error:
            raise RequestFailed(
                "idle_timeout", f"Backend {self._backend.name} does not take the request."
            ) from error
        except ConnectionError:
            # It may have answered (413, say) and closed without reading all: what it said is still
            # to be read.
            if connection.reused:
                raise
        except OSError as error:  # of TLS, or of the way there
            raise ConnectionResetError(str(error)) from error
        answered = False
        while not connection.response.head_complete:
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
        left_s = (
            limit_s
            if self._deadline is None
            else min(limit_s, self._deadline - self._engine.clock())
        )
        try:
            data = connection.receive(self._request.watch, left_s)
            connection.response.feed(data)
            return bool(data)
        except TimeoutError as error:
            fault = fault if left_s == limit_s else self._deadline_fault()
            raise RequestFailed(
                fault, f"Backend {self._backend.name} did not answer in time."
            ) from error
        except MalformedResponse as error:
            raise RequestFailed(
                "malformed_answer",
                f"Backend {self._backend.name} gave an answer that cannot be trusted: {error}.",
            ) from error
        except ConnectionError:
            raise
        except OSError as error:
            raise ConnectionResetError(str(error)) from error

    def _deadline_fault(self) -> str:
        """What it is when the whole request's time is over: the backend's fault only where it
        had that time."""
        return (
            "deadline"
            if self.sent_at - self._request.received < _ITS_OWN_TIME * self._timeout_s
            else "out_of_time"
        )

    def _more(self, fault: str, limit_s: float) -> bytes:
        """The next bytes of the body; empty at its end. Raises `RequestFailed` where it breaks
        off, or is silent."""
        connection = self._open
        while True:
            if data := connection.response.body():
                return data
            if connection.response.complete:
                return b""
            try:
                more = self._receive(connection, limit_s, fault)
            except ConnectionError as error:
                raise self._lost("within its answer") from error
            if not more and not connection.response.complete:
                raise self._lost("within its answer")

    def _more_soon(self) -> bytes:
        """As `_more`, before any content: each sign of life begins the limit anew."""
        alive_at = self.stream.alive_at if self.stream is not None else 0.0
        since = max(self.sent_at, alive_at)
        return self._more("first_byte_timeout", since + self._first_byte_s - self._engine.clock())

    def read_all(self) -> bytes:
        """The whole body. Raises `RequestFailed` if it breaks off, is silent or over a limit.

        A body that comes in pieces counts as buffered until the request ends.
        """
        if self._content is None:
            limit = self._place.view.snapshot.config.server.max_answer_bytes
            if self.answer.complete:
                content = self.answer.body()
                self._check_size(len(content), limit)
            else:
                pieces, size = [], 0
                while data := self._more("idle_timeout", self.idle_s):
                    size += len(data)
                    self._check_size(size, limit)
                    self._engine.buffers.hold(self._request, len(data))
                    self._counted += len(data)
                    pieces.append(data)
                content = b"".join(pieces)
            self._content = content
            self.answered_at = self._engine.clock()
        return self._content

    def _check_size(self, size: int, limit: int) -> None:
        if size > limit:
            raise RequestFailed(
                "answer_too_large",
                f"The answer of backend {self._backend.name} is over {limit} bytes.",
            )

    def usage_of_whole(self, content: bytes) -> Usage | None:
        """The usage that a whole answer with the status of a success reports. Raises
        `RequestFailed` if it reports an error, or cannot be an answer."""
        if (reported := error_in(content)) is not None:
            raise self._reported_error(*reported, content)
        usage = usage_of(content)  # which reads all of it, if there is one
        if usage is not None:
            return usage
        if why := self._flaw(content):
            raise RequestFailed(
                "malformed_answer",
                f"Backend {self._backend.name} answered {self.status} with {why}, not an answer.",
            )
        return usage_of(content, lenient=True)

    def _flaw(self, content: bytes) -> str | None:
        """Why this cannot be an answer; None if it can. JSON as lenient as servers write it
        (NaN) is taken."""
        if (self.answer.header("content-encoding") or "identity").lower() != "identity":
            return None if content else "no body"
        if not content or content.isspace():
            return "no body"
        try:
            msgspec.json.decode(content, type=msgspec.Raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            try:
                json.loads(content.decode("utf-8-sig", errors="replace"), strict=False)
            except (ValueError, RecursionError):
                return (
                    message_of(content)
                    if is_page(content)
                    else "what is not JSON, or only its beginning"
                )
        return None

    # Failed answers

    def refused(self) -> RequestFailed:
        """The failure that an answer without the status of a success comes to."""
        answer, name, status = self.answer, self._backend.name, self.status
        key = self._template.key
        content, whole = self._failed_body()
        content = mask_key(content, key)
        readable = (
            content
            if (answer.header("content-encoding") or "identity").lower() == "identity"
            else b""
        )
        retry_after_s = self.retry_after_s()
        fault = classify(
            status, readable, retry_after=retry_after_s is not None, own_key=self._own_key
        )
        message = f"Backend {name} answered {status}"
        if fault.code == "backend_redirects":
            location = printable(mask_key((answer.header("location") or "").encode(), key).decode())
            message += (
                f" and points to {location or 'nothing'}; "
                "its url in the configuration is not the right one."
            )
        else:
            said = message_of(readable)
            message += f": {said}" if said else "."
        if fault.status is not None:
            return RequestFailed(fault, message, retry_after_s=retry_after_s)
        headers = [
            (field, mask_key(value.encode("latin-1"), key).decode("latin-1"))
            for field, value in self.headers
        ]
        status = status_for_client(fault, status)
        if not whole or not content:
            content = error_body(message, status=status, code=fault.code)
            headers = [
                entry for entry in headers if not entry[0].startswith("content-")
            ] + _JSON_HEADERS
        return RequestFailed(
            fault,
            message,
            passed_on=PassedOn(status, headers, content),
            retry_after_s=retry_after_s,
        )

    def _failed_body(self) -> tuple[bytes, bool]:
        """What soon comes of a failed answer's body, and whether it is the whole; nothing more
        is waited for."""
        if self._content is None:
            pieces, size, whole = [], 0, False
            if not 300 <= self.status < 400:
                until = self._engine.clock() + (
                    _ERROR_BODY_S if self.status < 500 else _SERVER_ERROR_BODY_S
                )
                try:
                    while size <= _ERROR_BODY_BYTES and (
                        data := self._more("idle_timeout", max(0.0, until - self._engine.clock()))
                    ):
                        pieces.append(data)
                        size += len(data)
                    whole = size <= _ERROR_BODY_BYTES
                except RequestFailed:
                    pass  # its head has said enough
            self._content, self._whole = b"".join(pieces), whole
            self.answered_at = self._engine.clock()
        return self._content, self._whole

    def _reported_error(self, message: str, status: int, content: bytes) -> RequestFailed:
        """The failure that an error before any content means: that of an answer with its status."""
        key = self._template.key
        content = mask_key(content, key)
        message = (
            f"Backend {self._backend.name}: {printable(mask_key(message.encode(), key).decode())}"
        )
        fault = classify(status, content, own_key=self._own_key)
        if fault.status is not None:
            return RequestFailed("error_event", message)
        return RequestFailed(
            fault,
            message,
            passed_on=PassedOn(status_for_client(fault, status), list(_JSON_HEADERS), content),
        )

    def await_content(self, *, show_life: bool) -> Stream:
        """Read a stream up to its first content, so that until then another backend can still be
        tried.

        With `show_life` a sign of life ends the wait, too, once the first moments are over: the
        client is to see it.
        """
        stream = self.stream = Stream(
            clock=self._engine.clock,
            hide_usage=self.usage_asked,
            own_key=self._template.key,
        )
        held = 0
        while not stream.content and held < _MOST_HELD_BACK:
            data = self._more_soon()
            if data:
                self._held.append(stream.take(data))
                held += len(data)
            else:
                self._held.append(stream.end())
                if stream.error is None and not stream.content:
                    raise self._lost("before any content")
            if stream.error is not None:
                raise self._reported_error(stream.error, stream.error_status, stream.error_data)
            if stream.alive_at >= self.sent_at + _FIRST_MOMENTS_S:
                self._limit_only_silences()
                if show_life:
                    break
        self.answered_at = self._engine.clock()
        self._limit_only_silences()
        return stream

    def _limit_only_silences(self) -> None:
        """A stream that goes on has no deadline, unless its backend has one for all of it."""
        if self._backend.config.total_timeout_seconds is None:
            self._deadline = None

    # A stream whose content has begun: taken piece by piece by a `StreamBody`.

    @property
    def connection(self) -> Connection:
        """What the rest of the stream comes from."""
        return self._open

    def begin(self) -> bytes:
        """What of the stream has come so far, for the client."""
        shown = b"".join(self._held)
        self._held.clear()
        return shown

    @property
    def complete(self) -> bool:
        """Whether the whole stream is there: `[DONE]` is its end, whatever the connection does
        then."""
        return self.answer.complete or (self.stream is not None and self.stream.done)

    def take(self, data: bytes) -> bytes:
        """What the client gets of what the backend sent; empty says that it closed. Raises
        `RequestFailed`."""
        answer = self.answer
        try:
            answer.feed(data)
        except MalformedResponse as error:
            raise self.broken() from error
        if not data and not answer.complete:
            raise self.broken()
        assert self.stream is not None
        return self.stream.take(piece) if (piece := answer.body()) else b""

    def conclude(self) -> tuple[bytes, RequestFailed | None]:
        """The stream is complete: its last bytes for the client, and what was wrong with its
        end."""
        assert self.stream is not None
        stream, name = self.stream, self._backend.name
        rest = stream.end()
        if stream.error is not None:
            fault = fault_within_stream(
                stream.error_status,
                stream.error_data,
                own_key=self._own_key,
                content=bool(stream.first_token_at),
            )
            return rest, StreamError(fault, stream.error)
        if not stream.finished:
            # What came without its end would garble the error that follows, and clients are to
            # discard it.
            return b"", RequestFailed(
                "stream_truncated", f"The stream from backend {name} ended before its end."
            )
        return rest, None

    def broken(self) -> RequestFailed:
        return RequestFailed(
            "stream_reset", f"The stream from backend {self._backend.name} broke off."
        )

    def silence(self, quiet_s: float = 0.0) -> tuple[float, RequestFailed]:
        """For how much longer a backend may be silent that was so for `quiet_s`, and what it is
        when that is over."""
        limit_s, fault = self.idle_s - quiet_s, "stream_idle"
        if self.stream is not None and not self.stream.first_token_at:
            limit_s = max(self.idle_s, self._first_byte_s) - quiet_s
        if (
            self._deadline is not None
            and (left_s := self._deadline - self._engine.clock()) < limit_s
        ):
            limit_s, fault = left_s, "stream_deadline"
        return limit_s, RequestFailed(
            fault, f"Backend {self._backend.name} did not answer in time."
        )

    def receive(self) -> bytes:
        """Wait for more of the stream; gives it as `take` wants it. Raises `RequestFailed` or
        `ClientGone`."""
        limit_s, failure = self.silence()
        try:
            return self._open.receive(self._request.watch, limit_s)
        except TimeoutError as error:
            raise failure from error
        except OSError as error:
            raise self.broken() from error

    def _lost(self, when: str) -> RequestFailed:
        return RequestFailed(
            "connection_lost", f"Backend {self._backend.name} closed the connection {when}."
        )

    def end(self, fault: Fault | None, *, retry_after_s: float | None = None) -> None:
        """Give the connection back, or close it where the answer was not read to its end; then
        the place, once."""
        if self._ended:
            return
        self._ended = True
        if self._counted and fault is not None:
            self._engine.buffers.release(self._request, self._counted)
        if self._connection is not None:
            done = self.stream is not None and self.stream.done
            self._engine.connections.release(
                self._address, self._connection, self._backend.config.keepalive_seconds, ending=done
            )
        self._place.release(fault, retry_after_s=retry_after_s)


def _speaks_of_it(refusal: bytes) -> bool:
    return b"stream_options" in refusal or b"include_usage" in refusal


def fault_of(error: BaseException) -> Fault:
    """The fault that an exception means for the request."""
    if isinstance(error, RequestFailed):
        return error.fault
    if isinstance(error, ClientGone):
        return FAULTS["client_gone"]
    return FAULTS["stopping" if isinstance(error, Stopping) else "internal"]


class StreamError(RequestFailed):
    """The backend told of the error itself, within its stream: the client has seen it already."""
