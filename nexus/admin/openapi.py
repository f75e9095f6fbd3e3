"""`/openapi.json`: the endpoints that a port serves, as OpenAPI 3.1 describes them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
from flask import Blueprint, Response

from nexus import __version__
from nexus.access.budgets import BudgetSummary
from nexus.admin.budgets import BudgetList, NewGrant
from nexus.admin.history import MAX_REQUESTS
from nexus.admin.keys import ChangedKey, KeyList, KeyState, MadeKey, NewKey, RemovedKey, Rotation
from nexus.admin.openapi_clients import SCHEMAS, client_paths
from nexus.admin.openapi_schema import (
    FLAG,
    REF,
    TEXT,
    Schema,
    component,
    content,
    object_schema,
    parameter,
    refused,
    response,
)
from nexus.admin.responses import BackendList, BackendState, PastRequest, RemovedBackend
from nexus.admin.usage import BY, FORMATS, UsageReport
from nexus.config import BackendConfig
from nexus.fleet.problems import ProblemList
from nexus.fleet.status import Health
from nexus.metrics.stats import Stats
from nexus.proxy.endpoint_table import Endpoint
from nexus.proxy.endpoints import ENDPOINTS

_REFERENCE = re.compile(r"'#/components/schemas/(\w+)'")


class NewBackend(BackendConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A backend with the keys of `[[backends]]`; `save` keeps it over a restart of the gateway."""

    save: bool = False


_ERRORS = {
    400: "The request cannot be understood; nothing was changed.",
    401: "The operators' token is missing or wrong.",
    403: "A web page of another origin sent it.",
    404: "There is nothing of this name.",
    409: "The name is taken, or its owner is the configuration file.",
    415: "The body is not application/json.",
    429: "Asked for too often; try again in a second.",
}
_OPEN: list[Schema] = [{}, {"token": []}]
"""The token is required if the configuration says so."""
_FILTERS = [
    parameter("model", TEXT, "For which model."),
    parameter("backend", TEXT, "By which backend."),
]
_LIMIT: Schema = {"type": "integer", "minimum": 1, "maximum": MAX_REQUESTS, "default": 100}
_STATUS = parameter("status", {"enum": ["success", "error"]}, "How they ended.")
_STATUS_OR_ALL = parameter(
    "status", {"enum": ["", "success", "error"]}, "How they ended; empty for all."
)
_VERBOSE = [parameter("verbose", TEXT, "List the checks.")]
_NAME = parameter("name", TEXT, "Its name.", location="path")
_ID = parameter("key_id", TEXT, "Its id.", location="path")
_SAVE = parameter("save", {"enum": ["0", "1", "false", "true"]}, "`1`: keep it over a restart.")
_SAVE_BODY = object_schema(save=FLAG) | {"required": []}


def _operation(
    summary: str,
    tag: str,
    kind: type | str,
    *errors: int,
    status: int = 200,
    parameters: Sequence[Schema] = (),
    body: Schema | None = None,
    security: list[Schema] | None = None,
    also: Schema | None = None,
) -> Schema:
    """One method of a path.

    `kind`: the struct that it sends as JSON, or a media type; `also`: other content.
    """
    success: Schema = {"description": summary}
    if not isinstance(kind, str):
        success["content"] = content(_schema_of(kind)) | (also or {})
    elif kind:
        success["content"] = content(TEXT, kind)
    operation: Schema = {
        "summary": summary,
        "tags": [tag],
        "responses": {
            str(status): success,
            **{str(error): refused(_ERRORS[error]) for error in errors},
        },
    }
    if parameters:
        operation["parameters"] = list(parameters)
    if body is not None:
        operation["requestBody"] = {"required": True, "content": content(body)}
    if security is not None:
        operation["security"] = security
    return operation


def _read(summary: str, tag: str, kind: type | str, *errors: int, **more: Any) -> Schema:
    """A GET that requires the token if the configuration says so."""
    return {"get": _operation(summary, tag, kind, 401, *errors, security=_OPEN, **more)}


def _probe(summary: str, kind: type | str, *, unready: bool = False, **more: Any) -> Schema:
    """A GET that is always open."""
    operation = _operation(summary, "Probes", kind, **more)
    if unready:
        operation["responses"]["503"] = response("No.", TEXT, "text/plain")
    return {"get": operation}


def _admin(
    summary: str, kind: type | str, *errors: int, tag: str = "Backends", **more: Any
) -> Schema:
    """An operation that always requires the token."""
    return _operation(summary, tag, kind, 401, *errors, security=[{"token": []}], **more)


def _change(summary: str, kind: type, *errors: int, **more: Any) -> Schema:
    return _admin(summary, kind, 400, 403, 415, *errors, **more)


def _operations_paths() -> dict[str, Any]:
    return {
        "/metrics": _read("The metrics for Prometheus", "Metrics", "text/plain"),
        "/v1/stats": _read("The metrics as JSON", "Metrics", Stats),
        "/v1/problems": _read("What is wrong with the gateway", "Metrics", ProblemList),
        "/v1/history": _read(
            "The requests that ended last, newest first",
            "Metrics",
            list[PastRequest],
            400,
            429,
            parameters=[parameter("limit", _LIMIT, "At most so many."), _STATUS, *_FILTERS],
        ),
        "/v1/live": _read(
            "`history` once, then a `tick` every second", "Dashboard", "text/event-stream"
        ),
        "/": _read(
            "The dashboard",
            "Dashboard",
            "text/html",
            400,
            429,
            parameters=[_STATUS_OR_ALL, *_FILTERS],
        ),
        "/assets/{name}": _read(
            "A file of the dashboard", "Dashboard", "", 404, parameters=[_NAME]
        ),
        "/health": _probe("The health of the fleet; always 200", Health),
        "/livez": _probe("Whether the process is alive", "text/plain", parameters=_VERBOSE),
        "/readyz": _probe(
            "Whether it should get traffic", "text/plain", unready=True, parameters=_VERBOSE
        ),
        "/openapi.json": _probe("This document", dict),
    }


