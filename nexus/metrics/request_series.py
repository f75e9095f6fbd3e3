"""Which series a finished request changes, and by how much."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from nexus.errors import status_label
from nexus.fleet.outcome import Charge, Outcome
from nexus.metrics import access_families, cost_families, families
from nexus.metrics.labels import NONE
from nexus.metrics.usage import UsageStore

log = logging.getLogger("nexus.metrics")

Move = tuple[Callable[[float], None], float]
"""What counts, and by how much."""


class Bundle:
    """The series of requests with the same labels and the same known facts; resolved once."""

    __slots__ = ("completion", "counters", "duration", "prompt")

    def __init__(self, child: Callable[..., Any], outcome: Outcome) -> None:
        model, backend, fault = outcome.model_label, outcome.backend_label, outcome.fault
        self.counters = [child(families.REQUESTS, model, backend, status_label(outcome.status))]
        if fault is not None:
            self.counters.append(child(families.ERRORS, fault.error_type, model))
        if outcome.fallback_from is not None:
            self.counters.append(child(families.FALLBACKS, outcome.fallback_from, model))
        if outcome.affinity is not None:
            self.counters.append(child(families.AFFINITY, *outcome.affinity))
        if outcome.usage is not None:
            self.counters.append(child(families.USAGE, outcome.usage))
        if outcome.backend is not None:
            mode = "native" if outcome.translation is None else "translated"
            self.counters.append(child(families.DIALECT_REQUESTS, outcome.endpoint, mode))
        key, team = outcome.key_label, outcome.team_label
        if key is not None and team is not None:
            status = status_label(outcome.status)
            self.counters.append(child(access_families.KEY_REQUESTS, key, team, status))
            self.counters.append(child(access_families.TEAM_REQUESTS, team, model, status))
        self.duration = child(families.DURATION, model, backend)
        self.prompt: list[Callable[[Any], None]] = []
        self.completion: list[Callable[[Any], None]] = []
        for moves, kind, tokens in (
            (self.prompt, "prompt", outcome.prompt_tokens),
            (self.completion, "completion", outcome.completion_tokens),
        ):
            if tokens is not None:
                moves.append(child(families.TOKENS_USED, model, backend, kind).observe)
                if key is not None and team is not None:
                    moves.append(child(access_families.KEY_TOKENS, key, team, kind).inc)


class RarerSeries:
    """The series that only some requests change: those of streams, translations and costs."""

    def __init__(self, child: Callable[..., Any], usage: UsageStore | None) -> None:
        """`child` resolves a family and label values."""
        self._child = child
        self._usage = usage

    def moves(self, outcome: Outcome) -> list[Move]:
        """The series that the request changes, each with its amount."""
        labels = outcome.model_label, outcome.backend_label
        child = self._child
        moves: list[Move] = []
        for kind, tokens in (
            ("cached", outcome.cached_tokens),
            ("reasoning", outcome.reasoning_tokens),
            ("cache_write", outcome.cache_write_tokens),
        ):
            if tokens:
                moves.append((child(families.TOKEN_DETAILS, *labels, kind).inc, tokens))
        if outcome.translation is not None:
            label = outcome.backend_label
            moves.append((child(families.TRANSLATED, label, outcome.translation).inc, 1))
        if outcome.units is not None and outcome.units[1]:
            unit, amount = outcome.units
            moves.append((child(families.UNITS, outcome.endpoint, unit).inc, amount))
        if (charge := outcome.charge) is not None:
            moves += self.costs(outcome, charge)
        if (stream := outcome.stream) is not None:
            moves += [
                (child(families.STREAM_ENDS_TOTAL, outcome.backend_label, stream.end).inc, 1),
                (child(families.STREAM_EVENTS, *labels).inc, stream.events),
                (child(families.STREAM_GAP, *labels).observe, stream.longest_gap_s),
            ]
            if stream.tpot_s is not None:
                moves.append((child(families.TPOT, *labels, stream.tpot_by).observe, stream.tpot_s))
        return moves

    def costs(self, outcome: Outcome, charge: Charge) -> list[Move]:
        """The series of money, in nano-dollars: usage, then by backend, then by key.

        Recovery relies on this order.
        """
        child, labels = self._child, (outcome.backend_label, outcome.model_label)
        moves: list[Move] = self._usage_of(outcome, charge)
        moves += [
            (child(cost_families.COST, *labels, kind, "delivered").inc, nano)
            for kind, nano in charge.parts
        ]
        if charge.parts:
            key, team = outcome.key_label or NONE, outcome.team_label or NONE
            moves.append((child(cost_families.KEY_COST, key, team).inc, charge.total))
        moves += [
            (child(cost_families.COST, backend, model, "time", "retried").inc, nano)
            for backend, model, nano in charge.retried
        ]
        if charge.unpriced:
            moves.append((child(cost_families.UNPRICED, *labels).inc, 1))
        return moves

    def _usage_of(self, outcome: Outcome, charge: Charge) -> list[Move]:
        if self._usage is None or (outcome.usage is None and not charge.parts):
            return []
        try:
            return self._usage.moves(outcome, charge)
        except OSError as error:
            log.error("usage is not recorded", extra={"why": error})
            self._child(cost_families.LEDGER_ERRORS).inc()
            return []
