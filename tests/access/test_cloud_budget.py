"""[routing.budget] in a running gateway: over the fast path and through Flask."""

import json
from collections.abc import Iterator

import pytest

from tests.server.asking import GOOD, ask
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}
NANO = 10**9
CONFIG = """
[routing.budget]
monthly_limit_usd = 0.35
soft_limit_percent = 50
hard_limit_action = "{action}"
[routing.fallbacks]
demo-cloud = ["demo-local"]
[[costs.price]]
per_request = "0.1"
"""


@pytest.fixture(scope="module")
def cloud(module_dir) -> Iterator[Demo]:
    models = ["demo-both", "demo-cloud", "demo-alone"]
    with Demo(module_dir, name="cloud", models=models, pace=0) as demo:
        yield demo


@pytest.fixture(scope="module")
def local(module_dir) -> Iterator[Demo]:
    with Demo(module_dir, name="local", models=["demo-both", "demo-local"], pace=0) as demo:
        yield demo


@pytest.fixture(params=WAYS)
def make(request, tmp_path, cloud, local):
    def made(action: str) -> Gateway:
        config = CONFIG.format(action=action)
        config += backend_toml(cloud, priority=1).replace("vllm", "openai")
        config += backend_toml(local, priority=9)
        environ = {**WAYS[request.param], "XDG_STATE_HOME": str(tmp_path / "state")}
        return Gateway(tmp_path, config, workers=2, environ=environ)

    return made


def send(gateway, model: str = "demo-both", **more):
    reply = ask(gateway, body=json.dumps({**GOOD, "model": model, **more}).encode())
    gateway.settled()
    return reply


def spent(gateway) -> float:
    return gateway.scrape().value("nexus_budget_spent_usd", budget="routing.budget", subject="")


def test_block_cloud_takes_cloud_backends_out_of_routing(make):
    with make("block_cloud") as gateway:
        served = [send(gateway).headers["x-nexus-backend"] for _ in range(5)]
        assert served == ["cloud"] * 3 + ["local"] * 2
        assert spent(gateway) == 0.3
        assert "x-nexus-cost-estimated" not in send(gateway).headers
        assert send(gateway, "demo-cloud").headers["x-nexus-fallback-model"] == "demo-local"
        refused = send(gateway, "demo-alone")
        assert (refused.status, refused.code) == (503, "routing_rejected")
        assert refused.headers["x-nexus-rejection-reasons"].split(",")[0] == "budget_exhausted"
        assert spent(gateway) == 0.3
        found = gateway.scrape()
        assert found.total("nexus_routing_exclusions_total", reason="budget_exhausted") >= 3
        assert found.total("nexus_budget_refusals_total") == 0
        assert found.value("nexus_budget_warn_usd", budget="routing.budget", subject="") == 0.175


def test_block_all_refuses_every_request_once_it_is_spent(make):
    with make("block_all") as gateway:
        assert [send(gateway).status for _ in range(3)] == [200] * 3
        refused = send(gateway)
        assert (refused.status, refused.code) == (429, "insufficient_quota")
        assert send(gateway, "demo-local").status == 200  # it costs the budget nothing yet
        assert round(spent(gateway) * NANO) == 300_000_000


def test_warn_refuses_nothing(make):
    with make("warn") as gateway:
        replies = [send(gateway, stream=number > 2) for number in range(5)]
        assert [reply.headers["x-nexus-backend"] for reply in replies] == ["cloud"] * 5
        assert {reply.headers["x-nexus-cost-estimated"] for reply in replies} == {"0.1000"}
        assert spent(gateway) == 0.5
