"""Which spent budgets keep a request from a fallback."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from nexus.access.budgets import Budgets
from nexus.access.prices import Price
from nexus.config.budget_records import Budget
from nexus.config.limit_records import Match
from nexus.dialects.base import TokenEstimate
from nexus.fleet.limit_table import LimitTable
from nexus.proxy.budget_checks import RequestBudgets
from nexus.proxy.limits import Limiter

FALLBACKS = Budget(name="fallbacks", usd="1", match=Match(model="second"), reserve_output=1)


@pytest.fixture
def table() -> Iterator[LimitTable]:
    table = LimitTable(None)
    yield table
    table.close()


def requested(table: LimitTable, *budgets: Budget) -> RequestBudgets:
    """The budgets of a request for `first` that was admitted."""
    price = Price(per_request=10**9)
    exchange = SimpleNamespace(
        engine=SimpleNamespace(limiter=Limiter(lambda: table, SimpleNamespace())),
        view=SimpleNamespace(prices_of=lambda _: [(price, False)]),
        endpoint=SimpleNamespace(name="chat_completions", makes_images=False),
        model="first",
        caller=None,
        without_cloud=False,
        token_estimate=lambda: TokenEstimate(1, 1, 1),
    )
    return RequestBudgets(exchange, Budgets(budgets))


def spend(table: LimitTable, budgets: RequestBudgets) -> None:
    """Others spend all of the request's budgets."""
    for hold in budgets.holds:
        account = hold.account
        record = table.accounts.claim(
            account.digest,
            account.budget.name,
            account.subject,
            start=account.start,
            end=account.end,
            now=account.start,
        )
        assert table.acquire()
        table.accounts.stage_spent(record, held=0, cost=account.limit)
        table.commit()
        table.release()


@pytest.mark.parametrize("model", ["*", "first"])
def test_a_spent_soft_budget_refuses_only_what_is_charged_to_it(table, model):
    soft = Budget(name="soft", usd="1", mode="soft", match=Match(model=model))
    budgets = requested(table, soft, FALLBACKS)
    assert budgets.allows("second")
    spend(table, budgets)
    charged = model == "*"
    assert budgets.allows("second") is not charged
    assert budgets.hold_for("second") is not charged
