"""What the endpoints share by which operators change the gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from flask import Blueprint, Response, request

from nexus.admin.access import SAFE_METHODS, error_response, require_same_site, require_token
from nexus.config import ConfigError
from nexus.runtime.text import redact


def admin_blueprint(name: str, path: str, token: Callable[[], str]) -> Blueprint:
    """Endpoints below `path` for operators only, whose token `token` returns.

    A `ConfigError` becomes 400 with its problems.
    """
    blueprint = Blueprint(name, __name__, url_prefix=path)
    blueprint.before_request(require_same_site)

    @blueprint.before_request
    def check_token() -> Response | None:
        return require_token(token(), bearer_only=request.method not in SAFE_METHODS)

    @blueprint.errorhandler(ConfigError)
    def invalid(error: ConfigError) -> Response:
        return error_response(400, "invalid_request", redact(" ".join(error.problems)))

    return blueprint


def refuse(
    blueprint: Blueprint, kind: type[Exception], status: int, code: str, message: str
) -> None:
    """Answer a view that raises such an exception; in `message`, `{}` is what that says."""

    def handle(error: Exception) -> Response:
        return error_response(status, code, message.format(str(error)[:200]))

    blueprint.register_error_handler(kind, handle)


def json_body() -> dict[str, Any]:
    """The object in the body; an empty body is an empty object. Raises `ConfigError`."""
    content = request.get_data()
    try:
        return msgspec.json.decode(content, type=dict[str, Any]) if content else {}
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise ConfigError(f"The body is not a JSON object ({error}).") from error
