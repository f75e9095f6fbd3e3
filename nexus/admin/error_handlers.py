"""Flask's own errors (404, 405, …) in OpenAI's form, counted as rejected requests."""

from __future__ import annotations

from collections.abc import Callable

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from nexus.dialects.openai.errors import error_body


def register_error_handlers(app: Flask, *, rejected: Callable[[str], None]) -> None:
    """Answer requests that no view takes, without redirects. `rejected` counts them by reason."""
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
        else:
            reason, message = "bad_request", error.description or "The request cannot be served."
        rejected(reason)
        content = error_body(message, status=status, code=reason)
        response = Response(content, status, mimetype="application/json")
        if methods:
            response.headers["allow"] = ", ".join(methods)
        return response

    app.register_error_handler(HTTPException, handle)
