"""The clients' endpoints in OpenAPI: the proxied ones and the list of models.

Proxied requests and responses pass through unchanged. Only what the gateway itself reads of them
is described.
"""

from __future__ import annotations

from typing import Any

from nexus.access.limits import DIMENSIONS
from nexus.admin.openapi_schema import (
    COUNT,
    FLAG,
    TEXT,
    TEXT_OR_NULL,
    Schema,
    component,
    content,
    list_schema,
    object_schema,
    parameter,
    refused,
    response,
)
from nexus.dialects.base import PromptField
from nexus.errors import FAULTS
from nexus.proxy.endpoint_table import Endpoint
from nexus.proxy.endpoints import ENDPOINTS

_NEVER_SEEN = 499  # the client has disconnected


SCHEMAS: dict[str, Schema] = {
    "Error": {
        "type": "object",
        "properties": {
            "error": object_schema(message=TEXT, type=TEXT, param=TEXT_OR_NULL, code=TEXT_OR_NULL),
            "context": {"type": "object", "description": "On a 503: what could serve, and when."},
        },
        "required": ["error"],
        "additionalProperties": False,
    },
    "AnthropicError": object_schema(
        type={"const": "error"},
        error=object_schema(type=TEXT, message=TEXT, code=TEXT_OR_NULL, param=TEXT)
        | {"required": ["type", "message"]},
        request_id=TEXT_OR_NULL,
        context={"type": "object", "description": "On a 503: what could serve, and when."},
    )
    | {"required": ["type", "error", "request_id"]},
    "Answer": {"type": "object", "description": "The backend's response, unchanged."},
    "Key": object_schema(
        object={"const": "key"},
        id=TEXT_OR_NULL,
        user=TEXT_OR_NULL,
        name=TEXT_OR_NULL,
        team=TEXT_OR_NULL,
        models=list_schema(list_schema(TEXT)),
        endpoints=list_schema(list_schema(TEXT)),
        priority={"enum": ["normal", "high"]},
        budgets=list_schema(component("BudgetSummary")),
        expires=TEXT_OR_NULL,
        limits=list_schema(
            object_schema(
                name=TEXT,
                dimension={"enum": list(DIMENSIONS)},
                subject=TEXT_OR_NULL,
                model=TEXT,
                endpoint=TEXT,
                rate=TEXT_OR_NULL,
                capacity=COUNT,
                used=COUNT,
                left=COUNT,
                full_in_seconds={"type": "number", "minimum": 0},
                shadow=FLAG,
            )
        ),
    ),
    "Model": object_schema(
        id=TEXT,
        object={"const": "model"},
        created=COUNT,
        owned_by=TEXT,
        backends=list_schema(TEXT),
        alias_of=TEXT,
        context_length=COUNT,
        capabilities=object_schema(vision=FLAG, tools=FLAG, json_mode=FLAG) | {"required": []},
        tasks=list_schema(TEXT),
    )
    | {"required": ["id", "object", "created", "owned_by", "backends"]},
}


def _faults(schema: str) -> dict[str, Any]:
    """The error responses of a proxied request: one for each status in the table of faults."""
    by_status: dict[str, list[str]] = {}
    for fault in FAULTS.values():
        if fault.status != _NEVER_SEEN:
            status = str(fault.status) if fault.status else "default"
            by_status.setdefault(status, []).append(f"`{fault.code}`: {fault.description}")
    error = component(schema)
    return {s: response("\n\n".join(lines), error) for s, lines in sorted(by_status.items())}


_NOT_NULL: Schema = {"type": ["string", "array", "object", "number", "boolean"]}
_STREAM: Schema = {"type": ["boolean", "null"]}
_MESSAGES: Schema = {"type": "array", "minItems": 1}


def _form(prompt: PromptField) -> Schema:
    if not prompt.messages:
        return _NOT_NULL
    return {"anyOf": [_MESSAGES, {"type": "string", "minLength": 1}]} if prompt.text else _MESSAGES