def _admin_paths() -> dict[str, Any]:
    one, state = {"parameters": [_NAME]}, BackendState
    key: dict[str, Any] = {"parameters": [_ID], "tag": "Keys"}
    return {
        "/admin/backends": {
            "get": _admin("Every backend and its state", BackendList),
            "post": _change("Add a backend", state, 409, status=201, body=component("NewBackend")),
        },
        "/admin/backends/{name}": {
            "delete": _change("Remove a backend", RemovedBackend, 404, parameters=[_NAME, _SAVE])
        },
        "/admin/backends/{name}/drain": {
            "post": _change("Send a backend no new requests", state, 404, body=_SAVE_BODY, **one)
        },
        "/admin/backends/{name}/undrain": {
            "post": _change("Send it requests again", state, 404, body=_SAVE_BODY, **one)
        },
        "/keys": {"get": _admin("The page of keys", "text/html", 404, tag="Dashboard")},
        "/usage": {
            "get": _admin(
                "The page of usage, budgets, and limits", "text/html", 404, tag="Dashboard"
            )
        },
        "/admin/keys": {
            "get": _admin("Every key and its state", KeyList, tag="Keys"),
            "post": _change(
                "Make a key", MadeKey, 409, status=201, body=component("NewKey"), tag="Keys"
            ),
        },
        "/admin/keys/{key_id}": {
            "get": _admin("One key", KeyState, 404, **key),
            "patch": _change(
                "Change a key", KeyState, 404, 409, body=component("ChangedKey"), **key
            ),
            "delete": _change("Remove a key", RemovedKey, 404, 409, **key),
        },
        "/admin/usage": {
            "get": _admin(
                "What was used, and what it cost",
                UsageReport,
                400,
                tag="Budgets",
                parameters=_USAGE,
                also=content(TEXT, "text/csv"),
            )
        },
        "/admin/budgets": {"get": _admin("How the budgets stand", BudgetList, tag="Budgets")},
        "/admin/budgets/grants": {
            "post": _change(
                "Add to a budget until its window ends",
                BudgetSummary,
                404,
                status=201,
                body=component("NewGrant"),
                tag="Budgets",
            )
        },
        "/admin/keys/{key_id}/rotate": {
            "post": _change(
                "Replace its secret", MadeKey, 404, 409, body=component("Rotation"), **key
            )
        },
    }


_ONE_OF = "|".join(BY)
_DAY_OR_TIME: Schema = {
    "type": "string",
    "anyOf": [{"format": "date"}, {"format": "date-time"}],
}
_USAGE = [
    parameter(
        "by",
        {"type": "string", "pattern": f"^(({_ONE_OF})(,({_ONE_OF}))*)?$"},
        f"Any of {', '.join(BY)}, with commas.",
    ),
    parameter("from", _DAY_OR_TIME, "A day, or a time."),
    parameter("to", _DAY_OR_TIME, "A day, or a time, which does not belong to the span."),
    parameter("format", {"enum": list(FORMATS)}, "The form of the report."),
]
_BACKENDS = (BackendList, RemovedBackend, NewBackend)
_KEYS = (KeyList, MadeKey, NewKey, ChangedKey, Rotation, RemovedKey)
_STRUCTS = (
    Stats,
    ProblemList,
    Health,
    PastRequest,
    BudgetList,
    NewGrant,
    UsageReport,
    *_BACKENDS,
    *_KEYS,
)


def _schema_of(kind: type) -> Schema:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=REF)
    return schema


def _components(paths: dict[str, Any]) -> dict[str, Schema]:
    """The schemas that the paths refer to, and those that these schemas refer to."""
    _, generated = msgspec.json.schema_components(_STRUCTS, ref_template=REF)
    for schema in generated.values():
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
    every = SCHEMAS | generated
    used: set[str] = set()
    missing = set(_REFERENCE.findall(str(paths)))
    while missing:
        used |= missing
        missing = set(_REFERENCE.findall(str([every[name] for name in missing]))) - used
    return {name: every[name] for name in sorted(used)}


def document(*, operations: bool) -> dict[str, Any]:
    """The document of the clients' port, or of the operations port."""
    return _document(operations, ENDPOINTS.custom)


@lru_cache(maxsize=4)
def _document(operations: bool, _custom: tuple[Endpoint, ...]) -> dict[str, Any]:
    paths = _operations_paths() | (_admin_paths() if operations else client_paths())
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Nexus: operations" if operations else "Nexus",
            "version": __version__,
            "description": "One endpoint in front of a fleet of LLM backends.",
        },
        "paths": paths,
        "components": {
            "schemas": _components(paths),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def openapi_endpoint(*, operations: bool) -> Blueprint:
    """`/openapi.json` for the port."""
    blueprint = Blueprint("openapi", __name__)

    @blueprint.get("/openapi.json")
    def openapi() -> Response:
        return Response(
            msgspec.json.encode(document(operations=operations)), mimetype="application/json"
        )

    return blueprint
