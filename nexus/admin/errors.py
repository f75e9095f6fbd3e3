"""Errors of the web layer in OpenAI's form, counted as rejected."""

from __future__ import annotations

from collections.abc import Callable

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from nexus.dialects.openai.errors import error_body


def register_errors(app: Flask, *, rejected: Callable[[str], None]) -> None:
    """Answer what no view took, never by a redirect to a like path. `rejected` counts it by reason."""
    app.url_map.merge_slashes = app.url_map.strict_slashes = False

    def refuse(error: HTTPException) -> Response:
        status = error.code or 500
        if isinstance(error, NotFound):
            reason, message = "not_found", f"There is nothing at {request.path[:200]}."
        elif isinstance(error, MethodNotAllowed):
            allowed = ", ".join(sorted(error.valid_methods or ()))
            reason, message = (
                "method_not_allowed",
                f"{request.path[:200]} takes {allowed}, not {request.method}.",
            )
        else:
            reason, message = "bad_request", error.description or "The request cannot be served."
        rejected(reason)
        response = Response(
            error_body(message, status=status, code=reason), status, mimetype="application/json"
        )
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            response.headers["allow"] = ", ".join(sorted(error.valid_methods))
        return response

    app.register_error_handler(HTTPException, refuse)
