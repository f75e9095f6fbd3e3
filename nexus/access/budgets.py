"""Which budgets hold for a request, and for which window. No I/O, no clock."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, tzinfo
from typing import Literal

import msgspec

from nexus.access.callers import NONE, Caller
from nexus.access.prices import NANO, usd
from nexus.access.windows import FOREVER, window
from nexus.config import Config, ConfigError
from nexus.config.budget_records import RESERVED, Budget, Grant, Period, zone
from nexus.config.cost_records import nano_usd
from nexus.config.routing_records import CloudBudget
from nexus.fleet.accounts import StoredAccount
from nexus.runtime.documents import Document

MAX_SUBJECTS = 200
"""So many accounts are shown in metrics."""
Action = Literal["warn", "block_cloud", "block_all"]
_CLOUD_OUTPUT = 1024
_MOST_CACHED = 4096
_LONGEST_VALUE, _MARK = 64, 6
"""Bytes of a value in a subject; those of the digest in which a longer one ends."""


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """One window of a budget for one subject.

    Attributes:
        subject: The values that are counted on their own, such as `key k7f3q2m9x4ta`.
        digest: Under which its state is stored.
        start: When the window started, in Unix seconds.
        end: When it ends.
        limit: What may be spent, in nano-dollars, grants included.
        granted: The part of it that operators granted for this window.
        action: What [routing.budget] does at its limit; that budget counts only what cloud backends
            cost. None for [[budgets]].
    """

    budget: Budget
    subject: str
    digest: tuple[int, int]
    start: int
    end: int
    limit: int
    granted: int = 0
    action: Action | None = None

    @property
    def warns_at(self) -> int:
        """The amount from which it counts as nearly spent, in nano-dollars."""
        return round(self.limit * self.budget.warn)

    @property
    def resets(self) -> str | None:
        """The end of the window as RFC 3339 writes it; None without an end."""
        if self.end >= FOREVER:
            return None
        return datetime.fromtimestamp(self.end, UTC).isoformat().replace("+00:00", "Z")

    def describe(self, *, spent: int, held: int, asked: int) -> str:
        """Why the budget refuses a request."""
        who = f" of {self.subject}" if self.subject else ""
        period = "" if self.budget.per == "total" else f" a {self.budget.per}"
        until = f" It resets at {self.resets}." if self.resets else ""
        return (
            f"Budget '{self.budget.name}'{who}: {usd(self.limit)} USD{period}; {usd(spent)} spent, "
            f"{usd(held)} held for requests in progress, {usd(asked)} asked.{until}"
        )


class BudgetSummary(Document, frozen=True, kw_only=True):
    """How a budget stands for one subject. Amounts are US dollars, exact.

    Attributes:
        subject: What it is counted for on its own, such as `key k7f3q2m9x4ta`; empty for all.
        limit_usd: What may be spent in this window, grants included.
        granted_usd: What operators have granted for this window.
        held_usd: Held for requests in progress.
        left_usd: What further requests may cost.
        resets: When the window ends; null without an end.
    """

    budget: str
    subject: str
    mode: Literal["hard", "soft", "watch"]
    per: Period
    limit_usd: str
    granted_usd: str
    spent_usd: str
    held_usd: str
    left_usd: str
    resets: str | None


class BudgetState(msgspec.Struct, frozen=True):
    """How an account stands; amounts in nano-dollars."""

    account: Account
    spent: int = 0
    held: int = 0

    @property
    def summary(self) -> BudgetSummary:
        budget, limit = self.account.budget, self.account.limit
        return BudgetSummary(
            budget=budget.name,
            subject=self.account.subject,
            mode=budget.mode,
            per=budget.per,
            limit_usd=usd(limit),
            granted_usd=usd(self.account.granted),
            spent_usd=usd(self.spent),
            held_usd=usd(self.held),
            left_usd=usd(max(0, limit - self.spent - self.held)),
            resets=self.account.resets,
        )


class UnknownBudget(Exception):
    """No budget has this name."""


class _Rule(msgspec.Struct, frozen=True):
    """A budget.

    Attributes:
        granted: What was granted, by subject and start of the window, in nano-dollars.
    """

    budget: Budget
    patterns: dict[str, re.Pattern[str]]
    zone: tzinfo
    limit: int
    action: Action | None = None
    granted: dict[tuple[str, int], int] = {}

    def account(self, subject: str, now: float) -> Account:
        start, end = window(self.budget.per, self.zone, now)
        granted = self.granted.get((subject, start), 0)
        return Account(
            budget=self.budget,
            subject=subject,
            digest=digest(self.budget.name, subject, start),
            start=start,
            end=end,
            limit=self.limit + granted,
            granted=granted,
            action=self.action,
        )

    def subject(self, given: str, counted_as: Callable[[str, str], str]) -> str:
        """A subject that an operator names. Raises `ConfigError` if the budget has none like it.

        `counted_as` returns how requests name what stands in `each`, such as a key.
        """
        each = self.budget.each
        if len(each) == 1 and not given.startswith(f"{each[0]} "):
            given = given and f"{each[0]} {given}"
        match = re.fullmatch(", ".join(f"{name} (.+)" for name in each), given)
        if match is None:
            form = ", ".join(f"{name} …" for name in each)
            wants = (
                f'takes a subject such as "{form}"' if each else "is for all and takes no subject"
            )
            raise ConfigError(f"Budget '{self.budget.name}' {wants}, not {given[:200]!r}.")
        values = [counted_as(name, value) for name, value in zip(each, match.groups(), strict=True)]
        for name, value in zip(each, values, strict=True):
            if name in self.patterns and not self.patterns[name].match(value):
                glob = getattr(self.budget.match, name)
                raise ConfigError(
                    f"Budget '{self.budget.name}' is only for {name} = \"{glob}\", "
                    f"not {value[:200]!r}."
                )
        return subject_of(each, values)


class Budgets:
    """All budgets of one configuration."""

    def __init__(
        self,
        budgets: Iterable[Budget],
        *,
        cloud: CloudBudget | None = None,
        grants: Iterable[Grant] = (),
    ) -> None:
        self._rules = [
            _Rule(
                budget,
                {
                    name: re.compile(fnmatch.translate(glob))
                    for name, glob in msgspec.structs.asdict(budget.match).items()
                    if glob != "*"
                },
                zone(budget.timezone) or UTC,
                nano_usd(budget.usd) or 0,
            )
            for budget in budgets
        ]
        if cloud is not None:
            self._rules.append(_cloud_rule(cloud))
        self._by_name = {rule.budget.name: rule for rule in self._rules}
        for grant in grants:
            if (rule := self._by_name.get(grant.budget)) is not None:
                rule.granted[grant.subject, grant.start] = grant.nano
        self._known: dict[tuple[str, ...], tuple[int, int, tuple[Account, ...]]] = {}

    @classmethod
    def of(cls, config: Config, grants: Iterable[Grant]) -> Budgets | None:
        """The budgets of a configuration, with what was granted; None without any.

        [routing.budget] needs prices: without them, nothing that it counts has a cost.
        """
        cloud = config.routing.budget
        if cloud.monthly_limit_usd is None or not config.costs.price:
            return cls(config.budgets, grants=grants) if config.budgets else None
        return cls(config.budgets, cloud=cloud, grants=grants)

    def accounts(
        self, caller: Caller | None, model: str, endpoint: str, now: float
    ) -> tuple[Account, ...]:
        """The accounts of a request at a time in Unix seconds, over all budgets that match it."""
        key, user, team = NONE, NONE, NONE
        if caller is not None:
            key, user, team = caller.key, caller.user or NONE, caller.team
        of = key, team, model, endpoint
        since, until, accounts = self._known.get(of, (0, 0, ()))
        if not since <= now < until:
            if len(self._known) >= _MOST_CACHED:
                self._known.clear()
            values = {
                "key": key, "user": user, "team": team, "model": model, "endpoint": endpoint,
            }  # fmt: skip
            accounts = tuple(
                rule.account(
                    subject_of(rule.budget.each, [values[name] for name in rule.budget.each]), now
                )
                for rule in self._rules
                if all(pattern.match(values[name]) for name, pattern in rule.patterns.items())
            )
            until = min([account.end for account in accounts], default=FOREVER)
            since = max([account.start for account in accounts], default=0)
            self._known[of] = since, until, accounts
        return accounts

    def states(self, stored: Iterable[StoredAccount], now: float) -> Iterator[BudgetState]:
        """How every account of the present windows stands.

        A budget without `each`, and a grant, are there before their first request, too.
        """
        found = {(one.budget, one.subject, one.start): (one.spent, one.held) for one in stored}
        for rule in self._rules:
            without = rule.account("", now)
            subjects = {subject for name, subject, _ in found if name == rule.budget.name}
            subjects |= {subject for subject, _ in rule.granted}
            if not rule.budget.each:
                subjects = {""}
            for subject in sorted(subjects):
                amounts = found.get((rule.budget.name, subject, without.start))
                granted = rule.granted.get((subject, without.start), 0)
                if amounts is None and subject and not granted:
                    continue  # of an earlier window
                account = msgspec.structs.replace(
                    without, subject=subject, limit=rule.limit + granted, granted=granted
                )
                yield BudgetState(account, *(amounts or (0, 0)))

    def granted(
        self,
        name: str,
        subject: str,
        nano: int,
        now: float,
        counted_as: Callable[[str, str], str] = lambda _, value: value,
    ) -> Grant:
        """The grants of the present window with one more.

        `counted_as` returns how requests name a key, user, team, model, or endpoint that an
        operator names. Raises `UnknownBudget`, and `ConfigError` if the budget has no such subject.
        """
        if (rule := self._by_name.get(name)) is None:
            raise UnknownBudget(name)
        account = rule.account(rule.subject(subject, counted_as), now)
        nano += account.granted
        return Grant(name, account.subject, account.start, account.end, nano)

    def of_caller(self, states: Iterable[BudgetState], caller: Caller) -> Iterator[BudgetState]:
        """Those that hold for a caller's requests, whatever the model and the endpoint."""
        values = {"key": caller.key, "user": caller.user or NONE, "team": caller.team}
        for state in states:
            rule = self._by_name[state.account.budget.name]
            subject = f", {state.account.subject}, "
            if all(
                (name not in rule.patterns or rule.patterns[name].match(value))
                and (name not in rule.budget.each or f", {name} {_short(value)}, " in subject)
                for name, value in values.items()
            ):
                yield state


