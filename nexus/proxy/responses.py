"""What the client gets: a whole response, a stream, or an error."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import msgspec

from nexus.dialects.base import ParsedRequest, StreamReader
from nexus.errors import FAULTS, INTERNAL_MESSAGE, Blame, Fault, RequestFailed
from nexus.http.client_watch import ClientGone, Stopping
from nexus.http.headers import header_text, retry_after_s
from nexus.proxy.attempt import Attempt
from nexus.proxy.engine import ClientResponse
from nexus.proxy.exchange import Exchange
from nexus.proxy.relay import Recording, StreamBody
from nexus.proxy.sticky import remember
from nexus.routing.refusal import availability

log = logging.getLogger("nexus.proxy")


_LIMIT_HEADERS = ("x-ratelimit-", "anthropic-ratelimit-")


class WholeBody(msgspec.Struct):
    """The bytes of a whole response.

    The request ends when they are written, or when the client disconnects.
    """

    recording: Recording
    content: bytes
    fault: Fault | None
    status: int
    given: bool = False

    def __iter__(self) -> WholeBody:
        return self

    def __next__(self) -> bytes:
        # The server iterates again only when it has written the content.
        if self.given:
            self.written()
            raise StopIteration
        self.given = True
        return self.content

    def written(self) -> None:
        self.recording.finish(self.fault, self.status)

    def close(self) -> None:
        """Report that the server is done. Before `written`, this means that the client is gone."""
        self.recording.finish(FAULTS["client_gone"])


def base_headers(exchange: Exchange) -> list[tuple[str, str]]:
    """The headers of every response to a request, those that name the backend included."""
    headers = [("x-request-id", exchange.request_id), *exchange.own_headers]
    if (choice := exchange.choice) is not None:
        headers += exchange.view.route_headers(choice)
        if choice.model != exchange.resolved_model:
            headers.append(("x-nexus-fallback-model", header_text(choice.model)))
    return headers


def whole_response(
    exchange: Exchange,
    status: int,
    headers: list[tuple[str, str]],
    content: bytes,
    fault: Fault | None = None,
) -> ClientResponse:
    """A complete response; `headers` are those beside the base headers."""
    headers = base_headers(exchange) + _without_limits(exchange, headers)
    headers.append(("content-length", str(len(content))))
    if exchange.request.method == "HEAD" or status == 204:
        # Servers never iterate an empty body, so record the request now.
        exchange.finish(fault, status)
        return ClientResponse(status, headers, iter(()))
    return ClientResponse(status, headers, WholeBody(exchange, content, fault, status))


def stream_response(exchange: Exchange, attempt: Attempt) -> ClientResponse:
    """Relay a stream. Its first bytes send the status, so later errors are events."""
    exchange.response_started(attempt)
    # The needs refer to the whole body, whose memory is released here.
    exchange.parsed = ParsedRequest(model=exchange.parsed.model, stream=True)
    if exchange.request.held:
        exchange.engine.buffers.release(exchange.request)
    if exchange.endpoint.ids is not None and (stream := attempt.stream) is not None:
        # Ids are remembered before the client can name them.
        if stream.stored_ids:
            remember(exchange, stream.stored_ids)
        if not stream.stored_ids or exchange.view.accounts is not None:
            exchange.on_release(_remembering(exchange, stream))
    exchange.engine.recorder.stream_started()
    headers = base_headers(exchange) + _without_limits(exchange, attempt.headers)
    server = exchange.view.snapshot.config.server
    ping_s = server.stream_keepalive_seconds or exchange.endpoint.dialect.PING_S
    body = StreamBody(exchange, attempt, ping_s=ping_s)
    return ClientResponse(attempt.status, headers, body)


def _remembering(exchange: Exchange, stream: StreamReader) -> Callable[[], None]:
    """Remembers the ids that have come in the stream when it is called."""
    return lambda: remember(exchange, stream.stored_ids)


def _without_limits(exchange: Exchange, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers of a response without the backend's limits, where our own hold."""
    if not exchange.limited:
        return headers
    return [header for header in headers if not header[0].lower().startswith(_LIMIT_HEADERS)]


def error_response(exchange: Exchange, error: BaseException) -> ClientResponse:
    """What the client gets if the request fails; raises again what ends the process.

    The request releases what it holds first: a slow client must not keep it.
    """
    exchange.release()
    if isinstance(error, ClientGone):
        exchange.finish(FAULTS["client_gone"])
        return ClientResponse(499, base_headers(exchange), iter(()))
    if isinstance(error, Stopping):
        error = error.failure(within_stream=False)
    elif not isinstance(error, Exception):
        exchange.finish(FAULTS["stopping"])
        raise error
    elif not isinstance(error, RequestFailed):
        log.error(
            "request failed inside the gateway", exc_info=error, extra={"id": exchange.request_id}
        )
        error = RequestFailed("internal", INTERNAL_MESSAGE)
    content = failure_content(error, exchange)
    if error.fault.code == "body_cut_short":
        exchange.finish(error.fault)  # now: its client may have closed, and get no response
    return whole_response(exchange, *content, error.fault)


def failure_content(
    failure: RequestFailed, exchange: Exchange
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers, and body of an error response."""
    fault, passed = failure.fault, failure.passed_on
    dialect, request_id = exchange.endpoint.dialect, exchange.request_id
    if passed is not None:
        headers = list(passed.headers)
        if fault.blame is Blame.BUSY and failure.retry_after_s is None:
            # How long the backend counts as busy. One that it sent cannot be read.
            headers = [field for field in headers if field[0] != "retry-after"]
            headers.append(("retry-after", "1"))
        return passed.status, headers, passed.body
    status, context = fault.status or 502, failure.context
    if status == 503 and context is None:
        wait_s = retry_after_s(failure.headers.items())
        eta_s = None if wait_s is None else math.ceil(wait_s)
        context = availability(exchange.view.table, retry_after_s=eta_s)
    content = dialect.error_body(
        failure.message,
        status=status,
        code=fault.code,
        param=failure.param,
        context=context,
        request_id=request_id,
        kind=failure.kind,
    )
    headers = [("content-type", "application/json"), *failure.headers.items()]
    if dialect.REQUEST_ID_HEADER is not None:
        headers.append((dialect.REQUEST_ID_HEADER, request_id))
    if status >= 500 and "retry-after" not in failure.headers:
        # OpenAI's clients would retry; Nexus has retried already.
        headers.append(("x-should-retry", "false"))
    return status, headers, content
