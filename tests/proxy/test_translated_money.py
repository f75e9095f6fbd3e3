"""Prices and limits of translated requests: by what the backend reports, in the client's form."""

from typing import Any

import pytest
import requests

from tests.support.metrics import moved
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

CONFIG = """
[[costs.price]]
model = "priced"
input = "1000"
output = "2000"
[[limits]]
name = "tokens"
match = { model = "limited" }
tokens = "100/d"
"""
HI = [{"role": "user", "content": "hi"}]
PATHS = {
    "/v1/messages": {"max_tokens": 4, "messages": HI},
    "/v1/responses": {"max_output_tokens": 4, "input": "hi"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("money")
    with Demo(directory, name="chat", models=["priced", "limited"], pace=0) as chat:
        backends = backend_toml(chat, dialects=["openai"])
        with Gateway(directory, backends + CONFIG) as gateway:
            yield gateway


def post(gateway: Gateway, path: str, model: str, **more: Any) -> requests.Response:
    body = {"model": model} | PATHS[path] | more
    return requests.post(gateway.base + path, json=body, timeout=10)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", PATHS)
def test_a_request_costs_what_its_tokens_cost(base, path, stream):
    before = base.settled()
    reply = post(base, path, "priced", stream=stream)
    assert reply.status_code == 200
    moves = {
        (name, dict(labels).get("type")): change
        for (name, labels), change in moved(
            before, base.settled(), ("nexus_tokens_total_sum", "nexus_cost_usd_total")
        ).items()
    }
    prompt = moves["nexus_tokens_total_sum", "prompt"]
    assert moves["nexus_tokens_total_sum", "completion"] == 4
    cost = sum(change for (name, _), change in moves.items() if name == "nexus_cost_usd_total")
    assert cost == pytest.approx((prompt * 1000 + 4 * 2000) / 1e6)


def test_tokens_of_all_clients_count_against_one_limit(base):
    statuses = {}
    for path in [*PATHS] * 20:
        reply = post(base, path, "limited")
        if reply.status_code == 429:
            statuses.setdefault(path, reply.json()["error"])
            if len(statuses) == len(PATHS):
                break
    assert statuses["/v1/messages"]["type"] == "rate_limit_error"
    assert statuses["/v1/responses"]["code"] == "rate_limit_exceeded"
