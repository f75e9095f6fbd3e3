"""Waiting for a place of a limit on requests in progress: over the fast path and through Flask."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.server.asking import BODY, CHAT, JSON, ask
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}
LIMITS = """
[[limits]]
name = "places"
match = { model = "demo-small" }
parallel = 2
parallel_wait_seconds = 20
[[limits]]
name = "soon over"
match = { model = "demo-large" }
parallel = 1
parallel_wait_seconds = 0.3
"""
FAMILIES = ("nexus_limit_refusals_total", "nexus_requests_total")


@pytest.fixture(scope="module", params=WAYS)
def gateway(request, tmp_path_factory, demo) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("places")
    config = LIMITS + backend_toml(demo)
    with Gateway(directory, config, workers=2, environ=WAYS[request.param]) as gateway:
        yield gateway


@pytest.fixture
def slow(demo: Demo) -> Iterator[Demo]:
    demo.fault("delay=0.3")
    yield demo
    demo.fault("")


def changes(before, after) -> dict[str, float]:
    return {
        f"{name} {' '.join(value for _, value in sorted(labels))}": change
        for (name, labels), change in moved(before, after, FAMILIES).items()
    }


class Sent(threading.Thread):
    """A request in a thread of its own."""

    def __init__(self, gateway: Gateway, model: str = "demo-small") -> None:
        super().__init__()
        self.body = BODY.replace(b"demo-small", model.encode())
        self.gateway, self.reply = gateway, None
        self.start()

    def run(self) -> None:
        self.reply = ask(self.gateway, body=self.body)


def test_requests_over_the_limit_wait_for_a_place(gateway, slow):
    before = gateway.settled()
    requests = [Sent(gateway) for _ in range(8)]
    most = 0
    while any(request.is_alive() for request in requests):
        most = max(most, slow.tally()["open"])
    assert most == 2
    assert [request.reply.status for request in requests] == [200] * 8
    assert changes(before, gateway.settled()) == {"nexus_requests_total demo_a demo_small 200": 8}


def test_after_the_time_the_request_is_refused_and_counted_once(gateway, demo):
    demo.fault("delay=3")
    try:
        before = gateway.settled()
        first = Sent(gateway, "demo-large")
        until(lambda: demo.tally()["open"] == 1)
        started = time.monotonic()
        late = [Sent(gateway, "demo-large") for _ in range(3)]
        for request in late:
            request.join()
        assert time.monotonic() - started >= 0.3
        first.join()
    finally:
        demo.fault("")
    assert first.reply.status == 200
    assert [request.reply.status for request in late] == [429] * 3
    error = json.loads(late[0].reply.content)["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "parallel")
    assert late[0].reply.headers["retry-after"] == "1"
    assert changes(before, gateway.settled()) == {
        "nexus_requests_total demo_a demo_large 200": 1,
        "nexus_requests_total none demo_large 429": 3,
        "nexus_limit_refusals_total parallel soon over": 3,
    }


def test_a_client_that_leaves_gives_its_turn_to_the_next(gateway, slow):
    before = gateway.settled()
    slow.fault("delay=2")
    places = [Sent(gateway) for _ in range(2)]
    until(lambda: slow.tally()["open"] == 2)
    slow.fault("")
    with closing(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)) as client:
        client.request("POST", CHAT, BODY, JSON)
        until(lambda: in_progress(gateway) == 3)
        last = Sent(gateway)
        until(lambda: in_progress(gateway) == 4)
    until(lambda: in_progress(gateway) == 3)
    for request in (*places, last):
        request.join()
    assert [request.reply.status for request in (*places, last)] == [200] * 3
    assert changes(before, gateway.settled()) == {
        "nexus_requests_total demo_a demo_small 200": 3,
        "nexus_requests_total none demo_small 499": 1,
    }
    assert ask(gateway).status == 200


def in_progress(gateway: Gateway) -> float:
    scrape = gateway.scrape()
    ended = scrape.total("nexus_requests_total")
    return scrape.total("nexus_requests_started_total") - ended
