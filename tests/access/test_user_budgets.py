"""A budget for each user whom a proxy in front has signed in: fast path and Flask."""

import json
from collections.abc import Iterator

import pytest

from nexus.access.keys import digest
from tests.access.limited import WAYS
from tests.access.test_budgets import changes
from tests.access.test_grants import nexus
from tests.server.asking import GOOD, ask
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

NANO = 10**9
KEY = "sk-nx-of-a-test-beside-users"
CONFIG = f"""
[auth]
mode = "keys"
[auth.identity]
from = ["127.0.0.1"]
[[costs.price]]
per_request = "0.1"
[[teams]]
name = "research"
[[keys]]
id = "script"
sha256 = ["{digest(KEY)}"]
[[budgets]]
name = "each user"
match = {{ user = "?*", team = "research" }}
each = ["user"]
usd = "0.3"
"""


@pytest.fixture(scope="module", params=WAYS)
def gateway(request, tmp_path_factory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("users")
    with (
        Demo(directory, name="demo", models=["demo-small"], pace=0) as demo,
        Gateway(
            directory,
            CONFIG + backend_toml(demo),
            workers=2,
            server=f'state_dir = "{directory}/state"',
            environ=WAYS[request.param],
        ) as gateway,
    ):
        yield gateway


def send(gateway, user: str, group: str = "research", **more):
    headers = {"x-forwarded-user": user, "x-forwarded-groups": group}
    headers["content-type"] = "application/json"
    return ask(gateway, body=json.dumps(GOOD).encode(), headers=headers, **more)


def spent(gateway) -> dict[str, int]:
    found = gateway.scrape().series("nexus_budget_spent_usd", "budget", "subject")
    return {subject: round(value * NANO) for (_, subject), value in found.items()}


def test_each_user_has_a_budget(gateway):
    before = gateway.settled()
    assert [send(gateway, "ann").status for _ in range(3)] == [200] * 3
    gateway.settled()  # until then, the third may be in progress
    assert [send(gateway, "ann").status for _ in range(2)] == [429] * 2
    assert [send(gateway, "bo, the second").status for _ in range(2)] == [200] * 2
    # In no team of the budget, or with a key: not held to it.
    assert [send(gateway, "ann", "other").status for _ in range(2)] == [200] * 2
    assert ask(gateway, authorization=f"Bearer {KEY}").status == 200
    found = changes(before, gateway.settled())
    assert spent(gateway) == {"user ann": 300_000_000, "user bo, the second": 200_000_000}
    assert found["nexus_budget_refusals_total each user spent"] == 2
    assert found["nexus_errors_total budget_exceeded demo_small"] == 2
    refused = json.loads(send(gateway, "ann").content)["error"]
    assert refused["message"].startswith(
        "Budget 'each user' of user ann: 0.3 USD a month; 0.3 spent, 0 held for requests in "
        "progress, 0.1 asked. It resets at "
    )


def test_a_user_sees_only_its_own(gateway):
    for user, left in (("ann", "0"), ("bo, the second", "0.1")):
        headers = {"x-forwarded-user": user, "x-forwarded-groups": "research"}
        reply = ask(gateway, "/v1/key", method="GET", body=None, headers=headers)
        [budget] = json.loads(reply.content)["budgets"]
        assert (budget["subject"], budget["left_usd"]) == (f"user {user}", left)
        page = ask(gateway, "/my-key", method="GET", body=None, headers=headers).content.decode()
        assert f"<td>user {user}</td>" in page


def test_a_grant_to_a_user_who_has_cost_nothing_says_so(gateway):
    for user, notes in (("ann", 0), ("zoe", 1)):
        words = ("budgets", "grant", "each user", "--subject", user, "--usd", "1")
        done = nexus(gateway, *words)
        assert (done.returncode, done.stderr.count("check the name")) == (0, notes), done.stderr
