"""What `--json` prints, command by command: the gateway's own responses as `/openapi.json` has
them, ours beside."""

from typing import Any

from nexus.admin.openapi import document

Schema = dict[str, Any]

TEXT, COUNT, NUMBER, FLAG = (
    {"type": "string"},
    {"type": "integer", "minimum": 0},
    {"type": "number"},
    {"type": "boolean"},
)
TEXTS = {"type": "array", "items": TEXT}


def maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def record(**properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def every(schema: Schema, *, least: int = 1) -> Schema:
    return {"type": "array", "items": schema, "minItems": least}


def component(name: str) -> Schema:
    """A component with those that it refers to in their places."""
    schemas = document(operations=True)["components"]["schemas"]

    def resolved(schema: Any) -> Any:
        if isinstance(schema, list):
            return [resolved(one) for one in schema]
        if not isinstance(schema, dict):
            return schema
        if "$ref" in schema:
            return resolved(schemas[schema["$ref"].rpartition("/")[2]])
        return {key: resolved(value) for key, value in schema.items()}

    found: Schema = resolved(schemas[name])
    return found


BACKEND = component("BackendState")
SEEN = BACKEND["properties"] | {
    "requests": COUNT,
    "average_latency_ms": maybe(NUMBER),
    "trouble": component("BackendStats")["properties"]["trouble"],
}
VERDICT = record(
    backend=TEXT,
    model=TEXT,
    out=TEXT,
    turn=maybe(COUNT),
    score=maybe(NUMBER),
    pending=COUNT,
    limit=maybe(COUNT),
    circuit=TEXT,
    translation=maybe(TEXT),
)
PROBLEM = record(
    code=TEXT,
    severity={"enum": ["error", "warning"]},
    subject=TEXT,
    what=TEXT,
    mend=TEXT,
    since=maybe(NUMBER),
)
FINDING = record(area=TEXT, state={"enum": ["ok", "warn", "fail"]}, what=TEXT, mend=maybe(TEXT))
FAMILY = record(
    name=TEXT,
    kind=TEXT,
    help=TEXT,
    labels=TEXTS,
    buckets={"type": "array", "items": NUMBER},
    source=TEXT,
)
SAMPLE = record(name=TEXT, labels={"type": "object", "additionalProperties": TEXT}, value=NUMBER)

KEY: dict[str, Schema] = {
    "id": TEXT,
    "name": TEXT,
    "team": maybe(TEXT),
    "state": {"enum": ["active", "expired", "blocked"]},
    "origin": {"enum": ["file", "added"]},
    "expires": maybe(TEXT),
    "grace_until": maybe(TEXT),
    "models": {"type": "array", "items": TEXTS},
    "endpoints": {"type": "array", "items": TEXTS},
    "priority": {"enum": ["normal", "high"]},
    "limits": maybe(component("OwnLimits")),
}

SCHEMAS: dict[str, Schema] = {
    "status": record(
        healthy=FLAG,
        status=TEXT,
        url=maybe(TEXT),
        operations_url=maybe(TEXT),
        run_dir=maybe(TEXT),
        version=TEXT,
        uptime_seconds=COUNT,
        workers=COUNT,
        models=COUNT,
        requests=component("Stats")["properties"]["requests"],
        streams=component("Stats")["properties"]["streams"],
        queue=component("Stats")["properties"]["queue"],
        exhausted_limits=every(
            record(limit=TEXT, subject=TEXT, dimension=TEXT, left=NUMBER), least=0
        ),
        backends=every(record(**SEEN)),
        problems=every(PROBLEM, least=0),
    ),
    "backends list": record(backends=every(BACKEND)),
    "backends add": BACKEND,
    "backends drain": BACKEND,
    "backends undrain": BACKEND,
    "backends remove": record(removed=TEXT),
    "models": record(
        models=every(
            record(
                name=TEXT,
                backends=TEXTS,
                alias_of=maybe(TEXT),
                context_length=maybe(COUNT),
                tasks=maybe(TEXTS),
                capabilities={"type": "object", "additionalProperties": FLAG},
            )
        )
    ),
    "health": component("Health"),
    "stats": component("Stats"),
    "history": every(component("PastRequest")),
    "route explain": record(
        asked=TEXT,
        resolved=TEXT,
        chain=TEXTS,
        restricted=FLAG,
        min_tier=COUNT,
        strategy=TEXT,
        verdicts=every(VERDICT),
        refusal=maybe({"type": "array"}),
        affinity=maybe(record(source=TEXT, result=maybe(TEXT), order=TEXTS)),
    ),
    "metrics list": every(FAMILY),
    "metrics bound": record(
        total=COUNT, families={"type": "object", "additionalProperties": COUNT}
    ),
    "metrics get": record(family=TEXT, type=TEXT, samples=every(SAMPLE)),
    "usage": component("UsageReport"),
    "prices update": record(
        file=TEXT,
        proposed=COUNT,
        unknown=every(record(backend=TEXT, model=TEXT), least=0),
        diff=TEXT,
    ),
    "budgets": record(budgets=every(component("BudgetSummary"), least=0)),
    "budgets grant": component("BudgetSummary"),
    "prices check": record(
        version=maybe(TEXT),
        prices=COUNT,
        models=COUNT,
        unpriced=every(record(backend=TEXT, model=TEXT), least=0),
    ),
    "keys new": record(id=TEXT, key=TEXT, sha256=TEXT),
    "keys digest": record(sha256=TEXT),
    "keys list": every(record(**KEY), least=0),
    "keys show": record(**KEY),
    "keys edit": record(**KEY),
    "keys block": record(**KEY),
    "keys unblock": record(**KEY),
    "keys add": record(key=TEXT, **KEY),
    "keys rotate": record(key=TEXT, **KEY),
    "keys import": record(key={"type": "null"}, **KEY),
    "keys remove": record(removed=TEXT),
    "config check": record(
        file=maybe(TEXT), usable=FLAG, problems=TEXTS, warnings=TEXTS, backends=maybe(COUNT)
    ),
    "config init": record(file=TEXT),
    "config show": record(
        config={"type": "object", "required": ["server", "backends"]},
        origins={"type": "object", "additionalProperties": TEXT, "minProperties": 20},
    ),
    "chat": record(
        model=TEXT,
        text=TEXT,
        finish_reason=maybe(TEXT),
        error=maybe(TEXT),
        request_id=TEXT,
        backend=TEXT,
        backend_type=TEXT,
        route_reason=TEXT,
        fallback_model=maybe(TEXT),
        ttft_ms=NUMBER,
        duration_ms=NUMBER,
        prompt_tokens=maybe(COUNT),
        completion_tokens=maybe(COUNT),
        tokens_per_second=maybe(NUMBER),
    ),
    "reload": record(
        reloaded=FLAG,
        count=COUNT,
        problems=TEXTS,
        warnings=TEXTS,
        restart=TEXTS,
        backends=COUNT,
        file=TEXT,
    ),
    "doctor": record(healthy=FLAG, findings=every(FINDING)),
}
