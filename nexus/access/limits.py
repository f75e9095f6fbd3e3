"""Which limits hold for a request, and what each of them counts. No I/O, no clock."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

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


class Amounts(msgspec.Struct, frozen=True):
    """What a request takes of each dimension."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def of(self, dimension: Dimension) -> int:
        if dimension == "tokens":
            return self.input_tokens + self.output_tokens
        if dimension == "parallel":
            return 1
        amount: int = getattr(self, dimension)
        return amount


class Counter(msgspec.Struct, frozen=True, kw_only=True):
    """What one limit counts in one dimension for one subject.

    Attributes:
        limit: The limit that it belongs to.
        subject: The values that it counts apart, such as `key k7f3q2m9x4ta`.
        digest: Under which its level is stored.
        burst: The most units that are admitted at once.
        unit_ns: How long a unit takes to refill; 0 of a count of requests in progress.
        period: The period in words.
    """

    limit: Limit
    dimension: Dimension
    subject: str
    digest: tuple[int, int]
    burst: int
    amount: int
    unit_ns: int = 0
    period: str = ""

    def describe(self, *, left: int, asked: int, wait_s: float) -> str:
        """Why the limit refuses a request."""
        who = f" of {self.subject}" if self.subject else ""
        subject = f"Limit '{self.limit.name}'{who} on {self.dimension.replace('_', ' ')}"
        if not self.amount:
            return f"{subject}: nothing is admitted."
        if self.dimension == "parallel":
            return f"{subject}: {self.burst} at once. Try again when one has ended."
        return (
            f"{subject}: {self.amount} {self.period}; {left} left, {asked} asked. "
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

    @classmethod
    def of(cls, config: Config) -> Limits | None:
        """The limits of a configuration; None without any."""
        of_keys = {key.id: key.limits for key in config.keys if key.limits is not None}
        of_teams = {team.name: team.limits for team in config.teams if team.limits is not None}
        if not (config.limits or of_keys or of_teams):
            return None
        return cls(config.limits, of_keys=of_keys, of_teams=of_teams)

    def counters(self, caller: Caller | None, model: str, endpoint: str) -> tuple[Counter, ...]:
        """What a request is counted in, over all limits that match it."""
        key, user, team = NONE, NONE, NONE
        if caller is not None:
            key, user, team = caller.key, caller.user or NONE, caller.team
        of = key, team, model, endpoint
        counters = self._known.get(of)
        if counters is None:
            if len(self._known) >= _MOST_CACHED:
                self._known.clear()
            values = {
                "key": key, "user": user, "team": team, "model": model, "endpoint": endpoint,
            }  # fmt: skip
            counters = self._known[of] = tuple(
                counter
                for limit, patterns in self._limits
                if all(pattern.match(values[name]) for name, pattern in patterns)
                for counter in _counters(limit, values)
            ) + tuple(
                counter for own in self._own_limits(key, team) for counter in _counters(own, values)
            )
        return counters

    def _own_limits(self, key: str, team: str) -> Iterator[Limit]:
        """The limits of the key and of the team themselves."""
        if (own := self._of_keys.get(key)) is not None:
            yield _own_limit(LIMITS_OF_KEYS, "key", own)
        if (own := self._of_teams.get(team)) is not None:
            yield _own_limit(LIMITS_OF_TEAMS, "team", own)


def _own_limit(name: str, each: Literal["key", "team"], own: OwnLimits) -> Limit:
    return Limit(name=name, each=[each], **msgspec.structs.asdict(own))


def _counters(limit: Limit, values: dict[str, str]) -> list[Counter]:
    apart: list[tuple[str, str]] = [(name, values[name]) for name in dict.fromkeys(limit.each)]
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
                digest=_digest(limit.name, dimension, apart),
                burst=burst,
                amount=rate.amount,
                unit_ns=buckets.unit_ns(rate.amount or 1, rate.period_ns),
                period=_PERIODS[rate.unit],
            )
        )
    if limit.parallel is not None:
        counters.append(
            Counter(
                limit=limit,
                dimension="parallel",
                subject=subject,
                digest=_digest(limit.name, "parallel", apart),
                burst=limit.parallel,
                amount=limit.parallel,
            )
        )
    return counters


def _digest(limit: str, dimension: str, apart: list[tuple[str, str]]) -> tuple[int, int]:
    """Two numbers of 63 bits, not 0, that stand for a counter."""
    text = msgspec.json.encode([limit, dimension, apart])
    digest = hashlib.blake2b(text, digest_size=16).digest()
    low, high = int.from_bytes(digest[:8]), int.from_bytes(digest[8:])
    return (low >> 1) or 1, high >> 1
