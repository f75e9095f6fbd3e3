"""The check of limits and budgets, and what they charge at the end of a request."""

from __future__ import annotations

import time
from collections.abc import Sequence

from nexus.access.limits import NOTHING, Amounts, Counter, Dimension, amounts
from nexus.config.limit_records import Limit
from nexus.dialects.base import TokenEstimate
from nexus.errors import RequestFailed
from nexus.proxy.budget_checks import RequestBudgets, budgets_of
from nexus.proxy.budgets import BudgetRefused, Hold
from nexus.proxy.caller_checks import count_refusal
from nexus.proxy.exchange import Exchange
from nexus.proxy.limits import Refused, Reserve, UsedReserve, level_headers

_ONE = ("requests", "parallel")
"""Dimensions of which each request takes one unit."""
_WITH_INPUT = ("tokens", "input_tokens")


def reserve_limits(exchange: Exchange) -> None:
    """Reserve what the request needs of its limits and budgets. Refuse it if one does not admit
    it."""
    view = exchange.view
    if exchange.endpoint.counts:
        _reserve_count(exchange)
        return
    if view.limits is None and view.budgets is None:
        return
    counters: tuple[Counter, ...] = ()
    if view.limits is not None:
        counters = view.limits.counters(exchange.caller, exchange.model, exchange.endpoint.name)
    try:
        budgets = exchange.budgets = budgets_of(exchange)
        if not counters and budgets is None:
            return
        try:
            _reserve(exchange, counters, budgets)
        except BudgetRefused as refusal:
            if budgets is None or not refusal.blocks_cloud:
                raise
            exchange.without_cloud = True
            budgets.leave_cloud()
            _reserve(exchange, counters, budgets)
    except BudgetRefused as refusal:
        exchange.engine.recorder.budget_refused(refusal.budget, refusal.reason)
        levels = level_headers(exchange.endpoint.dialect, refusal.levels)
        exchange.own_headers = [*exchange.own_headers, *levels]
        count_refusal(exchange, "budget")
        raise


def _reserve_count(exchange: Exchange) -> None:
    """Reserve for a request that counts tokens, which takes nothing of what other limits are
    about."""
    view, caller = exchange.view, exchange.caller
    counters: tuple[Counter, ...] = ()
    if view.counting_limit is not None:
        counters = view.counting_limit.counters(caller, exchange.request.watch.peer())
    if view.limits is not None:
        name = exchange.endpoint.name
        counters += view.limits.counters(caller, exchange.model, name, named_only=True)
    if counters:
        _reserve(exchange, counters, None)


def _reserve(
    exchange: Exchange, counters: Sequence[Counter], budgets: RequestBudgets | None
) -> None:
    """Reserve, in one locked step. Raises `RequestFailed`."""
    dialect = exchange.endpoint.dialect
    units = [
        1 if counter.dimension in _ONE else _tokens(exchange, counter.dimension, counter.limit)
        for counter in counters
    ]
    holds = budgets.holds if budgets is not None else ()
    exchange.limited = bool(counters)
    try:
        reserves = _admit(exchange, counters, units, holds)
    except Refused as refusal:
        exchange.engine.limiter.refused(refusal)
        exchange.own_headers = [*exchange.own_headers, *level_headers(dialect, refusal.levels)]
        count_refusal(exchange, refusal.kind or "")
        raise
    if reserves:
        exchange.own_headers = [*exchange.own_headers, *level_headers(dialect, reserves)]
    if reserves or budgets is not None:
        exchange.on_release(lambda: _settle(exchange, reserves, budgets))


def _admit(
    exchange: Exchange, counters: Sequence[Counter], units: Sequence[int], holds: Sequence[Hold]
) -> list[Reserve]:
    """Reserve at once, or after a wait for a place if a limit allows that."""
    limiter, places = exchange.engine.limiter, exchange.engine.places
    counter = places.line_of(counters)
    if counter is None:
        try:
            return limiter.reserve(counters, units, holds)
        except Refused as refusal:
            if not refusal.may_wait:
                raise
            counter = refusal.counter
    started = time.monotonic()
    try:
        return places.wait(
            counter, lambda: limiter.reserve(counters, units, holds), request=exchange.request
        )
    finally:
        exchange.waited_s += time.monotonic() - started


def _tokens(exchange: Exchange, dimension: Dimension, limit: Limit) -> int:
    """The tokens that a request needs of a limit. Raises `RequestFailed`."""
    estimate = exchange.token_estimate()
    if dimension == "input_tokens":
        return estimate.prompt
    output = _output(exchange, estimate, limit)
    return output if dimension == "output_tokens" else estimate.prompt + output


def _output(exchange: Exchange, estimate: TokenEstimate, limit: Limit) -> int:
    """The tokens to reserve for a response. Raises `RequestFailed`."""
    stated, reserve = estimate.output_limit, limit.reserve_output
    if reserve != "full":
        return reserve if stated is None else min(stated, reserve)
    known = stated, exchange.view.context_length(exchange.model)
    if (most := min((one for one in known if one is not None), default=None)) is None:
        if limit.shadow:
            return 0
        raise RequestFailed(
            "max_tokens_required",
            f"Limit '{limit.name}' reserves what a response can take; state max_tokens.",
            param="max_tokens",
        )
    return most * estimate.choices


def _settle(
    exchange: Exchange, reserves: Sequence[Reserve], budgets: RequestBudgets | None
) -> None:
    """Charge the usage that the backend reports, else an estimate."""
    exchange.budgets = None  # they refer to it: the cycle would wait for the collector
    costs = budgets.settle() if budgets is not None else ()
    used, cached = _used(exchange)
    exchange.engine.limiter.settle(_used_reserves(reserves, used, cached), costs)
    if budgets is not None and exchange.background is not None:
        exchange.engine.background.keep(exchange.background, budgets.pending())
    exchange.engine.places.freed(reserves)


def _used(exchange: Exchange) -> tuple[Amounts | None, int]:
    """What the request used, and the cached tokens in it; None if a served response's usage is
    unknown."""
    if exchange.choice is None and not exchange.endpoint.counts:
        return NOTHING, 0
    usage, source = exchange.known_usage()
    if source == "none":
        return None, 0
    if source is None:
        # No response went to the client. If it left during an attempt, the prompt was processed.
        return amounts(exchange.estimated_prompt if exchange.within_attempt else 0, 0), 0
    prompt = usage.prompt_tokens
    input_tokens = exchange.estimated_prompt if prompt is None else prompt
    return amounts(input_tokens, usage.completion_tokens or 0), usage.cached_tokens or 0


def _used_reserves(
    reserves: Sequence[Reserve], used: Amounts | None, cached: int
) -> list[UsedReserve]:
    """The reservations of which the request used more or less, each with the units that it used.

    A limit has its own weight of cached tokens. If the use is unknown, tokens stay reserved.
    """
    changed = []
    for reserve in reserves:
        units, counter = reserve.units, reserve.counter
        dimension = counter.dimension
        if dimension == "parallel":
            units = 0
        elif used is not None:
            units = used[dimension]
            if cached and dimension in _WITH_INPUT:
                units -= round(cached * (1 - counter.limit.cached_weight))
        if units != reserve.units:
            changed.append((reserve, units))
    return changed
