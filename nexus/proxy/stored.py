"""Requests that name no model.

Those for a stored response get it, delete it, or stop it. The backend that stores the response
serves them. If it is not known, each backend that speaks the dialect is asked once, until one has
the response. Those to an endpoint that has one backend go to that one alone.
"""

from __future__ import annotations

from urllib.parse import parse_qs

from nexus.dialects.base import ParsedRequest
from nexus.errors import RequestFailed
from nexus.fleet.records import Backend
from nexus.proxy import checks
from nexus.proxy.admission import Reservation, Waiter
from nexus.proxy.attempt import Attempt, fault_of
from nexus.proxy.engine import ClientResponse
from nexus.proxy.exchange import Exchange
from nexus.proxy.pinned import pinned_backend
from nexus.proxy.responses import stream_response, whole_response
from nexus.proxy.retry import CONNECTING
from nexus.proxy.sticky import home_of, remember, report_end
from nexus.routing.context import RouteQuery
from nexus.routing.refusal import unavailable


def serve_stored(exchange: Exchange) -> ClientResponse:
    """Serve a request that names no model. Raises `RequestFailed`."""
    pinned = exchange.endpoint.backend_key or exchange.endpoint.backend
    for check in checks.PINNED if pinned else checks.STORED:
        check(exchange)
    request = exchange.request
    wants_stream = not pinned and parse_qs(request.target.query).get("stream") == ["true"]
    exchange.parsed = ParsedRequest(model="", stream=wants_stream)
    home = None if pinned else home_of(exchange)
    if pinned:
        backends = [pinned_backend(exchange.endpoint, exchange.view.snapshot)]
    else:
        backends = _backends(exchange, home)
    timeout_s = exchange.view.snapshot.config.server.request_timeout_seconds
    waiter = Waiter(RouteQuery(""), request, request.received + timeout_s)
    try:
        return _ask_each(exchange, waiter, backends, home)
    finally:
        if waiter.evidence is not None:
            waiter.evidence.close()


def _backends(exchange: Exchange, home: str | None) -> list[Backend]:
    """The backends to ask, by priority. Raises `RequestFailed` if there are none."""
    dialect = exchange.endpoint.dialect
    speaking = [
        backend for backend in exchange.view.snapshot.backends if dialect.NAME in backend.spoken
    ]
    usable = [
        backend
        for backend in speaking
        if backend.status == "healthy" and (not backend.draining or backend.name == home)
    ]
    if home is not None:
        usable = [backend for backend in usable if backend.name == home]
        if not usable:
            raise unavailable(home)
    if not speaking:
        message = f"No backend speaks the API of this request ({dialect.NAME})."
        raise RequestFailed("dialect_not_spoken", message)
    if not usable:
        message = f"No backend that speaks the API of this request ({dialect.NAME}) is healthy."
        raise RequestFailed("no_healthy_backend", message, headers={"retry-after": "5"})
    return sorted(usable, key=lambda backend: backend.config.priority)


def _ask_each(
    exchange: Exchange, waiter: Waiter, backends: list[Backend], home: str | None
) -> ClientResponse:
    """Ask one backend after another. Raises the failure that says most if none has it."""
    absent: RequestFailed | None = None
    failed: RequestFailed | None = None
    for backend in backends:
        reservation = exchange.engine.admission.admit_at(backend, waiter)
        exchange.start_attempt(reservation)
        try:
            return _attempt(exchange, reservation)
        except RequestFailed as failure:
            exchange.attempt_failed(reservation.choice, failure)
            if failure.passed_on is not None and failure.passed_on.status == 404:
                absent = failure
            else:
                failed = failure
    last = failed or absent
    assert last is not None, "there is at least one backend"
    if home is not None and last.fault.code in CONNECTING:
        raise unavailable(home) from last
    raise last


def _attempt(exchange: Exchange, reservation: Reservation) -> ClientResponse:
    """Get the whole response of a backend, or its stream up to the first content."""
    request, parsed = exchange.request, exchange.parsed
    attempt = Attempt(exchange.engine, request, reservation, exchange.request_id)
    attempt.method = request.method
    try:
        attempt.send(request.target.path, exchange.upload or exchange.body)
        if not 200 <= attempt.status < 300:
            raise _failure(attempt)
        if attempt.is_stream(requested=parsed.stream) or (
            exchange.endpoint.binary and not attempt.response.complete
        ):
            attempt.await_content(show_life=True)
            reservation.mark_served()
            return stream_response(exchange, attempt)
        content = attempt.read_all()
    except BaseException as error:
        retry_after_s = error.retry_after_s if isinstance(error, RequestFailed) else None
        attempt.end(fault_of(error), retry_after_s=retry_after_s)
        raise
    attempt.end(None)
    if exchange.endpoint.ids is not None:
        remember(exchange, (request.target.stored_id,))
        report_end(exchange, content)
    exchange.response_started(attempt)
    return whole_response(exchange, attempt.status, attempt.headers, content)


def _failure(attempt: Attempt) -> RequestFailed:
    """The failure of a response without a success status. 404 says nothing about the backend."""
    failure = attempt.failure()
    if attempt.status == 404:
        return RequestFailed("backend_4xx", failure.message, passed_on=failure.passed_on)
    return failure
