"""The endpoints that make, change and remove the keys of clients."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from typing import Annotated, Any, Literal, Protocol

import msgspec
from flask import Blueprint, Response

from nexus.admin.admin_blueprint import admin_blueprint, json_body, refuse
from nexus.admin.responses import json_response
from nexus.config import ConfigError
from nexus.config.access_records import Priority
from nexus.config.limit_records import OwnLimits
from nexus.runtime.documents import Document


class UnknownKey(Exception):
    """No key has this id."""


class KeyExists(Exception):
    """A key has this id already."""


class KeyInFile(Exception):
    """The key is in the configuration file, which only the operator changes."""


class KeyState(Document, frozen=True, kw_only=True):
    """A key of a client.

    Attributes:
        origin: `file` for a key of the configuration, `added` for one made at run time.
        grace_until: When the old one of two secrets stops being accepted.
        models: Lists of globs; a model must match one glob of each.
        endpoints: Lists of endpoint names; an endpoint must be in each.
        priority: The highest priority that its requests may have.
        limits: The limits of the key itself, beside those of its team and of `[[limits]]`.
    """

    id: str
    name: str
    team: str | None
    state: Literal["active", "expired", "blocked"]
    origin: Literal["file", "added"]
    expires: date | None
    grace_until: datetime | None
    models: list[list[str]]
    endpoints: list[list[str]]
    priority: Priority
    limits: OwnLimits | None


class MadeKey(KeyState, frozen=True, kw_only=True):
    """A key that was just made.

    Attributes:
        key: The key itself, only in this response; null if only its digest is known.
    """

    key: str | None


class KeyList(Document, frozen=True):
    """Every key.

    Attributes:
        mode: `[auth] mode`.
    """

    mode: Literal["off", "optional", "keys"]
    keys: list[KeyState]


class RemovedKey(Document, frozen=True):
    """The id of a key that was removed."""

    removed: str


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key with the fields of `[[keys]]`; each is optional.

    Attributes:
        sha256: Digests of an existing key; without them a new key is made.
    """

    id: str | None = None
    sha256: list[str] | None = None
    name: str = ""
    team: str = ""
    expires: date | None = None
    blocked: bool | Literal["now"] = False
    models: list[str] | None = None
    endpoints: list[str] | None = None
    priority: Priority = "normal"
    limits: OwnLimits | None = None


class ChangedKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of a key that change; null resets one to its default.

    Attributes:
        limits: The limits that change; null ends one.
    """

    name: str | None = None
    team: str | None = None
    expires: date | None = None
    blocked: bool | Literal["now"] | None = None
    models: list[str] | None = None
    endpoints: list[str] | None = None
    priority: Priority | None = None
    limits: OwnLimits | None = None


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the old secret is accepted beside the new one; a week if it is not given."""

    grace_seconds: Annotated[float, msgspec.Meta(ge=0, le=366 * 86400)] = 7 * 86400


class KeyAdmin(Protocol):
    """What the health process lets operators do.

    Changes raise `UnknownKey`, `KeyExists`, `KeyInFile`, or `ConfigError` if they are refused
    otherwise. They hold for every request that arrives after the method has returned.
    """

    def keys(self) -> KeyList: ...
    def key(self, id_: str) -> KeyState: ...
    def add_key(self, data: dict[str, Any]) -> MadeKey: ...
    def change_key(self, id_: str, data: dict[str, Any]) -> KeyState: ...
    def rotate_key(self, id_: str, *, grace_s: float) -> MadeKey: ...
    def remove_key(self, id_: str) -> None: ...


def key_endpoints(admin: KeyAdmin, *, token: Callable[[], str]) -> Blueprint:
    """The endpoints below `/admin/keys`. `token` returns the operators' token."""
    blueprint = admin_blueprint("admin_keys", "/admin/keys", token)

    @blueprint.get("")
    def keys() -> Response:
        return json_response(admin.keys())

    @blueprint.post("")
    def add() -> Response:
        return _with_secret(admin.add_key(json_body()), 201)

    @blueprint.get("/<key_id>")
    def key(key_id: str) -> Response:
        return json_response(admin.key(key_id))

    @blueprint.patch("/<key_id>")
    def change(key_id: str) -> Response:
        return json_response(admin.change_key(key_id, json_body()))

    @blueprint.delete("/<key_id>")
    def remove(key_id: str) -> Response:
        admin.remove_key(key_id)
        return json_response(RemovedKey(removed=key_id))

    @blueprint.post("/<key_id>/rotate")
    def rotate(key_id: str) -> Response:
        try:
            rotation = msgspec.convert(json_body(), Rotation)
        except msgspec.ValidationError as error:
            raise ConfigError(f"The rotation is not valid: {error}.") from error
        return _with_secret(admin.rotate_key(key_id, grace_s=rotation.grace_seconds))

    refuse(blueprint, UnknownKey, 404, "unknown_key", "There is no key {!r}.")
    refuse(blueprint, KeyExists, 409, "key_exists", "There is a key {!r} already.")
    hint = "change it there, and run `nexus reload`"
    message = f"The key {{}} is in the configuration file; {hint}."
    refuse(blueprint, KeyInFile, 409, "key_in_file", message)
    return blueprint


def _with_secret(made: MadeKey, status: int = 200) -> Response:
    response = json_response(made, status)
    response.headers["cache-control"] = "no-store"
    return response
