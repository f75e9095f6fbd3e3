"""Limits and budgets: reserved before a backend is chosen, settled when the request ends."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from nexus.access import buckets
from nexus.access.callers import Caller
from nexus.access.limit_levels import LimitLevel, levels_of
from nexus.access.limits import Counter, Limits
from nexus.dialects.base import Dialect
from nexus.errors import RequestFailed
from nexus.fleet.accounts import StoredAccount
from nexus.fleet.limit_table import LimitTable
from nexus.metrics.recorder import Recorder
from nexus.proxy.budgets import BudgetRefused, Hold, has_room, stage_costs, stage_holds

log = logging.getLogger("nexus.proxy")

_PARALLEL_WAIT_NS = 1_000_000_000
_LEDGER_WAIT_S, _LEDGER_POLL_S = 2.0, 0.02
_NEVER_NS = 3_600_000_000_000
"""`Retry-After` for a limit of 0."""
_LONGEST_NS = 1 << 61
"""The most that one reservation, or a reload, delays others: 73 years."""


class Reserve(msgspec.Struct, frozen=True):
    """The units that a request has reserved of one counter, or was refused.

    Attributes:
        at_ns: When, on the monotonic clock.
        remaining: The units that are left.
        full_in_ns: How long the counter takes until all units are left again.
        wait_ns: How long a request that was refused should wait.
    """

    counter: Counter
    units: int
    at_ns: int
    remaining: int
    full_in_ns: int = 0
    wait_ns: int = 0


UsedReserve = tuple[Reserve, int]
"""A reservation, and the units that were used of it; a place is given back, so 0 of it."""


class Limiter:
    """Reserves and settles the units of limits and the money of budgets.

    Safe from any greenlet or thread.
    """

    def __init__(self, open_table: Callable[[], LimitTable], recorder: Recorder) -> None:
        """`open_table` is called at the first request with a limit."""
        self._open_table = open_table
        self._recorder = recorder
        self._opened: LimitTable | None = None
        self._opening = threading.Lock()
        self._unsettled: deque[tuple[Sequence[UsedReserve], Sequence[tuple[Hold, int]]]] = deque()

    def reserve(
        self,
        counters: Sequence[Counter],
        needed: Sequence[int],
        holds: Sequence[Hold] = (),
    ) -> list[Reserve]:
        """Reserve what a request needs of all counters and budgets, or of none.

        `needed` are the units of each counter. Returns the reservations, of limits that hold and of
        shadow limits. Raises `RequestFailed` with `limits_unavailable`, `Refused`, and
        `BudgetRefused`. A refusal is not counted: the request may wait.
        """
        table = self._table()
        if holds and not table.ready:
            self._await_ledger(table, holds)
        if not table.acquire() and not self._acquire_late(table, counters, holds):
            return []
        try:
            staged = _stage_all(table, counters, needed)
            if staged.refused is None:
                if holds:
                    stage_holds(table, holds, before=(), now=time.time())
                table.commit()
        except BudgetRefused as refusal:
            refusal.levels = staged.reserved
            raise
        finally:
            table.release()
        if staged.untracked:
            self._recorder.limits_untracked(staged.untracked)
        shadow = staged.shadow_refused.counter if staged.shadow_refused is not None else None
        if staged.refused is not None:
            raise Refused(staged.refused, staged.reserved, shadow=shadow)
        self._count(shadow, shadow=True)
        return staged.reserved

    def _acquire_late(
        self, table: LimitTable, counters: Sequence[Counter], holds: Sequence[Hold]
    ) -> bool:
        """Lock the table if the request needs that, else count the miss. Raises
        `RequestFailed`."""
        strict = any(c.dimension == "parallel" and not c.limit.shadow for c in counters) or any(
            hold.account.budget.mode == "hard" for hold in holds
        )
        if strict and table.acquire(patient=True):
            return True
        self._recorder.limits_missed()
        if strict:
            raise RequestFailed("limits_unavailable", headers={"retry-after": "1"})
        return False

    def refused(self, refusal: Refused) -> None:
        """Count a refusal that is final."""
        self._count(refusal.counter, shadow=False)
        self._count(refusal.shadow, shadow=True)

    def _count(self, counter: Counter | None, *, shadow: bool) -> None:
        if counter is not None:
            self._recorder.limit_refused(counter.limit.name, counter.dimension, shadow=shadow)

    def has_room(self, holds: Sequence[Hold], before: Sequence[Hold]) -> bool:
        """Whether more could be held than before, as it looks without the lock."""
        return has_room(self._table(), holds, before)

    def raise_holds(self, holds: Sequence[Hold], before: Sequence[Hold]) -> None:
        """Hold more than before. Raises `RequestFailed`, and `BudgetRefused`."""
        table = self._table()
        if not table.acquire(patient=True):
            self._recorder.limits_missed()
            raise RequestFailed("limits_unavailable", headers={"retry-after": "1"})
        try:
            stage_holds(table, holds, before=before, now=time.time())
            table.commit()
        finally:
            table.release()

    def settle(
        self, used_reserves: Sequence[UsedReserve], costs: Sequence[tuple[Hold, int]] = ()
    ) -> None:
        """Replace what a request reserved by what it used and cost, in one locked step.

        Reservations that were used up as they are need not be given.
        """
        if used_reserves or costs:
            self._unsettled.append((used_reserves, costs))
            self.flush()

    def flush(self) -> None:
        """Settle requests for which the table was locked earlier."""
        if not self._unsettled:
            return
        table = self._table()
        if not table.acquire():
            return
        moved: list[tuple[str, int]] = []
        overruns: list[tuple[str, int]] = []
        try:
            now_ns = time.monotonic_ns()
            while self._unsettled:
                used_reserves, costs = self._unsettled.popleft()
                for reserve, used in used_reserves:
                    units = _stage_use(table, reserve, used, now_ns)
                    if units:
                        moved.append((reserve.counter.limit.name, units))
                if costs:
                    overruns += stage_costs(table, costs, time.time())
                table.commit()
        finally:
            table.release()
        for limit, tokens in moved:
            self._recorder.limit_settled(limit, tokens)
        for budget, nano in overruns:
            self._recorder.budget_overrun(budget, nano)

    @staticmethod
    def _await_ledger(table: LimitTable, holds: Sequence[Hold]) -> None:
        """Wait until the accounts have what earlier runs spent. Raises `RequestFailed`."""
        deadline = time.monotonic() + _LEDGER_WAIT_S
        while not table.ready and any(hold.account.budget.mode == "hard" for hold in holds):
            if time.monotonic() > deadline:
                raise RequestFailed("limits_unavailable", headers={"retry-after": "1"})
            time.sleep(_LEDGER_POLL_S)

    def open(self) -> None:
        """Open the table. What the process that had this slot before held becomes spent."""
        self._table()

    def accounts(self) -> list[StoredAccount]:
        """The accounts of all budgets, as they look without the lock."""
        return self._table().accounts.entries()

    def levels(self, caller: Caller, limits: Limits) -> list[LimitLevel]:
        """The levels of all limits that hold for a caller."""
        return levels_of(caller, limits, self._table().stored(), time.monotonic_ns())

    def _table(self) -> LimitTable:
        if self._opened is None:
            # Once: a second opening would clear what requests have reserved after the first.
            with self._opening:
                if self._opened is None:
                    self._opened = self._open()
        return self._opened

    def _open(self) -> LimitTable:
        try:
            table = self._open_table()
        except OSError as error:
            log.error("limits hold for each process on its own", extra={"why": error})
            table = LimitTable(None)
        if table.acquire(patient=True):
            table.clear_slot()
            table.release()
        return table


class Refused(RequestFailed):
    """A limit does not admit the request.

    Attributes:
        counter: The one with the longest wait.
        shadow: The same of the limits that refuse nothing.
    """

    def __init__(
        self, refused: Reserve, others: list[Reserve], *, shadow: Counter | None = None
    ) -> None:
        counter, wait_ns = refused.counter, refused.wait_ns
        kind = "parallel" if counter.dimension == "parallel" else "tokens"
        super().__init__(
            "rate_limit_exceeded",
            counter.describe(left=refused.remaining, asked=refused.units, wait_s=wait_ns / 1e9),
            headers={
                "retry-after": str(-(-wait_ns // 1_000_000_000)),
                "retry-after-ms": str(-(-wait_ns // 1_000_000)),
            },
            kind="requests" if counter.dimension == "requests" else kind,
        )
        self.levels = [refused, *others]
        self.counter, self.shadow = counter, shadow

    @property
    def may_wait(self) -> bool:
        """Whether the request may wait until another one has ended."""
        counter = self.counter
        return (
            counter.dimension == "parallel"
            and counter.amount > 0
            and counter.limit.parallel_wait_seconds > 0
        )


class _Staged(msgspec.Struct):
    """What is staged of a request's reservations.

    Attributes:
        reserved: Those of the counters that admit the request.
        refused: That of the counter with the longest wait.
        shadow_refused: The same of the limits that refuse nothing.
        untracked: How many counters had no room in the table.
    """

    reserved: list[Reserve]
    refused: Reserve | None = None
    shadow_refused: Reserve | None = None
    untracked: int = 0


def _stage_all(table: LimitTable, counters: Sequence[Counter], needed: Sequence[int]) -> _Staged:
    """Stage a request's reservations. The counters of shadow limits come last.

    If one of these would refuse the request, nothing of it is reserved of any of them.
    """
    now_ns, real = time.monotonic_ns(), None
    staged = _Staged([])
    for counter, units in zip(counters, needed, strict=True):
        shadow = counter.limit.shadow
        if shadow and real is None:
            real = table.staged(), len(staged.reserved)
        stage = _stage_place if counter.dimension == "parallel" else _stage_units
        reserve = stage(table, counter, units, now_ns)
        if reserve is None:
            staged.untracked += 1
        elif reserve.wait_ns <= 0:
            staged.reserved.append(reserve)
        elif shadow:
            staged.shadow_refused = _longer(staged.shadow_refused, reserve)
        else:
            staged.refused = _longer(staged.refused, reserve)
    if staged.shadow_refused is not None and real is not None:
        table.unstage(real[0])
        del staged.reserved[real[1] :]
    return staged


def _longer(one: Reserve | None, other: Reserve) -> Reserve:
    return other if one is None or other.wait_ns > one.wait_ns else one


def _stage_place(table: LimitTable, counter: Counter, _: int, now_ns: int) -> Reserve | None:
    """Stage one more request in progress; None if the table is full."""
    left = counter.burst - table.in_progress(counter.digest)
    if left <= 0:
        wait_ns = _PARALLEL_WAIT_NS if counter.amount else _NEVER_NS
        return Reserve(counter, 1, now_ns, 0, 0, wait_ns)
    staged = table.stage_progress(counter.digest, 1, now_ns, counter.name)
    return Reserve(counter, 1, now_ns, left - 1) if staged else None


def _stage_units(table: LimitTable, counter: Counter, units: int, now_ns: int) -> Reserve | None:
    """Stage units of a bucket; None if the table is full."""
    if not counter.amount:
        return Reserve(counter, units, now_ns, 0, 0, _NEVER_NS)
    bucket = table.read_bucket(counter.digest, now_ns, counter.name)
    if bucket is None:
        return None
    record, full_at, before, full_seen = bucket
    unit = counter.unit_ns
    if units * unit > _LONGEST_NS:
        units = _LONGEST_NS // unit
    if before != unit and before:
        full_at = buckets.convert(full_at, now_ns, before=before, after=unit)
        full_at = min(full_at, now_ns + _LONGEST_NS)
    if full_at <= now_ns:
        full_seen = now_ns
    full_at, wait_ns, left = buckets.admit(full_at, units, now_ns, unit, counter.burst)
    if wait_ns <= 0:
        table.stage_level(record, full_at, unit, full_seen)
    full_in_ns = full_at - now_ns if full_at > now_ns else 0
    return Reserve(counter, units, now_ns, left, full_in_ns, wait_ns)


def _stage_use(table: LimitTable, reserve: Reserve, used: int, now_ns: int) -> int:
    """Stage the difference between reserved and used units.

    Returns the tokens above (or, negative, below) the reservation.
    """
    counter = reserve.counter
    if counter.dimension == "parallel":
        table.stage_progress(counter.digest, -1, now_ns)
        return 0
    bucket = table.read_bucket(counter.digest, now_ns, counter.name)
    if bucket is not None:
        record, full_at, unit, full_seen = bucket
        unit = unit or counter.unit_ns
        since = full_seen > reserve.at_ns or full_at <= now_ns
        full_at = buckets.settle(
            full_at,
            now_ns,
            unit=unit,
            reserved=reserve.units,
            used=used,
            full_since_reserve=since,
        )
        table.stage_level(record, full_at, unit, full_seen)
    return 0 if counter.dimension == "requests" else used - reserve.units


def _is_tighter(one: Reserve, other: Reserve) -> bool:
    return (one.remaining, -one.full_in_ns) < (other.remaining, -other.full_in_ns)


def level_headers(dialect: Dialect, reserves: Sequence[Reserve]) -> list[tuple[str, str]]:
    """The headers that show a client its tightest limits."""
    tightest: dict[str, Reserve] = {}
    kinds = dialect.LIMIT_KINDS
    for reserve in reserves:
        counter = reserve.counter
        if (kind := kinds.get(counter.dimension)) is None or counter.limit.shadow:
            continue
        if (other := tightest.get(kind)) is None or _is_tighter(reserve, other):
            tightest[kind] = reserve
    headers: list[tuple[str, str]] = []
    now = time.time()
    for kind, reserve in tightest.items():
        headers += dialect.limit_headers(
            kind,
            limit=reserve.counter.burst,
            remaining=reserve.remaining,
            reset_ns=reserve.full_in_ns,
            now=now,
        )
    return headers
