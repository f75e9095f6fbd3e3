"""What a choice depends on: the request, and what holds at this moment."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Protocol

import msgspec

from nexus.fleet.status import CLEAR, EndpointStatus
from nexus.routing.affinity import Session
from nexus.routing.needs import ANYTHING, Needs
from nexus.routing.policies import NOTHING, Constraints

Tried = Set[tuple[str, str]]
"""(backend name, model) of the attempts made so far."""


class RouteQuery(msgspec.Struct, frozen=True, gc=False):
    """A request as the router sees it: its model, with aliases resolved, and what it needs.

    Attributes:
        constraints: Where it may go.
        flexible: A backend below the required tier may serve if none of that tier can.
        longer_than: Only models with a longer known context may serve; one with this length
            reported that the request exceeds it.
        native: Only backends that need no translation may serve; the request has none.
        allows: Whether a model may serve in the place of the requested one; None for all.
        only: The backends that have what the request names, or can read what it holds encrypted;
            None if any may serve.
        session: Finds the session that the request belongs to, which is only read where it
            matters; None if no session is looked for.
    """

    model: str
    needs: Needs = ANYTHING
    constraints: Constraints = NOTHING
    flexible: bool = False
    longer_than: int = 0
    native: bool = False
    allows: Callable[[str], bool] | None = None
    only: frozenset[str] | None = None
    session: Callable[[], Session | None] | None = None

    @property
    def constraints_in_order(self) -> tuple[Constraints, ...]:
        """The constraints to try in turn: a flexible request accepts a lower tier, never another
        zone."""
        if not self.flexible:
            return (self.constraints,)
        return (self.constraints, msgspec.structs.replace(self.constraints, any_tier=True))


class RoutingContext(Protocol):
    """What holds at this moment. Backends are named by their columns in the shared tables.

    Attributes:
        load: Requests in flight at a backend, over all workers.
        status: What requests know of a backend and a model.
        waited_for: Whether an earlier request waits for capacity at a backend.
        holders: The backends that served a prefix, by its key.
        repeats: Whether the process's last prompt had this prefix, by its key.
        cursor: Counts choices over all workers, for `round_robin`.
        chance: A random number in [0, 1).
    """

    def load(self, column: int, /) -> int: ...
    def status(self, column: int, model: str, /) -> EndpointStatus: ...
    def waited_for(self, column: int, /) -> bool: ...
    def holders(self, key: int, /) -> tuple[int, ...]: ...
    def repeats(self, key: int, /) -> bool: ...
    @property
    def cursor(self) -> int: ...
    @property
    def chance(self) -> float: ...


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """A `RoutingContext` of given values."""

    load: Callable[[int], int]
    status: Callable[[int, str], EndpointStatus] = lambda *_: CLEAR
    waited_for: Callable[[int], bool] = lambda _: False
    holders: Callable[[int], tuple[int, ...]] = lambda _: ()
    repeats: Callable[[int], bool] = lambda _: False
    cursor: int = 0
    chance: float = 0.0


def with_load(now: RoutingContext, load: Callable[[int], int]) -> Conditions:
    """The same moment with another load."""
    return Conditions(
        load=load,
        status=now.status,
        waited_for=now.waited_for,
        holders=now.holders,
        repeats=now.repeats,
        cursor=now.cursor,
        chance=now.chance,
    )


def ignoring_circuits(now: RoutingContext) -> Conditions:
    """The same moment if no circuit were open."""

    def status(column: int, model: str) -> EndpointStatus:
        found = now.status(column, model)
        return msgspec.structs.replace(found, state="closed") if found.state == "open" else found

    return msgspec.structs.replace(with_load(now, now.load), status=status)
