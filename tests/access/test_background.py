"""Responses in the background: budgets hold for them until a client gets their end."""

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from nexus.access.budgets import Budgets
from nexus.access.prices import Prices
from nexus.config import BackendConfig
from nexus.config.budget_records import Budget
from nexus.config.cost_records import Costs, Price
from nexus.config.records import Config
from nexus.dialects.base import Usage
from nexus.fleet.background_table import BUCKETS, BackgroundTable, Tokens
from nexus.fleet.limit_table import LimitTable
from nexus.fleet.records import Backend
from nexus.fleet.slot_lease import SlotLease
from nexus.metrics.recorder import Recorder
from nexus.metrics.store import Store
from nexus.proxy.background import LONGEST_S, BackgroundHolds, Pending
from nexus.proxy.budgets import Hold
from nexus.proxy.limits import Limiter
from tests.access.limited import WAYS
from tests.server.asking import JSON, ask
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

PATH = "/v1/responses"
PRICE = '[[costs.price]]\nmodel = "*"\ninput = "1000"\noutput = "2000"\n'
BUDGET = '[[budgets]]\nname = "all"\nusd = "100"\nper = "total"\nreserve_output = 50\n'


def test_the_table_forgets_what_was_taken():
    table = BackgroundTable(None)
    assert table.take("a") is None
    table.put("a", Tokens(1, 2, 3))
    assert table.take("a") == (1, 2, 3)
    assert table.take("a") is None
    for number in range(20 * BUCKETS):
        table.put(f"r{number}", Tokens(number, 0, 0))
    kept = [table.take(f"r{number}") for number in range(20 * BUCKETS)]
    assert sum(tokens is not None for tokens in kept) == 4 * BUCKETS
    assert all(tokens is None or tokens.prompt == n for n, tokens in enumerate(kept))


@pytest.mark.parametrize(
    ("usage", "after_s", "spent"),
    [
        (Usage(10, 5, 0), 1, 10_000_000 + 10_000_000),
        (Usage(0, 0), 1, 0),
        (None, 1, 60_000_000),
        (..., LONGEST_S - 1, None),
        (..., LONGEST_S, 60_000_000),
    ],
)
def test_it_is_charged_by_its_tokens_or_as_held(usage, after_s, spent):
    table, limits, now = BackgroundTable(None), LimitTable(None), [0.0]
    limiter = Limiter(lambda: limits, Recorder(Store(SlotLease.private()), SlotLease.private()))
    holds = BackgroundHolds(lambda: table, limiter, lambda: now[0])
    [account] = Budgets([Budget(name="all", usd="1", per="total")]).accounts(
        None, "m", "responses", time.time()
    )
    config = Config(costs=Costs(price=[Price(model="m", input="1000", output="2000")]))
    prices = Prices.of(config)
    assert prices is not None
    held = [Hold(account, 60_000_000)]
    backend = Backend(config=BackendConfig(name="b", url="http://b"), label="b", column=0)
    limiter.reserve((), (), held)
    holds.keep("resp", Pending(held, prices, backend, "m", LONGEST_S))
    holds.settle()
    assert [(one.spent, one.held) for one in limiter.accounts()] == [(0, 60_000_000)]
    now[0] = after_s
    if usage is not ...:
        holds.ended("resp", usage)
    holds.settle()
    expected = (0, 60_000_000) if spent is None else (spent, 0)
    assert [(one.spent, one.held) for one in limiter.accounts()] == [expected]


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def gateway(request, tmp_path_factory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("background")
    with Demo(directory, models=["m"], pace=0) as demo:
        environ = {**request.param, "XDG_STATE_HOME": str(directory / "state")}
        config = backend_toml(demo) + PRICE + BUDGET
        with Gateway(directory, config, workers=4, environ=environ) as gateway:
            yield gateway


def money(gateway: Gateway) -> tuple[float, float]:
    """What is spent and what is held, in thousandths of a dollar."""
    scraped = gateway.scrape()
    spent, held = (
        scraped.total(f"nexus_budget_{kind}_usd", budget="all") or 0 for kind in ("spent", "held")
    )
    return round(spent * 1000), round(held * 1000)


@pytest.mark.e2e
def test_the_hold_stays_until_a_client_gets_the_end(gateway):
    body = {"model": "m", "input": "hi", "max_output_tokens": 10, "background": True}
    ids, (before, none_held) = [], money(gateway)
    assert none_held == 0
    for _ in range(6):
        reply = ask(gateway, PATH, body=json.dumps(body).encode(), headers=JSON)
        answer = json.loads(reply.content)
        assert (reply.status, answer["status"], answer["usage"]) == (200, "queued", None)
        ids.append(answer["id"])
    gateway.settled()
    spent, held = money(gateway)
    assert spent == before
    assert held >= 6 * 20
    cost = 0
    for stored_id in ids:
        reply = ask(gateway, f"{PATH}/{stored_id}", method="GET", body=None)
        usage = json.loads(reply.content)["usage"]
        cost += usage["input_tokens"] + 2 * usage["output_tokens"]
    until(lambda: money(gateway) == (before + cost, 0))


@pytest.mark.e2e
def test_what_a_killed_worker_holds_is_spent(gateway):
    body = {"model": "m", "input": "hi", "max_output_tokens": 10, "background": True}
    before, _ = money(gateway)
    assert ask(gateway, PATH, body=json.dumps(body).encode(), headers=JSON).status == 200
    gateway.settled()
    _, held = money(gateway)
    for pid in gateway.worker_pids():
        os.kill(pid, signal.SIGKILL)
    until(lambda: money(gateway) == (before + held, 0))
