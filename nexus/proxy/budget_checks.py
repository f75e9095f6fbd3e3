"""What a request may cost, which its budgets hold until it has ended."""

from __future__ import annotations

import time
from collections.abc import Sequence

from nexus.access.budgets import Account
from nexus.access.prices import FREE, Price, most
from nexus.errors import RequestFailed
from nexus.proxy.background import LONGEST_S, Pending
from nexus.proxy.budgets import Hold, unpriced
from nexus.proxy.exchange import Exchange


class RequestBudgets:
    """The budgets of one request: what they hold for it, and for which models that is enough.

    Attributes:
        accounts: The accounts of the windows in which the request was admitted.
        holds: What is held, one for each account.
    """

    def __init__(self, exchange: Exchange, accounts: Sequence[Account]) -> None:
        self.accounts = accounts
        self._exchange = exchange
        self.holds: Sequence[Hold] = self._holds(exchange.model)
        self._enough: dict[str, Sequence[Hold] | None] = {exchange.model: self.holds}

    def allows(self, model: str) -> bool:
        """Whether the budgets have room for a fallback, as far as that shows without the lock."""
        holds = self._for_fallback(model)
        return holds is not None and self._exchange.engine.limiter.has_room(holds, self.holds)

    def hold_for(self, model: str) -> bool:
        """Hold what a model can cost, if that is more; returns False if a budget refuses it."""
        holds = self._for_fallback(model)
        if holds is None:
            return False
        if any(new.nano > old.nano for new, old in zip(holds, self.holds, strict=True)):
            try:
                self._exchange.engine.limiter.raise_holds(holds, self.holds)
            except RequestFailed:
                self._enough[model] = None
                return False
            self.holds = holds
        return True

    def settle(self) -> list[tuple[Hold, int]]:
        """What the request has cost each account."""
        exchange = self._exchange
        charge, choice = exchange.charge(), exchange.choice
        cost = 0 if charge is None else charge.total
        unknown = exchange.known_usage()[1] == "none"
        cloud = choice is not None and choice.backend.cloud
        return [
            (hold, max(hold.nano, cost) if unknown else cost)
            if cloud or hold.account.action is None
            else (hold, 0)
            for hold in self.holds
        ]

    def pending(self) -> Pending:
        """What is held for a response that the backend makes in the background."""
        exchange, view = self._exchange, self._exchange.view
        assert exchange.choice is not None
        assert view.prices is not None
        return Pending(
            self.holds,
            view.prices,
            exchange.choice.backend,
            exchange.model,
            exchange.engine.clock() + LONGEST_S,
        )

    def leave_cloud(self) -> None:
        """Hold nothing for cloud backends, which are not to serve the request."""
        self.accounts = [account for account in self.accounts if account.action is None]
        self.holds = [hold for hold in self.holds if hold.account.action is None]
        self._enough = {self._exchange.model: self.holds}

    def _for_fallback(self, model: str) -> Sequence[Hold] | None:
        """At least what is held, and what a model needs; None if it is refused."""
        if model not in self._enough:
            try:
                needed = self._holds(model)
            except RequestFailed:
                self._enough[model] = None
            else:
                self._enough[model] = [
                    new if new.nano > old.nano else old
                    for new, old in zip(needed, self.holds, strict=True)
                ]
        return self._enough[model]

    def _holds(self, model: str) -> list[Hold]:
        """What a response of a model can cost at its dearest backend. Raises `RequestFailed`."""
        holds, known = [], self._exchange.view.prices_of(model)
        for account in self.accounts:
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
    budgets = exchange.view.budgets
    if budgets is None:
        return None
    accounts = budgets.accounts(
        exchange.caller, exchange.model, exchange.endpoint.name, time.time()
    )
    return RequestBudgets(exchange, accounts) if accounts else None
