"""Why backends that have the model were passed over: each request counts each of them once, with
the true reason."""

import http.client
import json
import os
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from nexus.config import Config
from nexus.config.routing_records import Policy, Queue, Routing
from nexus.fleet.records import Model
from nexus.metrics.label_values import EXCLUSION_REASONS
from tests.support.polling import until
from tests.support.processes import Demo, Workers, backend

pytestmark = pytest.mark.e2e

CONFIG = Config(
    queue=Queue(enabled=False),
    routing=Routing(
        strategy="priority_only",
        policies=[
            Policy(model_pattern="private", privacy="restricted"),
            Policy(model_pattern="tall", min_tier=3),
        ],
        fallbacks={"gone": ["m"]},
    ),
)


@pytest.fixture(scope="module", params=["fast path", "flask"])
def workers(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("exclusions")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "flask":
            patch.setitem(os.environ, "NEXUS_WITHOUT_SHORT_WAY", "1")
        with (
            Demo(directory, name="demo", models=["m"], pace=0) as demo,
            Workers(directory, CONFIG, [], workers=1) as workers,
        ):
            workers.demo = demo
            yield workers


def of(workers, name: str, *models: str, status: str = "healthy", draining: bool = False, **config):
    return msgspec.structs.replace(
        backend(name, workers.demo.url, *models, **config), status=status, draining=draining
    )


def ask(workers, model: str, **more: object) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", workers.port, timeout=20)
    headers = {"content-type": "application/json", **more.pop("headers", {})}
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], **more}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def excluded(workers, act) -> dict[str, float]:
    before = workers.settled().series("nexus_routing_exclusions_total", "reason")
    act()
    after = workers.settled().series("nexus_routing_exclusions_total", "reason")
    moved = {
        key[0]: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)
    }
    assert set(moved) <= set(EXCLUSION_REASONS)
    return moved


def test_nothing_is_counted_if_none_was_passed_over(workers):
    workers.publish(CONFIG, [of(workers, "a", "m"), of(workers, "b", "m")])
    assert excluded(workers, lambda: ask(workers, "m")) == {}


def test_the_reasons_that_hold_for_a_snapshot(workers):
    workers.publish(
        CONFIG,
        [
            of(workers, "good", "m", "private", "tall", zone="restricted", tier=4),
            of(workers, "down", "m", status="unhealthy"),
            of(workers, "new", "m", status="unknown"),
            of(workers, "drained", "m", draining=True),
            of(workers, "open", "private", zone="open"),
            of(workers, "low", "tall", tier=1),
            of(workers, "elsewhere", "other-model"),
        ],
    )
    assert excluded(workers, lambda: ask(workers, "m")) == {
        "unhealthy": 1,
        "unknown": 1,
        "draining": 1,
    }
    assert excluded(workers, lambda: ask(workers, "private")) == {"privacy_restricted": 1}
    assert excluded(workers, lambda: ask(workers, "tall")) == {"tier_below_minimum": 1}
    assert excluded(workers, lambda: ask(workers, "nobody-has-it")) == {}


def test_a_fallback_counts_what_was_passed_over_before_it(workers):
    workers.publish(CONFIG, [of(workers, "a", "m"), of(workers, "b", "gone", status="unhealthy")])
    assert excluded(workers, lambda: ask(workers, "gone")) == {"unhealthy": 1}
    workers.publish(
        CONFIG, [of(workers, "a", "m", status="unhealthy"), of(workers, "b", "gone", draining=True)]
    )
    assert excluded(workers, lambda: ask(workers, "gone")) == {"unhealthy": 1, "draining": 1}


def test_a_backend_at_its_limit_is_reported_and_so_is_a_refusal(workers):
    workers.publish(
        CONFIG,
        [of(workers, "a", "m", max_concurrent=1, priority=1), of(workers, "b", "m", priority=2)],
    )
    slow = {"x-demo-fault": "delay=1.5"}

    def both() -> None:
        with ThreadPoolExecutor() as pool:
            first = pool.submit(ask, workers, "m", headers=slow)
            until(lambda: workers.scrape().value("nexus_pending_requests", backend="a") == 1)
            assert ask(workers, "m") == 200
            assert first.result() == 200

    assert excluded(workers, both) == {"at_capacity": 1}


def test_what_a_model_cannot_do(workers):
    blind = msgspec.structs.replace(of(workers, "a"), models=(Model(name="m", json_mode=False),))
    workers.publish(CONFIG, [blind, of(workers, "b", "m")])
    asked = {"response_format": {"type": "json_object"}}
    assert excluded(workers, lambda: ask(workers, "m", **asked)) == {"capability_mismatch": 1}
