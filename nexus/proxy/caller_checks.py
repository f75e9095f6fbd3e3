"""Checks of the caller: who sends a request, and what it may use."""

from __future__ import annotations

import threading
import time
from typing import cast

from nexus.access.callers import ANONYMOUS, REASONS, UNIDENTIFIED, Caller, Callers, Identities
from nexus.errors import RequestFailed
from nexus.http.headers import RequestHeaders
from nexus.proxy.exchange import Exchange
from nexus.proxy.request import Request


def identify(exchange: Exchange) -> None:
    """Identify the caller, or refuse the request.

    Without `[auth]`, and before a fleet is known, no key is required.
    """
    view, request = exchange.engine.fleet.current(), exchange.request
    if view is None or (callers := view.callers) is None:
        return
    headers = request.headers.first
    exchange.caller, request.client_keys = UNIDENTIFIED, False
    try:
        caller = _identified(request.headers, callers)
        if (identities := callers.identities) is not None:
            caller = _signed_in(request, identities, caller)
        if caller is not ANONYMOUS:
            exchange.caller = caller
        callers.check(caller, headers, now=time.time())
    except RequestFailed as refusal:
        count_refusal(exchange, REASONS[refusal.fault.code])
        raise
    exchange.caller = caller
    request.client_keys = caller is ANONYMOUS
    if caller is not ANONYMOUS:
        running, served_by = exchange.engine.running, threading.get_ident()
        running[served_by] = caller
        exchange.on_release(lambda: running.pop(served_by, None))


def _identified(headers: RequestHeaders, callers: Callers) -> Caller:
    """The caller whose key the headers carry; looked up once for requests that share them."""
    if (known := headers.identified) is not None and known[0] is callers:
        return cast("Caller", known[1])
    caller = callers.identify(headers.first)
    headers.identified = callers, caller
    return caller


def _signed_in(request: Request, identities: Identities, caller: Caller) -> Caller:
    """The user whom a proxy in front has signed in, unless the request carries a key."""
    fields = request.headers.pairs
    request.headers = request.headers.hiding(identities.hidden)
    if caller is not ANONYMOUS or not identities.believes(request.watch.peer()):
        return caller
    return identities.identify(fields) or caller


def check_endpoint(exchange: Exchange) -> None:
    """Refuse an endpoint that the caller may not use."""
    caller = exchange.caller
    if caller is None or caller.may_use_endpoint(exchange.endpoint.name):
        return
    count_refusal(exchange, "endpoint")
    message = f"The {caller} may not use {exchange.endpoint.path}."
    raise RequestFailed("endpoint_not_allowed", message)


def check_model(exchange: Exchange) -> None:
    """Refuse a model that the caller may not use, by the name that the client gave."""
    caller, model = exchange.caller, exchange.parsed.model
    if caller is None or caller.may_use_model(model):
        return
    count_refusal(exchange, "model")
    message = (
        f"The {caller} may not use the model {model[:200]!r}; "
        "GET /v1/models lists those that it may use."
    )
    raise RequestFailed("model_not_allowed", message, param="model")


def count_refusal(exchange: Exchange, reason: str) -> None:
    """Count that a request is refused because of who sent it; nothing without `[auth]`."""
    if (caller := exchange.caller) is not None:
        exchange.engine.recorder.caller_refused(caller.key_label, caller.team_label, reason)
