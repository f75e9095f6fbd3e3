"""The records of `[[limits]]`: how much may be used, and by whom."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from nexus.config.fields import Count, Section, Text, doc, repeated

MAX_LIMITS = 50
"""One request may be held to all of them at once."""
_PERIODS_S = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
_RATE = re.compile(r"([0-9]{1,12})([kM]?)/(s|min|h|d)")
_MOST_A_SECOND = 10_000_000
_FACTORS = {"": 1, "k": 1000, "M": 1_000_000}
RateName = Literal["requests", "tokens", "input_tokens", "output_tokens"]
RATES: tuple[RateName, ...] = get_args(RateName)
"""The settings of a limit that are rates."""

_RateText = Annotated[
    str,
    Meta(
        title='a text such as "60/min"',
        extra_json_schema={"pattern": f"^{_RATE.pattern}$"},
    ),
]
_Rate = Annotated[_RateText | None, doc("Such as 60/min or 200k/min: per s, min, h or d; k and M.")]
_Parallel = Annotated[
    Annotated[int, Meta(ge=0, le=1_000_000)] | None, doc("Requests in progress at once.")
]

LIMITS_OF_KEYS, LIMITS_OF_TEAMS = "[[keys]]", "[[teams]]"
"""The names under which the limits of keys and teams themselves are counted."""
COUNTING = "[messages] count_tokens_limit"
"""The name under which requests to count tokens are counted."""


class Rate(msgspec.Struct, frozen=True):
    """So many units in a period.

    Attributes:
        unit: `s`, `min`, `h` or `d`, as the configuration names the period.
    """

    amount: int
    period_ns: int
    unit: str


def parse_rate(text: str) -> Rate | None:
    """The rate that a text such as `200k/min` states; None if it states none."""
    match = _RATE.fullmatch(text)
    if match is None:
        return None
    return Rate(int(match[1]) * _FACTORS[match[2]], _PERIODS_S[match[3]] * 1_000_000_000, match[3])


class Match(Section, frozen=True):
    """Which requests are meant; what is not set matches all."""

    key: Annotated[Text, doc("Glob on the id of the key; `user:NAME` for a user.")] = "*"
    user: Annotated[Text, doc("Glob on the user's name of [auth.identity]; `none` for others.")] = (
        "*"
    )
    team: Annotated[Text, doc("Glob on the name of the team.")] = "*"
    model: Annotated[Text, doc("Glob on the model, with aliases resolved.")] = "*"
    endpoint: Annotated[Text, doc('Glob on the endpoint, such as "chat_completions".')] = "*"


class Limit(Section, frozen=True):
    """How much matching requests may use. All limits that match a request must admit it."""

    name: Annotated[
        str,
        Meta(min_length=1, max_length=100),
        doc("Its name, which messages and metrics have."),
    ]
    match: Match = Match()
    each: Annotated[
        list[Literal["key", "user", "team", "model", "endpoint"]],
        doc("Count for each value of these on its own; empty: one count for all."),
    ] = msgspec.field(default_factory=list)
    requests: _Rate = None
    tokens: _Rate = None
    input_tokens: _Rate = None
    output_tokens: _Rate = None
    burst_requests: Annotated[
        Count | None, doc("Requests that are admitted at once; unset: the number of `requests`.")
    ] = None
    parallel: _Parallel = None
    parallel_wait_seconds: Annotated[
        Annotated[float, Meta(ge=0, le=3600)],
        doc("How long a request waits until another one has ended, before it gets 429. 0: not."),
    ] = 0.0
    reserve_output: Annotated[
        Count | Literal["full"],
        doc(
            "Tokens reserved at most for a response until its usage is known. full: as many as the "
            "request allows, else as the model's context has; if neither is known, the request "
            "gets 400."
        ),
    ] = 1024
    cached_weight: Annotated[
        Annotated[float, Meta(ge=0, le=1)], doc("What a cached prompt token counts.")
    ] = 1.0
    shadow: Annotated[bool, doc("Count what would be refused, and refuse nothing.")] = False
    suspend: Annotated[bool, doc("Allows 0, which refuses every matching request.")] = False


class OwnLimits(Section, frozen=True):
    """How much one key may use, or all keys of one team together."""

    requests: _Rate = None
    tokens: _Rate = None
    input_tokens: _Rate = None
    output_tokens: _Rate = None
    parallel: _Parallel = None


def own_limit_problems(own: OwnLimits) -> Iterator[str]:
    """What is wrong with the limits of a key or a team."""
    yield from _rate_problems(own, zero="block the keys if that is meant")


def limit_conflicts(limits: list[Limit]) -> Iterator[str]:
    """What is wrong with limits whose values all have the right form."""
    if len(limits) > MAX_LIMITS:
        yield f"[[limits]] has {len(limits)} entries; at most {MAX_LIMITS} are allowed."
    for name in repeated(limit.name for limit in limits):
        yield f'[[limits]] name = "{name}" is used twice; each limit needs a name of its own.'
    for limit in limits:
        where = f'[[limits]] "{limit.name}"'
        if limit.name in (LIMITS_OF_KEYS, LIMITS_OF_TEAMS, COUNTING):
            yield f"{where} is not allowed; it names a limit that is configured elsewhere."
        yield from (f"{where} {problem}" for problem in _problems(limit))


def counting_limit_problems(rate: str) -> Iterator[str]:
    """What is wrong with `[messages] count_tokens_limit`."""
    if rate != "off":
        for problem in _rate_problems(OwnLimits(requests=rate), zero='"off" means no limit'):
            yield f"[messages] count_tokens_limit{problem.removeprefix('requests')}"


def _problems(limit: Limit) -> Iterator[str]:
    zero = None if limit.suspend else "set suspend = true if that is meant"
    yield from _rate_problems(limit, zero=zero)
    if limit.burst_requests is not None and limit.requests is None:
        yield "burst_requests has no effect without requests."
    if limit.parallel_wait_seconds and limit.parallel is None:
        yield "parallel_wait_seconds has no effect without parallel."


def _rate_problems(limit: Limit | OwnLimits, *, zero: str | None) -> Iterator[str]:
    """What is wrong with the numbers of a limit. `zero` says what to do about a 0, if anything."""
    texts = [(name, getattr(limit, name)) for name in RATES]
    given = [(name, str(text)) for name, text in texts if text is not None]
    numbers: list[tuple[str, int]] = []
    for name, text in given:
        rate = parse_rate(text)
        if rate is None:
            yield (
                f'{name} = "{text}" is not allowed; it takes a number, optionally k or M, and '
                "/s, /min, /h or /d, such as 200k/min."
            )
            continue
        numbers.append((name, rate.amount))
        if rate.amount * 1_000_000_000 > _MOST_A_SECOND * rate.period_ns:
            yield f'{name} = "{text}" is not allowed; at most {_MOST_A_SECOND // 10**6}M/s is.'
    if limit.parallel is not None:
        numbers.append(("parallel", limit.parallel))
    if not given and limit.parallel is None:
        yield "limits nothing; set requests, tokens, input_tokens, output_tokens or parallel."
    for setting, number in numbers:
        if number == 0 and zero is not None:
            yield f"{setting} = 0 refuses every request; {zero}."
