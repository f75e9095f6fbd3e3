"""The record of one finished request, from which metrics, history, and both logs are made."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import force_setattr

from nexus.errors import Fault


class AttemptRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One attempt of a request.

    Attributes:
        outcome: The fault's code, or `success`.
    """

    backend: str
    model: str
    outcome: str
    ms: float


class StreamOutcome(msgspec.Struct, kw_only=True, gc=False):
    """How a relayed stream went.

    Attributes:
        end: One of `STREAM_ENDS`.
        ttft_s: From the request's arrival to the first content; None if none came.
        tpot_s: Mean time between two tokens; None for fewer than two.
        tpot_by: What was counted for `tpot_s`: `tokens` (as reported) or `events`.
    """

    end: str
    events: int
    longest_gap_s: float
    ttft_s: float | None = None
    tpot_s: float | None = None
    tpot_by: str = "tokens"


class Charge(msgspec.Struct, frozen=True, gc=False):
    """What a request cost, in nano-dollars.

    Attributes:
        parts: The cost of the response by its type, such as `input`; parts of 0 are left out.
        unpriced: The cost is unknown, because the backend that served has no price.
        retried: The costs of failed attempts: label values of backend and model, and the amount.
        total: The sum of `parts`, which the client is charged.
    """

    parts: tuple[tuple[str, int], ...] = ()
    unpriced: bool = False
    retried: tuple[tuple[str, str, int], ...] = ()
    total: int = 0

    def __post_init__(self) -> None:
        force_setattr(self, "total", sum([nano for _, nano in self.parts]))


class Outcome(msgspec.Struct, kw_only=True, gc=False):
    """The result of a request. It is made once, when the request ends.

    Attributes:
        requested_model: The model as the client named it.
        model: The model that served the request, or should have served it.
        model_label: The label value of `model`.
        status: What the client saw; 499, 502 and 504 also for streams that ended early.
        fault: None for a success.
        ended: On the monotonic clock.
        usage: The source of the token counts; None if no backend served the request.
        fallback_from: The label value of the model that a fallback replaced.
        failed_attempts: The attempts before the last, or all of them.
        last_attempt_s: How long the last attempt took; None if it is in `failed_attempts`.
        affinity: The source of the session, and whether its home served; None without affinity.
        key: The id of the caller's key; None without `[auth]`, as are the next three.
        team: The name of its team.
        key_label: The label value of the key.
        team_label: The label value of the team.
        translation: The translation between the client and the backend; None without one.
        units: What its endpoint counts beside tokens, and how many; None if that is nothing.
        charge: What the request cost; None without prices.
        before_s: Time in the gateway before the request was sent to the backend.
        after_s: Time in the gateway after the response had arrived.
    """

    request_id: str = ""
    endpoint: str = ""
    requested_model: str = ""
    model: str = ""
    model_label: str
    backend: str | None = None
    backend_label: str
    reason: str | None = None
    status: int
    fault: Fault | None = None
    ended: float = 0.0
    duration_s: float
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_write_tokens: int | None = None
    usage: str | None = None
    fallback_from: str | None = None
    stream: StreamOutcome | None = None
    failed_attempts: Sequence[AttemptRecord] = ()
    last_attempt_s: float | None = None
    affinity: tuple[str, str] | None = None
    key: str | None = None
    team: str | None = None
    key_label: str | None = None
    team_label: str | None = None
    translation: str | None = None
    units: tuple[str, float] | None = None
    charge: Charge | None = None
    before_s: float | None = None
    after_s: float | None = None

    @property
    def attempts(self) -> int:
        return len(self.failed_attempts) + (self.last_attempt_s is not None)


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
