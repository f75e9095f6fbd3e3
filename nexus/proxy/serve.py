"""The life of a request: checks, attempts at backends, response, and one record."""

from __future__ import annotations

from nexus.access.callers import Caller
from nexus.errors import RequestFailed
from nexus.http.client_watch import Stopping
from nexus.proxy import checks
from nexus.proxy.engine import ClientResponse, Engine
from nexus.proxy.exchange import Exchange
from nexus.proxy.keepalive_comments import respond_with_comments
from nexus.proxy.request import Request
from nexus.proxy.responses import base_headers, error_response, failure_content
from nexus.proxy.retry import serve_by_backends
from nexus.proxy.stored import serve_stored
from nexus.proxy.token_estimates import estimated


def serve(engine: Engine, request: Request) -> ClientResponse:
    """Serve a request to a proxied endpoint; a failure becomes an error response."""
    exchange = Exchange(engine, request)
    engine.recorder.request_started(exchange.endpoint.name)
    try:
        if not exchange.endpoint.by_model:
            return serve_stored(exchange)
        upload = exchange.endpoint.body == "multipart"
        for check in checks.UPLOAD if upload else checks.CHECKS:
            check(exchange)
        if exchange.parsed.stream and exchange.endpoint.streams:
            server = exchange.view.snapshot.config.server
            if every_s := server.stream_keepalive_seconds:
                return _with_comments(exchange, every_s)
        return serve_by_backends(exchange)
    except BaseException as error:  # noqa: BLE001 - it becomes a response, or is raised again
        return estimated(exchange, error) or error_response(exchange, error)


def check_caller(engine: Engine, request: Request) -> tuple[Caller | None, ClientResponse | None]:
    """Run the checks of the caller for a request that no backend serves, and that is not counted.

    Returns the caller, and the refusal if there is one.
    """
    exchange = Exchange(engine, request)
    try:
        for check in checks.CALLER:
            check(exchange)
    except RequestFailed as failure:
        status, headers, content = failure_content(failure, exchange)
        headers = base_headers(exchange) + headers
        return exchange.caller, ClientResponse(status, headers, iter((content,)))
    finally:
        exchange.release()
    return exchange.caller, None


def _with_comments(exchange: Exchange, every_s: float) -> ClientResponse:
    """As `serve_by_backends`, with comments for a client that waits for its stream."""

    def serve_quietly() -> ClientResponse:
        try:
            return serve_by_backends(exchange)
        except BaseException as error:  # noqa: BLE001 - it becomes a response, or is raised again
            return error_response(exchange, error)

    def stopped(stopping: Stopping) -> bytes:
        failure = stopping.failure(within_stream=True)
        fault = failure.fault
        exchange.finish(fault)
        return exchange.endpoint.dialect.error_event(
            failure.message,
            status=fault.status or 502,
            code=fault.code,
            request_id=exchange.request_id,
        )

    return respond_with_comments(
        serve_quietly,
        every_s=every_s,
        dialect=exchange.endpoint.dialect,
        headers=base_headers(exchange),
        stopped=stopped,
    )