def _cloud_rule(cloud: CloudBudget) -> _Rule:
    """The budget of [routing.budget]: by the month, for all."""
    limit = round((cloud.monthly_limit_usd or 0) * NANO)
    budget = Budget(
        name=RESERVED,
        usd=usd(limit),
        mode="watch" if cloud.hard_limit_action == "warn" else "hard",
        warn=cloud.soft_limit_percent / 100,
        unpriced="free",
        reserve_output=_CLOUD_OUTPUT,
    )
    return _Rule(budget, {}, UTC, limit, cloud.hard_limit_action)


def subject_of(each: Iterable[str], values: Iterable[str]) -> str:
    """What a budget is counted for on its own, such as `key k7f3q2m9x4ta`."""
    named = zip(each, values, strict=True)
    return ", ".join(f"{name} {_short(value)}" for name, value in named)


def _short(value: str) -> str:
    """A value that fits into an account's record; what is longer stays apart by its digest."""
    text = value.encode(errors="replace")
    if len(text) <= _LONGEST_VALUE:
        return value
    mark = hashlib.blake2b(text, digest_size=_MARK).hexdigest()
    return f"{text[: _LONGEST_VALUE - len(mark) - 1].decode(errors='ignore')}~{mark}"


def digest(budget: str, subject: str, start: int) -> tuple[int, int]:
    """Two numbers of 63 bits, the first not 0, that stand for a window of a budget."""
    text = msgspec.json.encode([budget, subject, start])
    hashed = hashlib.blake2b(text, digest_size=16).digest()
    low, high = int.from_bytes(hashed[:8]), int.from_bytes(hashed[8:])
    return (low >> 1) or 1, high >> 1
