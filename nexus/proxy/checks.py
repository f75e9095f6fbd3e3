"""The checks of a request before a backend is chosen: one ordered list, for every server.

A check is a function of the `Exchange`. It finds there the engine, the request, the endpoint, and
what the checks before it have set: `view` and `body` after `read_body`, `parsed` after `parse`,
`model` and `resolved_model` after `resolve_model`.

- To refuse, it raises `RequestFailed`: the fault decides the status, the metrics and the log.
- If it takes something, it calls `exchange.on_release(release)` right after that. If a later check
  refuses, or the request ends in any way, `release` is called once.
- To wait, it uses `exchange.request.watch`, which notices a disconnect of the client. It adds the
  time to `exchange.waited_s`, which does not count as the gateway's own.

A new check is one function and its place in one of the lists.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from nexus.dialects.base import InvalidBody, ModelMissing
from nexus.errors import RequestFailed
from nexus.http import content_coding, cross_origin
from nexus.http.headers import has_passed_before
from nexus.metrics import labels
from nexus.proxy.caller_checks import check_endpoint, check_model, identify
from nexus.proxy.exchange import Exchange
from nexus.proxy.limit_checks import reserve_limits
from nexus.proxy.pinned import check_backend
from nexus.proxy.request import invalid_body
from nexus.proxy.upload_checks import read_upload, store_body

Check = Callable[[Exchange], None]

_AT_ONCE_S = 0.001
"""If the body took longer to arrive, the fleet may have changed since the request's head."""


def check_head(exchange: Exchange) -> None:
    """Check the origin, the method, the Via header and the media type."""
    request, endpoint = exchange.request, exchange.endpoint
    first = request.headers.first
    if request.headers.unusual:
        _check_browser(exchange)
    if request.method not in endpoint.methods:
        if first.get("upgrade", "").lower() == "websocket":
            raise RequestFailed("websocket_unsupported")
        allowed = ", ".join(endpoint.methods)
        raise RequestFailed(
            "method_not_allowed",
            f"{endpoint.path} takes {allowed}, not {request.method}.",
            headers={"allow": allowed},
        )
    if "via" in first and has_passed_before(request.headers, exchange.engine.name):
        raise RequestFailed("loop_detected")
    given, types = first.get("content-type"), endpoint.content_types
    if given and types and given not in types:
        media_type = given.partition(";")[0].strip().lower()
        if media_type not in types:
            message = f"The body must be {' or '.join(types)}, not {media_type}."
            raise RequestFailed("unsupported_media_type", message)
    if "content-encoding" in first:
        content_coding.coding_of(first["content-encoding"])


def _check_browser(exchange: Exchange) -> None:
    """Check the page that a browser sends the request for."""
    request, allowed = exchange.request, exchange.engine.cors().origins
    given = request.headers.first
    if not cross_origin.admits(given, allowed):
        raise RequestFailed("origin_refused", cross_origin.REFUSAL)
    exchange.own_headers = cross_origin.response_headers(given.get("origin"), allowed)
    types = exchange.endpoint.content_types
    if types and "origin" in given and "content-type" not in given and request.method == "POST":
        raise RequestFailed(
            "unsupported_media_type",
            f"A browser must name the content type: {' or '.join(types)}.",
        )


def read_body(exchange: Exchange) -> None:
    """Read the body, whose size, time and memory are limited. Needs a fleet, for these limits.

    A request whose body is still to come does not count as one in progress.
    """
    engine, body = exchange.engine, exchange.request.body
    exchange.view = engine.view()
    limit = exchange.view.snapshot.config.server.max_request_bytes
    if isinstance(body, bytes):
        if len(body) > limit:
            raise RequestFailed(
                "body_too_large", f"The body is {len(body)} bytes; at most {limit} are taken."
            )
        exchange.body = body
        return
    started = engine.clock()
    engine.recorder.reading_body(1)
    try:
        exchange.body = body(limit, lambda count: engine.buffers.hold(exchange.request, count))
    finally:
        engine.recorder.reading_body(-1)
        exchange.waited_s = engine.clock() - started


