"""The check of limits and budgets, and what they charge at the end of a request."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from nexus.access.limits import Amounts, Counter
from nexus.config.limit_records import Limit
from nexus.errors import RequestFailed
from nexus.proxy.budget_checks import RequestBudgets, budgets_of
from nexus.proxy.budgets import BudgetRefused
from nexus.proxy.caller_checks import count_refusal
from nexus.proxy.exchange import Exchange
from nexus.proxy.limits import Level, Refused, Reserve, level_headers

_Reserved = tuple[list[Reserve], list[Level]]


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
    prompt = 0
    if any(counter.dimension.endswith("tokens") for counter in counters):
        prompt = exchange.token_estimate().prompt
    units = [_units(exchange, counter, prompt) for counter in counters]
    holds = budgets.holds if budgets is not None else ()
    exchange.limited = bool(counters)
    limiter = exchange.engine.limiter
    try:
        reserves, levels = _admit(
            exchange, counters, partial(limiter.reserve, counters, units, holds)
        )
    except Refused as refusal:
        limiter.refused(refusal)
        exchange.own_headers = [*exchange.own_headers, *level_headers(dialect, refusal.levels)]
        count_refusal(exchange, refusal.kind or "")
        raise
    exchange.own_headers = [*exchange.own_headers, *level_headers(dialect, levels)]
    if reserves or budgets is not None:
        exchange.on_release(lambda: _settle(exchange, reserves, prompt, budgets))


def _admit(
    exchange: Exchange, counters: Sequence[Counter], reserve: Callable[[], _Reserved]
) -> _Reserved:
    """Reserve at once, or after a wait for a place if a limit allows that."""
    places = exchange.engine.places
    counter = places.line_of(counters)
    if counter is None:
        try:
            return reserve()
        except Refused as refusal:
            if not refusal.may_wait:
                raise
            counter = refusal.counter
    started = time.monotonic()
    try:
        return places.wait(counter, reserve, request=exchange.request)
    finally:
        exchange.waited_s += time.monotonic() - started


def _units(exchange: Exchange, counter: Counter, prompt: int) -> int:
    """What a request needs of one counter. Raises `RequestFailed`."""
    match counter.dimension:
        case "requests" | "parallel":
            return 1
        case "input_tokens":
            return prompt
        case "output_tokens":
            return _output(exchange, counter.limit)
        case "tokens":
            return prompt + _output(exchange, counter.limit)


def _output(exchange: Exchange, limit: Limit) -> int:
    """The tokens to reserve for a response. Raises `RequestFailed`."""
    estimate = exchange.token_estimate()
    stated, reserve = estimate.output_limit, limit.reserve_output
    if reserve != "full":
        return reserve if stated is None else min(stated, reserve)
    if stated is None:
        stated = exchange.view.context_length(exchange.model)
    if stated is None:
        if limit.shadow:
            return 0
        raise RequestFailed(
            "max_tokens_required",
            f"Limit '{limit.name}' reserves what a response can take; state max_tokens.",
            param="max_tokens",
        )
    return stated * estimate.choices


def _settle(
    exchange: Exchange,
    reserves: Sequence[Reserve],
    prompt: int,
    budgets: RequestBudgets | None,
) -> None:
    """Charge the usage that the backend reports, else an estimate."""
    costs = budgets.settle() if budgets is not None and exchange.background is None else ()
    exchange.engine.limiter.settle(
        [
            (reserve, _used(exchange, prompt, reserve.counter.limit.cached_weight))
            for reserve in reserves
        ],
        costs,
    )
    if budgets is not None and exchange.background is not None:
        exchange.engine.background.keep(exchange.background, budgets.pending())
    exchange.engine.places.freed(reserve.counter for reserve in reserves)


def _used(exchange: Exchange, prompt: int, cached_weight: float) -> Amounts | None:
    """What the request used; None if the usage of a served response is unknown."""
    if exchange.choice is None and not exchange.endpoint.counts:
        return Amounts()
    usage, source = exchange.known_usage()
    if source == "none":
        return None
    if source is None:
        # No response went to the client. If it left during an attempt, the prompt was processed.
        return Amounts(1, prompt if exchange.within_attempt else 0, 0)
    input_tokens = prompt if usage.prompt_tokens is None else usage.prompt_tokens
    if usage.cached_tokens and cached_weight < 1:
        input_tokens -= round(usage.cached_tokens * (1 - cached_weight))
    return Amounts(1, input_tokens, usage.completion_tokens or 0)
