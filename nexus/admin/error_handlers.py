"""Errors that Flask finds itself, and those of a view that failed, in the client's dialect.

They are counted as rejected requests.
"""

from __future__ import annotations

from collections.abc import Callable

from flask import Flask, Request, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import MapAdapter

from nexus.dialects import openai
from nexus.dialects.base import Dialect
from nexus.errors import INTERNAL_MESSAGE
from nexus.proxy.own_error import own_error


class HttpOnly(Flask):
    """Routes a request that asks for a WebSocket as if it did not (RFC 9110, section 7.8).

    werkzeug would refuse it with 400 before its endpoint can.
    """

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        adapter = super().create_url_adapter(request)
        if adapter is not None:
            adapter.websocket = False
        return adapter


def register_error_handlers(
    app: Flask,
    *,
    rejected: Callable[[str], None],
    dialect: Callable[[], Dialect] = lambda: openai,
) -> None:
    """Answer requests that no view takes, without redirects, or whose view has failed.

    `rejected` counts them by reason; `dialect` returns that of the present request.
    """
    app.url_map.merge_slashes = app.url_map.strict_slashes = False

    def handle(error: HTTPException) -> Response:
        status, path = error.code or 500, request.path[:200]
        methods: list[str] = []
        if isinstance(error, NotFound):
            reason, message = "not_found", f"There is nothing at {path}."
        elif isinstance(error, MethodNotAllowed):
            methods = sorted(error.valid_methods or ())
            reason = "method_not_allowed"
            message = f"{path} takes {', '.join(methods)}, not {request.method}."
        elif status >= 500:  # Flask has logged the exception
            reason, message = "internal", INTERNAL_MESSAGE
        else:
            reason, message = "bad_request", error.description or "The request cannot be served."
        rejected(reason)
        given_id = request.headers.get("x-request-id")
        headers, content = own_error(
            dialect(), message, status=status, code=reason, given_id=given_id
        )
        response = Response(content, status, headers)
        if methods:
            response.headers["allow"] = ", ".join(methods)
        if reason == "internal":
            response.headers["x-should-retry"] = "false"
        return response

    app.register_error_handler(HTTPException, handle)
