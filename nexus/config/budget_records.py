"""The records of `[[budgets]]`: how much may be spent, and by whom."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, tzinfo
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import Meta

from nexus.config.cost_records import Usd, nano_usd
from nexus.config.fields import Count, Section, doc, repeated
from nexus.config.limit_records import Match

RESERVED = "routing.budget"
"""The name of the budget that [routing.budget] makes."""
MAX_BUDGETS = 50
"""One request may be held to all of them at once."""
Period = Literal["hour", "day", "week", "month", "total"]


class Budget(Section, frozen=True):
    """How much matching requests may cost. All budgets that match a request must admit it."""

    name: Annotated[
        str,
        Meta(min_length=1, max_length=64),
        doc("Its name, which messages and metrics have. With another name it starts anew."),
    ]
    usd: Annotated[Usd, doc('US dollars in each period, in quotes, such as "500".')]
    match: Match = Match()
    each: Annotated[
        list[Literal["key", "user", "team", "model", "endpoint"]],
        doc("A budget for each value of these on its own; empty: one for all."),
    ] = msgspec.field(default_factory=list)
    per: Annotated[
        Period, doc("The period, by the calendar of `timezone`; a week starts on Monday.")
    ] = "month"
    timezone: Annotated[str, doc('A name such as "Europe/Berlin".')] = "UTC"
    warn: Annotated[
        Annotated[float, Meta(gt=0, le=1)],
        doc("Share of the budget from which it is reported as nearly spent."),
    ] = 0.8
    mode: Annotated[
        Literal["hard", "soft", "watch"],
        doc(
            "hard: a request must fit into what is left, with the most that it can cost. soft: "
            "requests are refused once the budget is spent. watch: none is refused."
        ),
    ] = "hard"
    strict: Annotated[
        bool,
        doc(
            "Hold one token for each byte of a prompt, which no tokenizer exceeds, instead of one "
            "for two bytes."
        ),
    ] = False
    unpriced: Annotated[
        Literal["refuse", "free"],
        doc("What happens to requests for models without a price."),
    ] = "refuse"
    reserve_output: Annotated[
        Count | Literal["full"],
        doc(
            "Tokens held at most for a response. full: as many as the request allows, else as the "
            "model's context has; if neither is known, the request gets 400."
        ),
    ] = "full"


class Grant(msgspec.Struct, frozen=True):
    """What operators have added to the limit of a budget, for one window of one subject.

    Attributes:
        start: When the window started, in Unix seconds.
        end: When it ends.
        nano: How much, in nano-dollars.
    """

    budget: str
    subject: str
    start: int
    end: int
    nano: int


def zone(name: str) -> tzinfo | None:
    """The time zone of this name; None if this host does not know it."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def budget_conflicts(budgets: list[Budget]) -> Iterator[str]:
    """What is wrong with budgets whose values all have the right form."""
    if len(budgets) > MAX_BUDGETS:
        yield f"[[budgets]] has {len(budgets)} entries; at most {MAX_BUDGETS} are allowed."
    names = [budget.name for budget in budgets]
    for name in repeated(names):
        yield f'[[budgets]] name = "{name}" is used twice; each budget needs a name of its own.'
    if RESERVED in names:
        yield f'[[budgets]] name = "{RESERVED}" is that of [routing.budget]; take another one.'
    for budget in budgets:
        where = f'[[budgets]] "{budget.name}"'
        if "\0" in budget.name:
            yield f"[[budgets]] name = {budget.name!r} has a null character, which none may have."
        if nano_usd(budget.usd) is None:
            yield (
                f'{where} usd = "{budget.usd}" is not allowed; it takes US dollars with up to 9 '
                'decimals in quotes, such as "500".'
            )
        if zone(budget.timezone) is None:
            yield (
                f'{where} timezone = "{budget.timezone}" is not known here; it takes a name such '
                'as "Europe/Berlin", if the time zones (tzdata) are installed.'
            )
