"""The operators' endpoints: backends added, removed and drained at the running gateway."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import msgspec
from flask import Blueprint, Response, jsonify, request
from werkzeug.routing import PathConverter

from nexus.admin.access import refusal, refuse, same_site
from nexus.config import ConfigError
from nexus.runtime.text import redact


class UnknownBackend(Exception):
    """No backend has the name."""


class BackendExists(Exception):
    """A backend of the name is there already."""


class _BackendConverter(PathConverter):
    """A backend's name as the last part of a path; names may hold slashes, but `…/drain` is another path."""

    regex = r"(?!.*/(?:un)?drain$)[^/].*?"


class Administration(Protocol):
    """What the health process lets operators do. Changes raise `ConfigError` if they are refused."""

    def hosts(self) -> list[str]: ...
    def admin_token(self) -> str: ...
    def backends(self) -> list[dict[str, Any]]: ...
    def add_backend(self, data: dict[str, Any], *, save: bool) -> dict[str, Any]: ...
    def remove_backend(self, name: str, *, save: bool) -> None: ...
    def drain_backend(self, name: str, *, on: bool, save: bool) -> dict[str, Any]: ...


def admin_endpoints(administration: Administration) -> Blueprint:
    blueprint = Blueprint("admin", __name__, url_prefix="/admin")
    blueprint.record_once(
        lambda state: state.app.url_map.converters.update(backend=_BackendConverter)
    )
    blueprint.before_request(same_site)

    @blueprint.before_request
    def has_token() -> Response | None:
        return refusal(administration.admin_token(), changes=request.method != "GET")

    @blueprint.get("/backends")
    def backends() -> Response:
        return jsonify(backends=administration.backends())

    @blueprint.post("/backends")
    def add() -> tuple[Response, int]:
        data = _body()
        save = _flag(data.pop("save", False))
        return jsonify(administration.add_backend(data, save=save)), 201

    @blueprint.delete("/backends/<backend:name>")
    def remove(name: str) -> Response:
        _only(request.args, "save")
        save = _SAVE.get(request.args.get("save", "false"))
        administration.remove_backend(name, save=_flag(save))
        return jsonify(removed=name)

    @blueprint.post("/backends/<path:name>/drain")
    def drain(name: str) -> Response:
        return jsonify(administration.drain_backend(name, on=True, save=_save_alone()))

    @blueprint.post("/backends/<path:name>/undrain")
    def undrain(name: str) -> Response:
        return jsonify(administration.drain_backend(name, on=False, save=_save_alone()))

    @blueprint.errorhandler(ConfigError)
    def invalid(error: ConfigError) -> Response:
        return refuse(400, "invalid_request", redact(" ".join(error.problems)))

    @blueprint.errorhandler(UnknownBackend)
    def unknown(error: UnknownBackend) -> Response:
        return refuse(404, "unknown_backend", f"There is no backend {str(error)[:200]!r}.")

    @blueprint.errorhandler(BackendExists)
    def exists(error: BackendExists) -> Response:
        message = f"There is a backend {str(error)[:200]!r} already; remove that one first, or give this another name."
        return refuse(409, "backend_exists", message)

    return blueprint


_SAVE = {"0": False, "1": True, "false": False, "true": True}


def _body() -> dict[str, Any]:
    """The body's object; an empty body is an empty one. Raises `ConfigError`."""
    content = request.get_data()
    try:
        return msgspec.json.decode(content, type=dict[str, Any]) if content else {}
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise ConfigError([f"The body is not a JSON object ({error})."]) from error


def _save_alone() -> bool:
    """The flag of a body that takes nothing else. Raises `ConfigError`."""
    data = _body()
    _only(data, "save")
    return _flag(data.get("save", False))


def _only(given: Iterable[str], known: str) -> None:
    if unknown := [key for key in given if key != known]:
        raise ConfigError([f"There is no {unknown[0][:100]!r} here; this takes {known}."])


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ConfigError(["save takes true or false."])