def check_capacity(exchange: Exchange) -> None:
    """Refuse what is over `max_concurrent_requests`."""
    load, limit = exchange.engine.load, exchange.view.snapshot.config.server.max_concurrent_requests
    if load.in_flight() > limit and load.in_flight() - load.reading_bodies() > limit:
        raise RequestFailed(
            "at_capacity",
            f"The gateway is serving {limit} requests, its limit; try again shortly.",
            headers={"retry-after": "1"},
        )


def parse(exchange: Exchange) -> None:
    """Decode the body, and read of it what routing needs."""
    request, endpoint, body = exchange.request, exchange.endpoint, exchange.body
    if "content-encoding" in request.headers.first:
        body = _decoded(exchange, body)
    if request.target.deployment is not None:
        with contextlib.suppress(InvalidBody):  # `parse_request` says what is wrong
            body = endpoint.dialect.replace_model(body, request.target.deployment)
    try:
        try:
            exchange.parsed = endpoint.dialect.parse_request(body, endpoint.form)
        except ModelMissing:
            defaults = exchange.view.snapshot.config.endpoints.default_models
            if (model := getattr(defaults, endpoint.name, None)) is None:
                raise
            body = endpoint.dialect.replace_model(body, model)
            exchange.parsed = endpoint.dialect.parse_request(body, endpoint.form)
        exchange.body = body
    except InvalidBody as error:
        raise invalid_body(error) from error


def read_unparsed(exchange: Exchange) -> None:
    """Read a body of which only the backend reads something."""
    if exchange.endpoint.body in ("any", "multipart"):
        store_body(exchange)
        return
    read_body(exchange)
    if "content-encoding" in exchange.request.headers.first:
        exchange.body = _decoded(exchange, exchange.body)


def _decoded(exchange: Exchange, body: bytes) -> bytes:
    coding = content_coding.coding_of(exchange.request.headers.first["content-encoding"])
    if coding is None:
        return body

    def let_others_run() -> None:
        with contextlib.suppress(TimeoutError):
            exchange.request.watch.wait(None, 0, 0.0)

    return content_coding.decode(
        body,
        coding,
        limit=exchange.view.snapshot.config.server.max_request_bytes,
        hold=lambda count: exchange.engine.buffers.hold(exchange.request, count),
        pause=let_others_run,
    )


def resolve_model(exchange: Exchange) -> None:
    """Find the model that the client's name stands for."""
    if exchange.waited_s > _AT_ONCE_S:
        exchange.view = exchange.engine.view()
    view = exchange.view
    model = exchange.resolved_model = exchange.model = view.table.resolve(exchange.parsed.model)
    if model not in view.snapshot.labels.models and view.model_label(model) == labels.UNKNOWN:
        exchange.engine.recorder.unknown_model()


HEAD: tuple[Check, ...] = (check_head,)
"""From the request's head alone."""
CALLER: tuple[Check, ...] = (identify,)
"""Who sends the request. `GET /v1/models` runs these, too."""
BODY: tuple[Check, ...] = (
    check_endpoint,
    read_body,
    check_capacity,
    parse,
    check_model,
    resolve_model,
    reserve_limits,
)
"""What may be used; from the body on; what depends on the model comes last."""
UPLOAD: tuple[Check, ...] = (
    *HEAD,
    *CALLER,
    check_endpoint,
    read_upload,
    check_capacity,
    check_model,
    resolve_model,
    reserve_limits,
)
"""All checks of a request with a form."""
STORED: tuple[Check, ...] = (
    *HEAD,
    *CALLER,
    check_endpoint,
    read_body,
    check_capacity,
    reserve_limits,
)
"""All checks of a request for a response that a backend stores. It names no model."""
PINNED: tuple[Check, ...] = (
    *HEAD,
    *CALLER,
    check_endpoint,
    check_backend,
    read_unparsed,
    check_capacity,
    reserve_limits,
)
"""All checks of a request to an endpoint that has one backend."""
CHECKS = (*HEAD, *CALLER, *BODY)
"""All checks of a request to a proxied endpoint, in their order."""
