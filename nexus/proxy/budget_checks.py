"""What a request may cost, which its budgets hold until it has ended."""

from __future__ import annotations

import time
from collections.abc import Sequence

from nexus.access.budgets import Account, Budgets
from nexus.access.prices import FREE, Price, most
from nexus.errors import RequestFailed
from nexus.proxy.background import LONGEST_S, Pending
from nexus.proxy.budgets import Hold, unpriced
from nexus.proxy.exchange import Exchange


class RequestBudgets:
    """The budgets of one request: what they hold for it, and what it has cost them.

    A fallback may have other budgets than the model that was requested. Those of the model that
    serves the request are charged.

    Attributes:
        holds: What is held, one for each account.
    """

    def __init__(self, exchange: Exchange, budgets: Budgets) -> None:
        self._exchange, self._budgets = exchange, budgets
        self._admitted = time.time()
        self.holds: Sequence[Hold] = self._holds(exchange.model)
        self._fallbacks: dict[str, Sequence[Hold] | None] = {}  # None: refused

    def allows(self, model: str) -> bool:
        """Whether the budgets have room for a fallback, as far as that shows without the lock."""
        holds = self._for_fallback(model)
        return holds is not None and self._exchange.engine.limiter.has_room(*holds)

    def hold_for(self, model: str) -> bool:
        """Hold what a model can cost, if that is more; returns False if a budget refuses it."""
        if (holds := self._for_fallback(model)) is None:
            return False
        after, before = holds
        if any(new.nano > old.nano for new, old in zip(after, before, strict=True)):
            try:
                self._exchange.engine.limiter.raise_holds(after, before)
            except RequestFailed:
                self._fallbacks[model] = None
                return False
        self.holds = after
        return True

    def settle(self) -> list[tuple[Hold, int]]:
        """What the request has cost each account, except those of `pending`."""
        exchange = self._exchange
        charge, charged = exchange.charge(), self._charged()
        cost = 0 if charge is None else charge.total
        unknown = exchange.known_usage()[1] == "none"
        return [
            (hold, (max(hold.nano, cost) if unknown else cost) if hold in charged else 0)
            for hold in self.holds
            if exchange.background is None or hold not in charged
        ]

    def pending(self) -> Pending:
        """What is held for a response that the backend makes in the background."""
        exchange, view = self._exchange, self._exchange.view
        assert exchange.choice is not None
        assert view.prices is not None
        return Pending(
            self._charged(),
            view.prices,
            exchange.choice.backend,
            exchange.model,
            exchange.engine.clock() + LONGEST_S,
        )

    def leave_cloud(self) -> None:
        """Hold nothing for cloud backends, which are not to serve the request."""
        self.holds = [hold for hold in self.holds if hold.account.action is None]

    def _charged(self) -> list[Hold]:
        """What is held of the accounts that the response is charged to."""
        exchange, choice = self._exchange, self._exchange.choice
        cloud = choice is not None and choice.backend.cloud
        holds = [hold for hold in self.holds if cloud or hold.account.action is None]
        if not self._fallbacks:
            return holds
        accounts = {account.digest for account in self._accounts(exchange.model)}
        return [hold for hold in holds if hold.account.digest in accounts]

    def _accounts(self, model: str) -> list[Account]:
        """The accounts of a model, of the windows in which the request was admitted."""
        exchange = self._exchange
        caller, endpoint = exchange.caller, exchange.endpoint.name
        accounts = self._budgets.accounts(caller, model, endpoint, self._admitted)
        return [one for one in accounts if not exchange.without_cloud or one.action is None]

    def _for_fallback(self, model: str) -> tuple[list[Hold], list[Hold]] | None:
        """At least what is held, and what a model needs; and what is held of the same accounts.

        What is held of accounts that are not the model's is the same object in both. None if the
        model is refused.
        """
        if model not in self._fallbacks:
            try:
                self._fallbacks[model] = self._holds(model)
            except RequestFailed:
                self._fallbacks[model] = None
        if (needed := self._fallbacks[model]) is None:
            return None
        by_account = {hold.account.digest: hold for hold in needed}
        before = list(self.holds)
        held = {hold.account.digest for hold in before}
        before += [Hold(hold.account) for hold in needed if hold.account.digest not in held]
        after = [
            max(by_account.get(hold.account.digest, hold), hold, key=lambda one: one.nano)
            for hold in before
        ]
        return after, before

    def _holds(self, model: str) -> list[Hold]:
        """What a response of a model can cost at its dearest backend. Raises `RequestFailed`."""
        holds, known = [], self._exchange.view.prices_of(model)
        for account in self._accounts(model):
            budget, priced = account.budget, []
            for price, cloud in known:
                if not cloud and account.action is not None:
                    continue
                if price is not None:
                    priced.append(price)
                elif budget.unpriced == "refuse" and budget.mode != "watch":
                    raise unpriced(budget, model)
            holds.append(self._hold(account, model, priced))
        return holds

    def _hold(self, account: Account, model: str, prices: Sequence[Price]) -> Hold:
        budget = account.budget
        if budget.mode != "hard" or all(price is FREE for price in prices):
            return Hold(account)
        estimate = self._exchange.token_estimate()
        limit, reserve = estimate.output_limit, budget.reserve_output
        if reserve != "full":
            limit = reserve if limit is None else min(limit, reserve)
        elif limit is None:
            limit = self._exchange.view.context_length(model)
        if limit is None:
            raise RequestFailed(
                "max_tokens_required",
                f"Budget '{budget.name}' holds what a request can cost; state max_tokens.",
                param="max_tokens",
            )
        prompt = estimate.bound(strict=budget.strict)
        output = limit * estimate.choices
        images = estimate.choices if self._exchange.endpoint.makes_images else 0
        return Hold(account, max(most(price, prompt, output, images) for price in prices))


def budgets_of(exchange: Exchange) -> RequestBudgets | None:
    """The budgets that a request is held to; None if there are none. Raises `RequestFailed`."""
    view = exchange.view
    if view.budgets is None:
        return None
    budgets = RequestBudgets(exchange, view.budgets)
    return budgets if budgets.holds or len(view.table.chain(exchange.model)) > 1 else None
