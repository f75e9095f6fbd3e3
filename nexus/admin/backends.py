"""The endpoints that add, remove and drain backends of the running gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from flask import Blueprint, Response, request
from werkzeug.routing import PathConverter

from nexus.admin.admin_blueprint import admin_blueprint, json_body, refuse
from nexus.admin.responses import BackendList, BackendState, RemovedBackend, json_response
from nexus.config import ConfigError
from nexus.config.overlay import BackendExists, UnknownBackend


class _BackendConverter(PathConverter):
    """A backend's name, which may hold slashes; `…/drain` and `…/undrain` are other paths."""

    regex = r"(?!.*/(?:un)?drain$)[^/].*?"


class BackendAdmin(Protocol):
    """What the health process lets operators do.

    Changes raise `UnknownBackend`, `BackendExists`, or `ConfigError` if they are refused otherwise.
    """

    def backends(self) -> list[BackendState]: ...
    def add_backend(self, data: dict[str, Any], *, save: bool) -> BackendState: ...
    def remove_backend(self, name: str, *, save: bool) -> None: ...
    def drain_backend(self, name: str, *, on: bool, save: bool) -> BackendState: ...


def backend_endpoints(admin: BackendAdmin, *, token: Callable[[], str]) -> Blueprint:
    """The endpoints below `/admin/backends`. `token` returns the operators' token."""
    blueprint = admin_blueprint("admin", "/admin", token)
    blueprint.record_once(
        lambda state: state.app.url_map.converters.update(backend=_BackendConverter)
    )

    @blueprint.get("/backends")
    def backends() -> Response:
        return json_response(BackendList(backends=admin.backends()))

    @blueprint.post("/backends")
    def add() -> Response:
        data = json_body()
        save = _flag(data.pop("save", False))
        return json_response(admin.add_backend(data, save=save), 201)

    @blueprint.delete("/backends/<backend:name>")
    def remove(name: str) -> Response:
        _allow_only(request.args, "save")
        save = _flag(_FLAGS.get(request.args.get("save", "false")))
        admin.remove_backend(name, save=save)
        return json_response(RemovedBackend(removed=name))

    @blueprint.post("/backends/<path:name>/drain")
    def drain(name: str) -> Response:
        return json_response(admin.drain_backend(name, on=True, save=_save_flag()))

    @blueprint.post("/backends/<path:name>/undrain")
    def undrain(name: str) -> Response:
        return json_response(admin.drain_backend(name, on=False, save=_save_flag()))

    refuse(blueprint, UnknownBackend, 404, "unknown_backend", "There is no backend {!r}.")
    hint = "remove that one first, or give this another name"
    message = f"There is a backend {{!r}} already; {hint}."
    refuse(blueprint, BackendExists, 409, "backend_exists", message)
    return blueprint


_FLAGS = {"0": False, "1": True, "false": False, "true": True}


def _save_flag() -> bool:
    """`save` from a body that takes nothing else. Raises `ConfigError`."""
    data = json_body()
    _allow_only(data, "save")
    return _flag(data.get("save", False))


def _allow_only(given: Iterable[str], known: str) -> None:
    if unknown := [key for key in given if key != known]:
        raise ConfigError(f"There is no {unknown[0][:100]!r} here; this takes {known}.")


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ConfigError("save takes true or false.")
