"""The gateway with defects: a request's header `x-fail` names the one that it meets."""

from collections.abc import Iterator
from typing import Any

from flask import request as flask_request

from nexus.app import create_app
from nexus.errors import FAULTS
from nexus.proxy import checks
from nexus.proxy import serve as serving
from nexus.proxy.engine import ClientResponse
from nexus.proxy.exchange import Exchange


class Defect(Exception):
    """No part of the gateway expects it."""


class _Exchange(Exchange):
    def __init__(self, engine: Any, request: Any) -> None:
        if request.headers.first.get("x-fail") == "before":
            raise Defect
        super().__init__(engine, request)


def _fail_within(exchange: Exchange) -> None:
    if exchange.request.headers.first.get("x-fail") == "within":
        raise Defect


def _serve_by_backends(exchange: Exchange) -> ClientResponse:
    def body() -> Iterator[bytes]:
        yield b"the first piece"
        exchange.finish(FAULTS["internal"])
        raise Defect

    exchange.release()
    return ClientResponse(200, [], body())


def _fail_in_flask() -> None:
    if flask_request.headers.get("x-fail") == "Flask":
        raise Defect


def _outside(environ: dict[str, Any], start: Any) -> Any:
    if environ.get("HTTP_X_FAIL") == "outside":
        raise Defect
    return _inside(environ, start)


app = create_app()
serving.Exchange = _Exchange  # type: ignore[misc]
serving.serve_by_backends = _serve_by_backends
checks.CHECKS = (_fail_within, *checks.CHECKS)
app.before_request(_fail_in_flask)
_inside, app.wsgi_app = app.wsgi_app, _outside  # type: ignore[method-assign]
