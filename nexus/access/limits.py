"""Which limits hold for a request, and what each of them counts. No I/O, no clock."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from nexus.access import buckets
from nexus.access.callers import NONE, Caller
from nexus.config.limit_records import (
    LIMITS_OF_KEYS,
    LIMITS_OF_TEAMS,
    RATES,
    Limit,
    OwnLimits,
    parse_rate,
)
from nexus.config.records import Config

Dimension = Literal["requests", "tokens", "input_tokens", "output_tokens", "parallel"]
DIMENSIONS: tuple[Dimension, ...] = (
    "requests", "tokens", "input_tokens", "output_tokens", "parallel",
)  # fmt: skip
_MOST_CACHED = 4096
_PERIODS = {"s": "a second", "min": "a minute", "h": "an hour", "d": "a day"}


Amounts = Mapping[str, int]
"""What a request takes of each dimension but `parallel`."""
NOTHING: Amounts = dict.fromkeys(("requests", "tokens", "input_tokens", "output_tokens"), 0)


def amounts(input_tokens: int, output_tokens: int) -> Amounts:
    """What a request with so many tokens takes."""
    return {
        "requests": 1,
        "tokens": input_tokens + output_tokens,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
    }


class Counter(msgspec.Struct, frozen=True, kw_only=True):
    """What one limit counts in one dimension for one subject.

    Attributes:
        limit: The limit that it belongs to.
        subject: The values that it counts apart, such as `key k7f3q2m9x4ta`.
        name: Under which the table of usage shows it.
        digest: Under which its level is stored.
        burst: The most units that are admitted at once.
        unit_ns: How long a unit takes to refill; 0 of a count of requests in progress.
        rate: The rate as it is configured, such as `60/min`; empty of requests in progress.
    """

    limit: Limit
    dimension: Dimension
    subject: str
    name: str
    digest: tuple[int, int]
    burst: int
    amount: int
    unit_ns: int = 0
    rate: str = ""

    def describe(self, *, left: int, asked: int, wait_s: float) -> str:
        """Why the limit refuses a request."""
        who = f" of {self.subject}" if self.subject else ""
        subject = f"Limit '{self.limit.name}'{who} on {self.dimension.replace('_', ' ')}"
        if not self.amount:
            return f"{subject}: nothing is admitted."
        if self.dimension == "parallel":
            return f"{subject}: {self.burst} at once. Try again when one has ended."
        period = _PERIODS[self.rate.rpartition("/")[2]]
        return (
            f"{subject}: {self.amount} {period}; {left} left, {asked} asked. "
            f"Try again in {wait_s:.1f} s."
        )


class Limits:
    """All limits of one configuration."""

    def __init__(
        self,
        limits: list[Limit],
        *,
        of_keys: Mapping[str, OwnLimits] | None = None,
        of_teams: Mapping[str, OwnLimits] | None = None,
    ) -> None:
        """`of_keys` and `of_teams` are the limits of keys and teams themselves, by id and name."""
        self._limits = [
            (
                limit,
                [
                    (name, re.compile(fnmatch.translate(glob)))
                    for name, glob in msgspec.structs.asdict(limit.match).items()
                    if glob != "*"
                ],
            )
            for limit in limits
        ]
        self._of_keys, self._of_teams = of_keys or {}, of_teams or {}
        self._known: dict[tuple[str, ...], tuple[Counter, ...]] = {}
        self._by_name = {limit.name: limit for limit in limits}
        self._named: dict[str, Counter] = {}

    @classmethod
    def of(cls, config: Config) -> Limits | None:
        """The limits of a configuration; None without any."""
        of_keys = {key.id: key.limits for key in config.keys if key.limits is not None}
        of_teams = {team.name: team.limits for team in config.teams if team.limits is not None}
        if not (config.limits or of_keys or of_teams):
            return None
        return cls(config.limits, of_keys=of_keys, of_teams=of_teams)

    def counters(
        self, caller: Caller | None, model: str, endpoint: str, *, named_only: bool = False
    ) -> tuple[Counter, ...]:
        """What a request is counted in, over all limits that match it; shadow limits last.

        `named_only`: only limits whose `match` names endpoints are meant for this one.
        """
        key, team = (NONE, NONE) if caller is None else (caller.key, caller.team)
        of = key, team, model, endpoint
        counters = self._known.get(of)
        if counters is None:
            if len(self._known) >= _MOST_CACHED:
                self._known.clear()
            values = {**_values_of(caller), "model": model, "endpoint": endpoint}
            matching = [
                limit
                for limit, patterns in self._limits
                if all(pattern.match(values[name]) for name, pattern in patterns)
                and (not named_only or any(name == "endpoint" for name, _ in patterns))
            ]
            if not named_only:
                matching += self._own_limits(key, team)
            matching.sort(key=lambda limit: limit.shadow)
            counters = self._known[of] = tuple(
                counter for limit in matching for counter in _counters(limit, values)
            )
        return counters

    def of_caller(self, caller: Caller) -> Iterator[Counter]:
        """What all requests of a caller are counted in that a limit matches, whatever they are
        for."""
        values = _values_of(caller)
        for limit, patterns in self._limits:
            if _may_match(patterns, values) and values.keys() >= set(limit.each):
                yield from _counters(limit, values)
        for own in self._own_limits(caller.key, caller.team):
            yield from _counters(own, values)

    def named(self, name: str) -> Counter | None:
        """The counter that the table of usage shows under a name; None if no limit has it."""
        counter = self._named.get(name)
        if counter is None:
            dimension, _, rest = name.partition("\n")
            limit_name, _, subject = rest.partition("\n")
            limit = self._by_name.get(limit_name) or self._own_limit_of(limit_name, subject)
            if len(self._named) >= _MOST_CACHED:
                self._named.clear()
            values: dict[str, str] = dict.fromkeys(limit.each if limit is not None else (), "")
            for one in _counters(limit, values) if limit is not None else ():
                if one.dimension == dimension:
                    counter = self._named[name] = replace(one, subject=subject, name=name)
        return counter

    def counts(self, caller: Caller, counter: Counter) -> bool:
        """Whether requests of a caller may be counted in a counter of `[[limits]]`."""
        values = _values_of(caller)
        subject = f", {counter.subject}, "
        return any(
            limit is counter.limit
            and _may_match(patterns, values)
            and all(
                f", {name} {values[name][:100]}, " in subject
                for name in limit.each
                if name in values
            )
            for limit, patterns in self._limits
        )

    def _own_limit_of(self, limit: str, subject: str) -> Limit | None:
        kind, _, value = subject.partition(" ")
        of = {(LIMITS_OF_KEYS, "key"): (value, ""), (LIMITS_OF_TEAMS, "team"): ("", value)}
        return next(self._own_limits(*of.get((limit, kind), ("", ""))), None)

    def _own_limits(self, key: str, team: str) -> Iterator[Limit]:
        """The limits of the key and of the team themselves."""
        if (own := self._of_keys.get(key)) is not None:
            yield _own_limit(LIMITS_OF_KEYS, "key", own)
        if (own := self._of_teams.get(team)) is not None:
            yield _own_limit(LIMITS_OF_TEAMS, "team", own)


def _values_of(caller: Caller | None) -> dict[str, str]:
    """What a limit can match or count apart of a caller."""
    if caller is None:
        return {"key": NONE, "user": NONE, "team": NONE}
    return {"key": caller.key, "user": caller.user or NONE, "team": caller.team}


def _may_match(patterns: Sequence[tuple[str, re.Pattern[str]]], values: dict[str, str]) -> bool:
    """Whether a limit with these patterns can match a request of which only `values` are known."""
    return all(pattern.match(values[name]) for name, pattern in patterns if name in values)


def _own_limit(name: str, each: Literal["key", "team"], own: OwnLimits) -> Limit:
    return Limit(name=name, each=[each], **msgspec.structs.asdict(own))


def _counters(limit: Limit, values: dict[str, str]) -> list[Counter]:
    return counters_of(limit, [(name, values[name]) for name in dict.fromkeys(limit.each)])


def counters_of(limit: Limit, apart: list[tuple[str, str]]) -> list[Counter]:
    """What a limit counts in each of its dimensions, for the subject with these values."""
    subject = ", ".join(f"{name} {value[:100]}" for name, value in apart)
    counters = []
    for dimension in RATES:
        text = getattr(limit, dimension)
        rate = parse_rate(text) if text is not None else None
        if rate is None:
            continue
        burst = rate.amount
        if dimension == "requests" and limit.burst_requests is not None and rate.amount:
            burst = limit.burst_requests
        counters.append(
            Counter(
                limit=limit,
                dimension=dimension,
                subject=subject,
                name=_name(limit.name, dimension, subject),
                digest=_digest(limit.name, dimension, apart),
                burst=burst,
                amount=rate.amount,
                unit_ns=buckets.unit_ns(rate.amount or 1, rate.period_ns),
                rate=text,
            )
        )
    if limit.parallel is not None:
        counters.append(
            Counter(
                limit=limit,
                dimension="parallel",
                subject=subject,
                name=_name(limit.name, "parallel", subject),
                digest=_digest(limit.name, "parallel", apart),
                burst=limit.parallel,
                amount=limit.parallel,
            )
        )
    return counters


def _name(limit: str, dimension: str, subject: str) -> str:
    return "\n".join((dimension, limit, subject))


def _digest(limit: str, dimension: str, apart: list[tuple[str, str]]) -> tuple[int, int]:
    """Two numbers of 63 bits, not 0, that stand for a counter."""
    text = msgspec.json.encode([limit, dimension, apart])
    digest = hashlib.blake2b(text, digest_size=16).digest()
    low, high = int.from_bytes(digest[:8]), int.from_bytes(digest[8:])
    return (low >> 1) or 1, high >> 1