def _request(prompt: PromptField) -> Schema:
    """A request with a model and this prompt, which is all that the gateway requires."""
    keys = {prompt.name: _form(prompt)}
    keys |= dict.fromkeys(prompt.beside, _NOT_NULL)
    return {
        "type": "object",
        "properties": {"model": {"type": "string", "minLength": 1}, "stream": _STREAM, **keys},
        "required": ["model", *keys],
        "description": "Other fields go to the backend unchanged.",
    }


def _body(endpoint: Endpoint) -> Schema:
    if not endpoint.by_model:
        return {}
    multipart = endpoint.body == "multipart"
    if multipart or endpoint.custom:
        fields: Schema = {"model": {"type": "string", "minLength": 1}}
        fields |= {"stream": TEXT} if multipart else {}
        return {"type": "object", "properties": fields, "required": ["model"]}
    forms = [_request(prompt) for prompt in endpoint.form.prompts]
    return forms[0] if len(forms) == 1 else {"anyOf": forms}


_OF_ROUTING = (
    parameter(
        "X-Nexus-Priority",
        TEXT,
        "`high` or `normal`: priority in the queue. Without effect if the key may not have it.",
        location="header",
    ),
    parameter("X-Nexus-Flexible", TEXT, "`true`: accepts a lower tier.", location="header"),
    parameter("X-Nexus-Strict", TEXT, "`true`: accepts no lower tier.", location="header"),
)


def _proxied(endpoint: Endpoint) -> dict[str, Any]:
    media = content(component("Answer"))
    if endpoint.streams:
        media |= content({}, "text/event-stream")
    if endpoint.binary:
        media |= content({}, "*/*")
    request_id = parameter("X-Request-Id", TEXT, "Identifies the request.", location="header")
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "tags": [endpoint.dialect.TITLE],
        "parameters": [*(_OF_ROUTING if endpoint.by_model else ()), request_id],
        "responses": {
            "200": {"description": "The backend's response.", "content": media},
            **_faults(endpoint.dialect.ERROR_SCHEMA),
        },
    }
    if "{id}" in endpoint.path:
        operation["parameters"].append(
            parameter("id", TEXT, "The id of what is stored.", location="path")
        )
    if endpoint.body == "none":
        return {method.lower(): operation for method in endpoint.methods}
    body = {kind: {"schema": _body(endpoint)} for kind in endpoint.content_types or ("*/*",)}
    with_body = operation | {"requestBody": {"required": endpoint.by_model, "content": body}}
    return {
        method.lower(): operation if method == "GET" else with_body for method in endpoint.methods
    }


def _get(summary: str, tag: str, responses: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"get": {"summary": summary, "tags": [tag], "responses": responses, **more}}


def client_paths() -> dict[str, Any]:
    models = object_schema(object={"const": "list"}, data=list_schema(component("Model")))
    return {
        **{endpoint.path: _proxied(endpoint) for endpoint in ENDPOINTS},
        "/v1/models": _get(
            "Every model of the healthy backends, and every alias",
            "OpenAI",
            {"200": response("The models.", models)},
        ),
        "/v1/models/{model}": _get(
            "One model, an alias too",
            "OpenAI",
            {
                "200": response("The model.", component("Model")),
                "404": refused("There is no such model."),
            },
            parameters=[
                parameter("model", TEXT, "Its name; it may hold slashes.", location="path")
            ],
        ),
        "/my-key": _get(
            "The page of the caller's key",
            "Dashboard",
            {
                "200": response("The page.", TEXT, "text/html"),
                "401": refused("The key is not valid."),
                "404": refused("The dashboard is off."),
            },
        ),
        "/my-key/{name}": _get(
            "A file of this page",
            "Dashboard",
            {
                "200": response("The file.", {}, ""),
                "404": refused("There is no such file."),
            },
            parameters=[parameter("name", TEXT, "Its name.", location="path")],
        ),
        "/v1/key": _get(
            "What the caller's key may use",
            "OpenAI",
            {
                "200": response("The key.", component("Key")),
                "401": refused("There is no valid key."),
            },
        ),
    }
