"""JSON documents of the admin endpoints; statistics and problems have modules of their own."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from flask import Response

from nexus.config.overlay import Origin
from nexus.fleet.circuits import State
from nexus.fleet.history import RequestRecord
from nexus.fleet.records import Status
from nexus.runtime.documents import Amount, Count, Document


class BackendState(Document, frozen=True):
    """A backend as operators see it.

    Attributes:
        id: Its label value in `/metrics`.
        since: When its status last changed, in Unix seconds.
        origin: Where it comes from: the configuration file, or a change that was saved or not.
        capacity: The most requests that it is given at once; null for no limit.
        latency_ms: Duration of its last good probe.
        dialects: The APIs that it speaks, as configured, or as it was found.
        error: What its last probe failed with.
    """

    id: str
    name: str
    url: str
    type: str
    zone: str
    tier: Count
    priority: Count
    status: Status
    since: Amount
    draining: bool
    origin: Origin
    circuit: State
    in_flight: Count
    capacity: Count | None
    latency_ms: Amount | None
    models: list[str]
    dialects: list[str]
    error: str | None


class BackendList(Document, frozen=True):
    backends: list[BackendState]


class RemovedBackend(Document, frozen=True):
    removed: str


class PastAttempt(Document, frozen=True):
    """One attempt of a request.

    Attributes:
        outcome: `success`, or the name of the error.
    """

    backend: str
    model: str
    outcome: str
    ms: Amount


class PastRequest(Document, frozen=True):
    """A request that has ended.

    Attributes:
        timestamp: When it ended, in whole Unix seconds; `ended` has the fraction.
        model: The model that was last tried; `asked_model` is the one that the client named.
        backend_id: Name of the backend that was last tried.
        reason: Why the request was routed to it.
    """

    timestamp: Count
    model: str
    backend_id: str | None
    duration_ms: Amount
    status: Literal["Success", "Error"]
    error_message: str | None
    id: str
    ended: Amount
    endpoint: str
    asked_model: str
    http_status: Count
    error_type: str | None
    reason: str | None
    stream: bool
    ttft_ms: Amount | None
    prompt_tokens: Count | None
    completion_tokens: Count | None
    attempts: list[PastAttempt]

    @classmethod
    def of(cls, record: RequestRecord) -> PastRequest:
        failed = record.status >= 400
        error = record.fault or record.error_type or str(record.status)
        return cls(
            timestamp=int(record.ended),
            model=record.model,
            backend_id=record.backend,
            duration_ms=record.duration_ms,
            status="Error" if failed else "Success",
            error_message=error if failed else None,
            id=record.id,
            ended=round(record.ended, 3),
            endpoint=record.endpoint,
            asked_model=record.requested_model,
            http_status=record.status,
            error_type=record.error_type,
            reason=record.reason,
            stream=record.stream,
            ttft_ms=record.ttft_ms,
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
            attempts=[
                PastAttempt(backend=one.backend, model=one.model, outcome=one.outcome, ms=one.ms)
                for one in record.attempts
            ],
        )


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, mimetype="application/json")
