"""Grants: more money for the present window of a budget."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import jsonschema
import pytest

from nexus.access.keys import digest
from tests.access.limited import WAYS
from tests.cli.schemas import SCHEMAS
from tests.server.asking import GOOD, ask
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml, clean_environ

pytestmark = pytest.mark.e2e

NANO = 10**9
IDS = ("ann", "bo", "cy", "dee")
CONFIG = """
[auth]
mode = "keys"
[[costs.price]]
per_request = "0.1"
[[budgets]]
name = "each"
each = ["key"]
usd = "0.2"
per = "total"
[[budgets]]
name = "all"
usd = "1000"
timezone = "Europe/Berlin"
[[budgets]]
name = "pairs"
each = ["key", "model"]
usd = "1000"
[[budgets]]
name = "teams"
each = ["team"]
match = { team = "res*" }
usd = "1000"
[[budgets]]
name = "users"
each = ["user"]
usd = "1000"
[[teams]]
name = "research"
[[teams]]
name = "sales"
[routing.aliases]
small = "demo-small"
""" + "".join(
    f'[[keys]]\nid = "{id_}"\nsha256 = ["{digest(f"sk-nx-of-a-test-of-grants-{id_}")}"]\n'
    for id_ in IDS
)


@pytest.fixture(scope="module")
def demo(module_dir) -> Iterator[Demo]:
    with Demo(module_dir, name="demo", models=["demo-small"], pace=0) as demo:
        yield demo


class Place:
    """A directory in which one gateway after another runs."""

    def __init__(self, directory, demo: Demo) -> None:
        self._directory, self._demo = directory, demo

    def gateway(self, way: str) -> Gateway:
        return Gateway(
            self._directory,
            CONFIG + backend_toml(self._demo),
            workers=4,
            server=f'state_dir = "{self._directory}/state"',
            environ=WAYS[way],
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory, demo) -> Place:
    return Place(tmp_path_factory.mktemp("grants"), demo)


@pytest.fixture(scope="module")
def gateway(place) -> Iterator[Gateway]:
    with place.gateway("fast path") as gateway:
        yield gateway


def nexus(gateway, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nexus", *words, "-c", str(gateway.file)],
        capture_output=True,
        text=True,
        env=clean_environ(),
        check=False,
    )


def grant(gateway, name: str, usd: str, *, subject: str = "") -> dict:
    done = nexus(gateway, "budgets", "grant", name, "--subject", subject, "--usd", usd, "--json")
    assert done.returncode == 0, done.stderr
    granted = json.loads(done.stdout)
    jsonschema.validate(granted, SCHEMAS["budgets grant"])
    return granted


def send(gateway, id_: str, **more):
    return ask(
        gateway,
        authorization=f"Bearer sk-nx-of-a-test-of-grants-{id_}",
        body=json.dumps(GOOD).encode(),
        **more,
    )


def statuses(gateway, id_: str, count: int) -> list[int]:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(send(gateway, id_).status))
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(found)


def amounts(gateway, budget: str, subject: str = "") -> tuple[int, ...]:
    """(limit, warns at, spent) in nano-dollars, as a scrape shows them."""
    found = gateway.scrape()
    return tuple(
        round(found.value(f"nexus_budget_{what}_usd", budget=budget, subject=subject) * NANO)
        for what in ("limit", "warn", "spent")
    )


def test_a_grant_admits_exactly_so_much_more_in_all_workers_and_a_second_adds(gateway):
    assert statuses(gateway, "ann", 12) == [200] * 2 + [429] * 10
    granted = grant(gateway, "each", "0.3", subject="key ann")
    assert granted == {
        "budget": "each",
        "subject": "key ann",
        "mode": "hard",
        "per": "total",
        "limit_usd": "0.5",
        "granted_usd": "0.3",
        "spent_usd": "0.2",
        "held_usd": "0",
        "left_usd": "0.3",
        "resets": None,
    }
    time.sleep(1)  # the promise is: for all requests from a second later on
    assert statuses(gateway, "ann", 12) == [200] * 3 + [429] * 9
    gateway.settled()
    assert amounts(gateway, "each", "key ann") == (500_000_000, 400_000_000, 500_000_000)
    assert grant(gateway, "each", "0.1", subject="ann")["granted_usd"] == "0.4"
    time.sleep(1)  # as above
    assert statuses(gateway, "ann", 12) == [200] + [429] * 11
    gateway.settled()
    assert amounts(gateway, "each", "key ann") == (600_000_000, 480_000_000, 600_000_000)
    refused = json.loads(send(gateway, "ann").content)["error"]
    assert refused["message"] == (
        "Budget 'each' of key ann: 0.6 USD; 0.6 spent, 0 held for requests in progress, 0.1 asked."
    )
    assert statuses(gateway, "bo", 12) == [200] * 2 + [429] * 10
    assert amounts(gateway, "each", "key bo")[0] == 200_000_000


def test_it_is_shown_before_the_first_request(gateway):
    grant(gateway, "each", "1", subject="cy")
    assert amounts(gateway, "each", "key cy") == (1_200_000_000, 960_000_000, 0)
    bearer = {"authorization": "Bearer sk-nx-of-a-test-of-grants-cy"}
    reply = ask(gateway, "/v1/key", method="GET", body=None, headers=bearer)
    [own] = [one for one in json.loads(reply.content)["budgets"] if one["budget"] == "each"]
    assert (own["limit_usd"], own["granted_usd"], own["left_usd"]) == ("1.2", "1", "1.2")
    [line] = [line for line in nexus(gateway, "budgets").stdout.splitlines() if "key cy" in line]
    assert line.split() == ["each", "key", "cy", "hard", "1.2", "1", "0", "0", "1.2", "never"]


def test_what_is_refused(gateway):
    for words, status, why in (
        (("other", "--usd", "1"), 1, "There is no budget 'other'."),
        (("each", "--usd", "1"), 2, "Budget 'each' takes a subject such as \"key …\", not ''."),
        (("all", "--subject", "x", "--usd", "1"), 2, "is for all and takes no subject, not 'x'."),
        (("pairs", "--subject", "ann", "--usd", "1"), 2, 'such as "key …, model …", not'),
        (("each", "--subject", "an", "--usd", "1"), 2, "There is no key 'an'; did you mean ann?"),
        (("each", "--subject", "zed", "--usd", "1"), 2, "'zed'; `nexus keys list` shows them."),
        (
            ("pairs", "--subject", "key ann, model demo-smal", "--usd", "1"),
            2,
            "There is no model 'demo-smal'; did you mean demo-small?",
        ),
        (("teams", "--subject", "sales", "--usd", "1"), 2, 'is only for team = "res*", not'),
        (("teams", "--subject", "law", "--usd", "1"), 2, "'law'; known are none, research, sales."),
        (("users", "--subject", "zoe", "--usd", "1"), 2, "no user 'zoe'; [auth.identity] from"),
        (("all", "--usd", "-1"), 2, "usd takes more than 0 US dollars"),
        (("all", "--usd", "0"), 2, "usd takes more than 0 US dollars"),
        (("all", "--usd", "0.0000000001"), 2, "usd takes more than 0 US dollars"),
    ):
        done = nexus(gateway, "budgets", "grant", *words)
        assert (done.returncode, why in done.stderr) == (status, True), done.stderr
    assert amounts(gateway, "all")[0] == 1000 * NANO


def test_grants_outlast_restarts_and_reloads(gateway, place):
    """The last one: it ends the gateway of the module. The next one serves through Flask."""
    granted = grant(gateway, "pairs", "7.000000001", subject="key dee, model small")
    assert granted["subject"] == "key dee, model demo-small"
    assert granted["limit_usd"] == "1007.000000001"
    assert grant(gateway, "all", "5")["resets"] is not None
    assert nexus(gateway, "reload").returncode == 0
    before = [amounts(gateway, "each", "key ann"), amounts(gateway, "all")]
    assert before[1][:2] == (1005 * NANO, 804 * NANO)
    until(lambda: send(gateway, "dee").status == 429)
    gateway.settled()
    gateway.__exit__(None, None, None)
    with place.gateway("Flask") as again:
        assert until(lambda: amounts(again, "each", "key ann") == before[0])
        assert amounts(again, "all")[0] == 1005 * NANO
        subject = {"budget": "pairs", "subject": "key dee, model demo-small"}
        limit = again.scrape().value("nexus_budget_limit_usd", **subject)
        assert round(limit * NANO) == 1_007_000_000_001
        assert send(again, "ann").code == "insufficient_quota"
        assert grant(again, "each", "0.1", subject="ann")["granted_usd"] == "0.5"
        assert until(lambda: statuses(again, "ann", 12) == [200] + [429] * 11)
