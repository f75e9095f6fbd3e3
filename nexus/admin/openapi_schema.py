"""The pieces that OpenAPI documents are made of."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
REF = "#/components/schemas/{name}"


def object_schema(**properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def list_schema(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def component(name: str) -> Schema:
    return {"$ref": REF.format(name=name)}


def content(schema: Schema, kind: str = "application/json") -> dict[str, Any]:
    return {kind: {"schema": schema}}


def response(description: str, schema: Schema, kind: str = "application/json") -> dict[str, Any]:
    return {"description": description, "content": content(schema, kind)}


def refused(description: str) -> dict[str, Any]:
    return response(description, component("Error"))


def parameter(
    name: str, schema: Schema, description: str, *, location: str = "query"
) -> dict[str, Any]:
    definition = {"name": name, "in": location, "schema": schema, "description": description}
    return definition | ({"required": True} if location == "path" else {})
