"""The limit on requests that count tokens: over the fast path and through Flask."""

import json
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from nexus.config.consistency import find_conflicts
from nexus.config.records import Config, Messages
from tests.access.limited import WAYS, key_of, keys_toml
from tests.server.asking import JSON, Reply, ask
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

COUNT, CHAT = "/v1/messages/count_tokens", "/v1/chat/completions"
BODY = json.dumps({"model": "demo-small", "messages": [{"role": "user", "content": "hi"}]}).encode()
FAMILIES = (
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_limit_refusals_total",
    "nexus_upstream_attempts_total",
    "nexus_usage_total",
    "nexus_dialect_requests_total",
)
CONFIG = """
[messages]
count_tokens_limit = "5/d"
[auth]
mode = "optional"
[[limits]]
name = "one"
each = ["key"]
requests = "1/d"
[[limits]]
name = "named"
match = { key = "named", endpoint = "count_*" }
parallel = 0
suspend = true
[queue]
enabled = false
"""


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def running(request, tmp_path_factory) -> Iterator[tuple[Gateway, Demo]]:
    directory = tmp_path_factory.mktemp("counting")
    with Demo(directory, pace=0) as demo:
        config = backend_toml(demo, max_concurrent=1) + CONFIG
        config += keys_toml("a", "b", "c", "named")
        with Gateway(directory, config, workers=4, environ=request.param) as gateway:
            yield gateway, demo


def send(gateway: Gateway, key: str | None, path: str = COUNT) -> Reply:
    headers = JSON if key is None else JSON | {"authorization": f"Bearer {key_of(key)}"}
    return ask(gateway, path, body=BODY, headers=headers)


@pytest.mark.e2e
def test_each_key_has_the_limit_over_all_workers(running):
    gateway, _ = running
    before = gateway.settled()
    with ThreadPoolExecutor(8) as pool:
        replies = [*pool.map(lambda _: send(gateway, "a"), range(12))]
    assert Counter(reply.status for reply in replies) == {200: 5, 429: 7}
    for reply in replies:
        if reply.status == 429:
            error = json.loads(reply.content)
            assert (error["type"], error["error"]["type"]) == ("error", "rate_limit_error")
            assert 0 < int(reply.headers["retry-after"]) <= 86_400 / 5
    assert moved(before, gateway.settled(), FAMILIES) == {
        (name, frozenset(labels.items())): change
        for name, labels, change in (
            ("nexus_requests_total", _request("demo", 200), 5),
            ("nexus_requests_total", _request("none", 429), 7),
            ("nexus_errors_total", {"error_type": "rate_limited", "model": "demo_small"}, 7),
            ("nexus_limit_refusals_total", _LIMIT, 7),
            ("nexus_upstream_attempts_total", {"backend": "demo", "outcome": "ok"}, 5),
            ("nexus_dialect_requests_total", {"endpoint": "count_tokens", "mode": "native"}, 5),
        )
    }
    assert send(gateway, "b").status == 200


_LIMIT = {"limit": "[messages] count_tokens_limit", "dimension": "requests"}


def _request(backend: str, status: int) -> dict[str, str]:
    return {"model": "demo_small", "backend": backend, "status": str(status)}


@pytest.mark.e2e
def test_without_a_key_each_address_has_the_limit(running):
    gateway, _ = running
    statuses = [send(gateway, None).status for _ in range(7)]
    assert statuses == [200] * 5 + [429] * 2
    head = f"POST {COUNT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(BODY)}\r\n\r\n"
    with socket.create_connection(
        ("127.0.0.1", gateway.port), timeout=20, source_address=("127.0.0.9", 0)
    ) as other:
        other.sendall(head.encode() + BODY)
        assert other.recv(12) == b"HTTP/1.1 200"


@pytest.mark.e2e
def test_other_limits_do_not_count_it_unless_they_name_it(running):
    gateway, _ = running
    assert [send(gateway, "c").status for _ in range(3)] == [200] * 3
    assert send(gateway, "c", CHAT).status == 200
    assert send(gateway, "c", CHAT).status == 429
    assert send(gateway, "c").status == 200
    assert send(gateway, "named").status == 429


@pytest.mark.e2e
def test_it_takes_no_capacity_and_waits_for_none(running):
    """The backend takes one request at once, and there is no queue."""
    gateway, demo = running
    demo.fault("delay=2")
    with ThreadPoolExecutor(1) as pool:
        counted = pool.submit(send, gateway, "b")
        until(lambda: demo.tally()["open"] == 1)
        demo.fault("")
        assert send(gateway, "b", CHAT).status == 200
        assert not counted.done()
        assert gateway.scrape().value("nexus_pending_requests", backend="demo") == 0
        assert counted.result().status == 200


@pytest.mark.parametrize("rate", ["", "5", "0/s", "100000000/s"])
def test_a_rate_that_cannot_be(rate):
    config = Config(messages=Messages(count_tokens_limit=rate))
    [problem] = [text for text in find_conflicts(config) if "count_tokens_limit" in text]
    assert problem.startswith("[messages] count_tokens_limit = ")
