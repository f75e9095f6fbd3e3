"""`/openapi.json`: the endpoints that a port serves, as OpenAPI 3.1 describes them.

Answers of ours are described to the last key. What goes to a backend and comes from one is OpenAI's, and passes
through; of that only what the gateway itself reads is said.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from flask import Blueprint, Response

from nexus import __version__
from nexus.config import BackendConfig
from nexus.errors import FAULTS

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_TEXT_OR_NONE: Schema = {"type": ["string", "null"]}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_COUNT_OR_NONE: Schema = {"type": ["integer", "null"], "minimum": 0}
_AMOUNT: Schema = {"type": "number", "minimum": 0}
_AMOUNT_OR_NONE: Schema = {"type": ["number", "null"], "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_CIRCUIT: Schema = {"enum": ["closed", "open", "half_open"]}
_NEVER_SEEN = 499  # the status of a client that is gone


def _object(**properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _component(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_WINDOW: Schema = _object(
    seconds=_COUNT,
    attempts=_COUNT,
    error_rate=_AMOUNT_OR_NONE,
    success_rate=_AMOUNT_OR_NONE,
    average_ttft_ms=_AMOUNT_OR_NONE,
)
_SCHEMAS: dict[str, Schema] = {
    "Error": {
        "type": "object",
        "properties": {
            "error": _object(message=_TEXT, type=_TEXT, param=_TEXT_OR_NONE, code=_TEXT_OR_NONE),
            "context": {"type": "object", "description": "On a 503: what could serve, and when."},
        },
        "required": ["error"],
        "additionalProperties": False,
    },
    "Answer": {"type": "object", "description": "The backend's answer, as it came."},
    "Model": _object(
        id=_TEXT,
        object={"const": "model"},
        created=_COUNT,
        owned_by=_TEXT,
        backends=_list(_TEXT),
        alias_of=_TEXT,
        context_length=_COUNT,
        capabilities=_object(vision=_FLAG, tools=_FLAG, json_mode=_FLAG) | {"required": []},
        tasks=_list(_TEXT),
    )
    | {"required": ["id", "object", "created", "owned_by", "backends"]},
    "Health": _object(
        status={"enum": ["healthy", "degraded", "unhealthy"]},
        version=_TEXT,
        uptime_seconds=_COUNT,
        backends=_object(total=_COUNT, healthy=_COUNT, unhealthy=_COUNT),
        models=_object(total=_COUNT),
    ),
    "Stats": _object(
        uptime_seconds=_COUNT,
        requests=_object(total=_COUNT, success=_COUNT, errors=_COUNT),
        streams=_object(
            active=_COUNT,
            average_ttft_ms=_AMOUNT_OR_NONE,
            average_tokens_per_second=_AMOUNT_OR_NONE,
            ends={"type": "object", "additionalProperties": _COUNT},
        ),
        queue=_object(depth=_COUNT),
        backends=_list(
            _object(
                id=_TEXT,
                name=_TEXT,
                requests=_COUNT,
                average_latency_ms=_AMOUNT,
                probe_latency_ms=_AMOUNT,
                pending=_COUNT,
                circuit=_CIRCUIT,
                last_hour=_WINDOW,
                last_day=_WINDOW,
                trouble={"enum": ["hangs", "refuses_all", None]},
            )
        ),
        models=_list(
            _object(
                name=_TEXT,
                requests=_COUNT,
                average_duration_ms=_AMOUNT,
                average_ttft_ms=_AMOUNT_OR_NONE,
            )
        ),
    ),
    "PastRequest": _object(
        timestamp=_COUNT,
        model=_TEXT,
        backend_id=_TEXT_OR_NONE,
        duration_ms=_AMOUNT,
        status={"enum": ["Success", "Error"]},
        error_message=_TEXT_OR_NONE,
        id=_TEXT,
        ended=_AMOUNT,
        endpoint=_TEXT,
        asked_model=_TEXT,
        http_status={"type": "integer", "minimum": 100, "maximum": 599},
        error_type=_TEXT_OR_NONE,
        reason=_TEXT_OR_NONE,
        stream=_FLAG,
        ttft_ms=_AMOUNT_OR_NONE,
        prompt_tokens=_COUNT_OR_NONE,
        completion_tokens=_COUNT_OR_NONE,
        attempts=_list(_object(backend=_TEXT, model=_TEXT, outcome=_TEXT, ms=_AMOUNT)),
    ),
    "Backend": _object(
        id=_TEXT,
        name=_TEXT,
        url=_TEXT,
        type=_TEXT,
        zone=_TEXT,
        tier=_COUNT,
        priority=_COUNT,
        status={"enum": ["healthy", "unhealthy", "unknown"]},
        since=_AMOUNT,
        draining=_FLAG,
        origin={"enum": ["file", "added", "saved"]},
        circuit=_CIRCUIT,
        in_flight=_COUNT,
        capacity=_COUNT_OR_NONE,
        latency_ms=_AMOUNT_OR_NONE,
        models=_list(_TEXT),
        error=_TEXT_OR_NONE,
    ),
}


def _content(schema: Schema, kind: str = "application/json") -> dict[str, Any]:
    return {kind: {"schema": schema}}


def _answer(description: str, schema: Schema, kind: str = "application/json") -> dict[str, Any]:
    return {"description": description, "content": _content(schema, kind)}


def _refused(description: str) -> dict[str, Any]:
    return _answer(description, _component("Error"))


def _parameter(
    name: str, schema: Schema, description: str, *, place: str = "query"
) -> dict[str, Any]:
    found = {"name": name, "in": place, "schema": schema, "description": description}
    return found | ({"required": True} if place == "path" else {})


_UNAUTHORIZED = {"401": _refused("The operators' token is missing or wrong.")}
_TOKEN: dict[str, Any] = {
    "security": [{}, {"token": []}]
}  # asked for where the configuration says so


def _faults() -> dict[str, Any]:
    """What a proxied request can come to, from the table of faults: one response for each status."""
    by_status: dict[str, list[str]] = {}
    for fault in FAULTS.values():
        if fault.status != _NEVER_SEEN:
            status = str(fault.status) if fault.status else "default"
            by_status.setdefault(status, []).append(f"`{fault.code}`: {fault.description}")
    return {status: _refused("\n\n".join(lines)) for status, lines in sorted(by_status.items())}


_NOT_NULL: Schema = {"type": ["string", "array", "object", "number", "boolean"]}
_ASKED: dict[str, Schema] = {"messages": {"type": "array", "minItems": 1}}
"""What the gateway itself asks of a key."""


def _request(*needed: str) -> Schema:
    """A request that has a model and one of these keys."""
    shapes = [
        {
            "type": "object",
            "properties": {
                "model": {"type": "string", "minLength": 1},
                "stream": _FLAG,
                key: _ASKED.get(key, _NOT_NULL),
            },
            "required": ["model", key],
            "description": "OpenAI's request; fields that are not named here go to the backend as they are.",
        }
        for key in needed
    ]
    return shapes[0] if len(shapes) == 1 else {"anyOf": shapes}


def _proxied(summary: str, *needed: str, streams: bool) -> dict[str, Any]:
    content = _content(_component("Answer"))
    if streams:
        content |= _content(_TEXT, "text/event-stream")
    return {
        "post": {
            "summary": summary,
            "tags": ["OpenAI"],
            "parameters": [
                _parameter(
                    "X-Nexus-Priority",
                    {"enum": ["high", "normal"]},
                    "Who goes first.",
                    place="header",
                ),
                _parameter(
                    "X-Nexus-Flexible", _TEXT, "`true`: a lower tier will do.", place="header"
                ),
                _parameter("X-Nexus-Strict", _TEXT, "`true`: it will not.", place="header"),
                _parameter("X-Request-Id", _TEXT, "A name for the request.", place="header"),
            ],
            "requestBody": {"required": True, "content": _content(_request(*needed))},
            "responses": {
                "200": {"description": "The backend's answer.", "content": content},
                **_faults(),
            },
        }
    }


def _get(summary: str, tag: str, responses: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"get": {"summary": summary, "tags": [tag], "responses": responses, **more}}


def _openai_paths() -> dict[str, Any]:
    models = _object(object={"const": "list"}, data=_list(_component("Model")))
    return {
        "/v1/chat/completions": _proxied("Answer a conversation", "messages", streams=True),
        "/v1/completions": _proxied("Go on with a text", "prompt", "prompt_embeds", streams=True),
        "/v1/embeddings": _proxied("Embed texts", "input", "messages", streams=False),
        "/v1/models": _get(
            "Every model of the healthy backends, and every alias",
            "OpenAI",
            {"200": _answer("The models.", models)},
        ),
        "/v1/models/{model}": _get(
            "One model, an alias too",
            "OpenAI",
            {
                "200": _answer("The model.", _component("Model")),
                "404": _refused("There is no such model."),
            },
            parameters=[_parameter("model", _TEXT, "Its name; it may hold slashes.", place="path")],
        ),
    }


def _operations_paths() -> dict[str, Any]:
    verbose = [_parameter("verbose", _TEXT, "List the checks.")]
    ready = {
        "200": _answer("Yes.", _TEXT, "text/plain"),
        "503": _answer("No.", _TEXT, "text/plain"),
    }
    filters = [
        _parameter(
            "limit",
            {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
            "At most so many.",
        ),
        _parameter("status", {"enum": ["success", "error"]}, "How they ended."),
        _parameter("model", _TEXT, "For which model."),
        _parameter("backend", _TEXT, "By which backend."),
    ]
    page = [one for one in filters if one["name"] in ("model", "backend")]
    page.append(
        _parameter("status", {"enum": ["", "success", "error"]}, "How they ended; empty for all.")
    )
    html = {
        "200": _answer("The page.", _TEXT, "text/html"),
        "400": _refused("A filter that cannot be meant."),
    }
    html |= {"429": _refused("Asked for too often; a second later it is there.")}
    past = {
        "429": html["429"],
        "200": _answer("Newest first.", _list(_component("PastRequest"))),
        "400": _refused("A filter that cannot be meant."),
    }
    events = {"200": _answer("`history` once, then a `tick` a second.", _TEXT, "text/event-stream")}
    asset = {"200": {"description": "The file."}, "404": _refused("There is no such file.")}
    name = [_parameter("name", _TEXT, "Its name.", place="path")]
    figures = {"200": _answer("Text format 0.0.4.", _TEXT, "text/plain")}
    stats = {"200": _answer("The figures.", _component("Stats"))}
    return {
        "/metrics": _get(
            "The figures for Prometheus", "Figures", figures | _UNAUTHORIZED, **_TOKEN
        ),
        "/v1/stats": _get("The figures as JSON", "Figures", stats | _UNAUTHORIZED, **_TOKEN),
        "/v1/history": _get(
            "The requests that ended last",
            "Figures",
            past | _UNAUTHORIZED,
            parameters=filters,
            **_TOKEN,
        ),
        "/v1/live": _get(
            "What the dashboard follows", "Dashboard", events | _UNAUTHORIZED, **_TOKEN
        ),
        "/": _get("The dashboard", "Dashboard", html | _UNAUTHORIZED, parameters=page, **_TOKEN),
        "/assets/{name}": _get(
            "Its parts", "Dashboard", asset | _UNAUTHORIZED, parameters=name, **_TOKEN
        ),
        "/health": _get(
            "How the fleet is", "Probes", {"200": _answer("Always.", _component("Health"))}
        ),
        "/livez": _get(
            "Whether the process is alive", "Probes", {"200": ready["200"]}, parameters=verbose
        ),
        "/readyz": _get("Whether it should get traffic", "Probes", ready, parameters=verbose),
        "/openapi.json": _get(
            "This document", "Probes", {"200": _answer("OpenAPI 3.1.", {"type": "object"})}
        ),
    }


def _admin_paths() -> dict[str, Any]:
    name = [_parameter("name", _TEXT, "The backend's name.", place="path")]
    common = _UNAUTHORIZED | {"400": _refused("What is asked cannot be; nothing was changed.")}
    foreign = {"403": _refused("A web page of another origin sent it.")}
    no_json = {"415": _refused("The body is not application/json.")}
    common |= foreign | no_json
    missing = common | {"404": _refused("No backend has the name.")}
    backend, saved = (
        _answer("The backend.", _component("Backend")),
        _object(save=_FLAG) | {"required": []},
    )

    def operation(summary: str, responses: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {
            "summary": summary,
            "tags": ["Backends"],
            "responses": responses,
            "security": [{"token": []}],
            **more,
        }

    def body(schema: Schema, *, required: bool) -> dict[str, Any]:
        return {"required": required, "content": _content(schema)}

    def change(summary: str) -> dict[str, Any]:
        more = {"parameters": name, "requestBody": body(saved, required=True)}
        return {"post": operation(summary, {"200": backend, **missing}, **more)}

    every = _answer("All of them.", _object(backends=_list(_component("Backend"))))
    new = _component("NewBackend")
    exists = {"409": _refused("A backend has the name already.")}
    removed = _answer("It is gone.", _object(removed=_TEXT))
    save = _parameter("save", {"enum": ["0", "1", "false", "true"]}, "`1`: for good.")
    return {
        "/admin/backends": {
            "get": operation("Every backend and how it is", {"200": every, **_UNAUTHORIZED}),
            "post": operation(
                "Add a backend",
                {"201": backend, **common, **exists},
                requestBody=body(new, required=True),
            ),
        },
        "/admin/backends/{name}": {
            "delete": operation(
                "Remove a backend", {"200": removed, **missing}, parameters=[*name, save]
            )
        },
        "/admin/backends/{name}/drain": change("Give a backend no new requests"),
        "/admin/backends/{name}/undrain": change("Give it requests again"),
    }


@cache
def document(*, operations: bool) -> dict[str, Any]:
    """The document of the clients' port, or of the operations port."""
    schemas = dict(_SCHEMAS)
    paths = _operations_paths()
    if operations:
        (shape,), parts = msgspec.json.schema_components(
            [BackendConfig], ref_template="#/components/schemas/{name}"
        )
        settings = parts.pop(shape["$ref"].rpartition("/")[2])
        schemas |= parts
        schemas["NewBackend"] = settings | {"properties": settings["properties"] | {"save": _FLAG}}
        paths |= _admin_paths()
    else:
        paths |= _openai_paths()
    used = str(paths) + str(schemas.get("NewBackend"))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Nexus: operations" if operations else "Nexus",
            "version": __version__,
            "description": "One OpenAI-compatible endpoint in front of a fleet of LLM backends.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                name: schema
                for name, schema in sorted(schemas.items())
                if f"schemas/{name}'" in used
            },
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
