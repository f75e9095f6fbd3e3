"""The operators' endpoints: backends added, removed and drained at the running gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from flask import Blueprint, Response, jsonify, request

from nexus.config import ConfigError
from nexus.errors import error_body
from nexus.web.access import guard

_MOST_BYTES = 64 * 1024


class UnknownBackend(Exception):
    """No backend has the name."""


class BackendExists(Exception):
    """A backend of the name is there already."""


class Administration(Protocol):
    """What the health process lets operators do. Each raises `ConfigError` where it cannot be, and changes nothing."""

    def backends(self) -> list[dict[str, Any]]: ...
    def add_backend(self, data: dict[str, Any], *, save: bool) -> dict[str, Any]: ...
    def remove_backend(self, name: str, *, save: bool) -> None: ...
    def drain_backend(self, name: str, *, on: bool, save: bool) -> dict[str, Any]: ...


def admin_endpoints(administration: Administration, *, token: Callable[[], str]) -> Blueprint:
    blueprint = Blueprint("admin", __name__, url_prefix="/admin")
    blueprint.before_request(guard(token))

    @blueprint.get("/backends")
    def backends() -> Response:
        return jsonify(backends=administration.backends())

    @blueprint.post("/backends")
    def add() -> tuple[Response, int]:
        data = _body()
        save = _flag(data.pop("save", False))
        return jsonify(administration.add_backend(data, save=save)), 201

    @blueprint.delete("/backends/<path:name>")
    def remove(name: str) -> Response:
        administration.remove_backend(name, save=_flag(request.args.get("save", "0") not in ("0", "false", "")))
        return jsonify(removed=name)

    @blueprint.post("/backends/<path:name>/drain")
    def drain(name: str) -> Response:
        return jsonify(administration.drain_backend(name, on=True, save=_flag(_body().get("save", False))))

    @blueprint.post("/backends/<path:name>/undrain")
    def undrain(name: str) -> Response:
        return jsonify(administration.drain_backend(name, on=False, save=_flag(_body().get("save", False))))

    @blueprint.errorhandler(ConfigError)
    def invalid(error: ConfigError) -> Response:
        return _refuse(400, "invalid_request", " ".join(error.problems))

    @blueprint.errorhandler(UnknownBackend)
    def unknown(error: UnknownBackend) -> Response:
        return _refuse(404, "unknown_backend", f"There is no backend {str(error)[:200]!r}.")

    @blueprint.errorhandler(BackendExists)
    def exists(error: BackendExists) -> Response:
        message = f"There is a backend {str(error)[:200]!r} already; remove that one first, or give this another name."
        return _refuse(409, "backend_exists", message)

    return blueprint


def _refuse(status: int, code: str, message: str) -> Response:
    return Response(error_body(message, status=status, code=code), status, mimetype="application/json")


def _body() -> dict[str, Any]:
    """The body's table; an empty body is an empty one. Raises `ConfigError`."""
    if (request.content_length or 0) > _MOST_BYTES:
        raise ConfigError([f"The body is over {_MOST_BYTES} bytes."])
    content = request.get_data()
    try:
        return msgspec.json.decode(content, type=dict[str, Any]) if content else {}
    except msgspec.DecodeError as error:
        raise ConfigError([f"The body is not a JSON object ({error})."]) from error


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ConfigError(["save takes true or false."])
