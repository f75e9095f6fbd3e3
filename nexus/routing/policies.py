"""What the operator demands of the backends that may serve a model, whatever a client asks and
whatever fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import msgspec

from nexus.config.routing_records import Policy
from nexus.fleet.records import Backend

POLICY_REASONS = ("privacy_restricted", "tier_below_minimum", "budget_exhausted")
"""Why policies or the request's constraints keep a backend out, as the rejection headers name
it."""


class Constraints(msgspec.Struct, frozen=True, cache_hash=True, gc=False):
    """`restricted`: only backends in a restricted zone; `min_tier`: only those of that tier or a
    higher one.

    `any_tier` lets a tier below pass, for a client that is content with it. `own_model`: no other
    model may serve.
    """

    restricted: bool = False
    min_tier: int = 0
    any_tier: bool = False
    own_model: bool = False
    no_cloud: bool = False

    def rejects(self, backend: Backend) -> str | None:
        """Which of `POLICY_REASONS` keeps a backend out; None if it may serve."""
        if self.restricted and not backend.restricted:
            return "privacy_restricted"
        if self.no_cloud and backend.cloud:
            return "budget_exhausted"
        if backend.config.tier < self.min_tier and not self.any_tier:
            return "tier_below_minimum"
        return None

    def __or__(self, other: Constraints) -> Constraints:
        """Both."""
        return Constraints(
            self.restricted or other.restricted,
            max(self.min_tier, other.min_tier),
            self.any_tier or other.any_tier,
            self.own_model or other.own_model,
            self.no_cloud or other.no_cloud,
        )


NOTHING = Constraints()
NO_CLOUD = Constraints(no_cloud=True)
"""For requests that [routing.budget] keeps from cloud backends."""


class Policies:
    """The policies of a configuration. Where several match a name, all of them hold."""

    def __init__(self, policies: Sequence[Policy] | dict[str, Policy]) -> None:
        self.rules = list(_rules(policies))

    def constraints(self, *names: str) -> Constraints:
        """What is demanded where a request goes by these names: as asked, after aliases, and
        that of the model."""
        found = NOTHING
        for pattern, constraints in self.rules:
            if any(fnmatchcase(name, pattern) for name in names):
                found |= constraints
        return found


def _rules(policies: Sequence[Policy] | dict[str, Policy]) -> Iterator[tuple[str, Constraints]]:
    """Pattern and demands of each. In a table of tables the pattern is the key, `default` being
    every model."""
    named = (
        policies.items()
        if isinstance(policies, dict)
        else (("default", policy) for policy in policies)
    )
    for key, policy in named:
        pattern = policy.model_pattern or ("*" if key == "default" else key)
        yield (
            pattern,
            Constraints(
                policy.privacy == "restricted",
                policy.min_tier or 0,
                own_model=not policy.fallback_allowed,
            ),
        )
