"""What a request is charged, however it ends: over the fast path and through Flask."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator

import pytest

from tests.access.limited import WAYS, chat, keys_toml, open_stream, own_limits, send
from tests.server.asking import GOOD
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

CHARGED = (
    "whole",
    "stream",
    "counted",
    "broken",
    "silent",
    "twice",
    "failed",
    "gone",
    "sum",
    "killed",
)
REFUSED = ("narrow", "broke", "plain")
PROMPT = max(1, len(json.dumps(GOOD["messages"], separators=(",", ":"))) // 4)
CONFIG = (
    """
[auth]
mode = "keys"
[queue]
max_size = 1
[[limits]]
name = "charged"
each = ["key"]
requests = "500/d"
tokens = "2500/d"
reserve_output = 1024
[[limits]]
name = "places"
each = ["key"]
parallel = 5
[[limits]]
name = "shadow"
match = { key = "shadow" }
requests = "3/d"
tokens = "9/d"
shadow = true
[[limits]]
name = "real"
match = { key = "real" }
requests = "3/d"
tokens = "9/d"
[[budgets]]
name = "none"
usd = "0"
match = { key = "broke" }
unpriced = "free"
[[costs.price]]
model = "demo-small"
per_request = "0.1"
"""
    + keys_toml(*CHARGED, "plain", "broke", "busy", "shadow", "real")
    + keys_toml("narrow")
    + 'models = ["demo-small"]\nendpoints = ["chat_completions"]\n'
)


@pytest.fixture(scope="module")
def demos(module_dir) -> Iterator[list[Demo]]:
    with (
        Demo(module_dir, name="demo", models=["demo-small", "demo-twice"], pace=0) as demo,
        Demo(module_dir, name="bad", models=["demo-twice"], fault="status=500") as bad,
        Demo(module_dir, name="dead", models=["demo-dead"], fault="status=500") as dead,
        Demo(module_dir, name="one", models=["demo-one"], pace=20, length=2000) as one,
    ):
        yield [demo, bad, dead, one]


@pytest.fixture(scope="module", params=WAYS)
def gateway(request, tmp_path_factory, demos) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("charges")
    demo, bad, dead, one = demos
    config = (
        CONFIG
        + backend_toml(demo)
        + '[[backends.models]]\nname = "demo-small"\nvision = false\n'
        + backend_toml(bad, priority=1)
        + backend_toml(dead)
        + backend_toml(one, max_concurrent=1)
    )
    with Gateway(directory, config, workers=3, environ=WAYS[request.param]) as gateway:
        yield gateway


def charged(gateway, id_) -> tuple[int, int, int]:
    """The requests, tokens and places that a key uses."""
    limits = own_limits(gateway, id_)
    return tuple(
        limits[limit][dimension]
        for limit, dimension in (
            (("charged", "requests"), "used"),
            (("charged", "tokens"), "used"),
            (("places", "parallel"), "used"),
        )
    )


def events(content: bytes) -> list[dict]:
    lines = [line for line in content.decode().splitlines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def words(content: bytes) -> int:
    """The events of a stream that have output."""
    return sum(
        1
        for event in events(content)
        for choice in event.get("choices", ())
        if choice["delta"].get("content")
    )


def fault(spec: str) -> dict[str, str]:
    return {"content-type": "application/json", "x-demo-fault": spec}


def test_a_whole_response_is_charged_what_it_reports(gateway):
    reply = send(gateway, "whole", body=chat(max_tokens=90))
    assert reply.headers["x-ratelimit-remaining-tokens"] == str(2500 - PROMPT - 90)
    usage = json.loads(reply.content)["usage"]
    until(lambda: charged(gateway, "whole") == (1, usage["total_tokens"], 0))


def test_a_stream_is_charged_what_it_reports(gateway):
    body = chat(max_tokens=90, stream=True, stream_options={"include_usage": True})
    usage = events(send(gateway, "stream", body=body).content)[-1]["usage"]
    until(lambda: charged(gateway, "stream") == (1, usage["total_tokens"], 0))


def test_a_stream_without_usage_is_charged_its_events(gateway):
    body = chat(max_tokens=60, stream=True)
    reply = send(gateway, "counted", body=body, headers=fault("no_usage"))
    assert words(reply.content) > 10
    until(lambda: charged(gateway, "counted") == (1, PROMPT + words(reply.content), 0))


def test_a_broken_stream_is_charged_what_came(gateway):
    body = chat(max_tokens=60, stream=True)
    reply = send(gateway, "broken", body=body, headers=fault("break_after=7"))
    assert 0 < words(reply.content) < 10
    until(lambda: charged(gateway, "broken") == (1, PROMPT + words(reply.content), 0))


def test_a_response_without_usage_is_charged_its_reservation(gateway):
    reply = send(gateway, "silent", body=chat(max_tokens=90), headers=fault("no_usage"))
    assert reply.status == 200
    until(lambda: charged(gateway, "silent") == (1, PROMPT + 90, 0))


def test_a_request_that_is_repeated_elsewhere_is_charged_once(gateway):
    before = gateway.settled()
    reply = send(gateway, "twice", body=chat(model="demo-twice", max_tokens=90))
    usage = json.loads(reply.content)["usage"]
    tried = moved(before, gateway.settled(), ["nexus_upstream_attempts_total"])
    assert sorted(tried.values()) == [1, 1]
    until(lambda: charged(gateway, "twice") == (1, usage["total_tokens"], 0))


def test_a_request_that_fails_everywhere_is_charged_no_tokens(gateway):
    assert send(gateway, "failed", body=chat(model="demo-dead")).status >= 500
    until(lambda: charged(gateway, "failed") == (1, 0, 0))


def test_a_client_that_leaves_is_charged_what_was_sent_to_it(gateway):
    before = gateway.settled()
    client = open_stream(gateway, "gone", model="demo-one")
    received = b""
    while words(received.rpartition(b"\n\n")[0]) < 5:
        received += client.recv(4096)
    client.close()
    after = gateway.settled()
    tokens = moved(before, after, ["nexus_stream_events_total"])
    until(lambda: charged(gateway, "gone")[::2] == (1, 0))
    used = charged(gateway, "gone")[1]
    assert PROMPT + 5 <= used <= PROMPT + sum(tokens.values())


def test_what_is_charged_adds_up(gateway):
    """Reserved, less what was returned, with what was used beyond it; by the key's own metrics,
    with the estimates and reservations that took the place of unknown usage."""
    before = gateway.settled()
    send(gateway, "sum", body=chat(max_tokens=90))
    send(gateway, "sum", body=chat(max_tokens=90, stream=True), headers=fault("no_usage"))
    send(gateway, "sum", body=chat(max_tokens=70), headers=fault("no_usage"))
    send(gateway, "sum", body=chat(model="demo-twice", max_tokens=80))

    def tokens(what: str) -> float:
        name = f"nexus_{what}_tokens_total"
        return sum(moved(before, gateway.settled(), [name]).values())

    used = tokens("key") + PROMPT + (PROMPT + 70)
    until(lambda: charged(gateway, "sum") == (4, used, 0))
    reserved = 4 * PROMPT + 90 + 90 + 70 + 80
    until(lambda: reserved - tokens("limit_returned") + tokens("limit_overrun") == used)


def test_the_reservation_of_a_killed_worker_stays_charged(gateway):
    with open_stream(gateway, "killed", model="demo-one", max_tokens=300) as client:
        assert client.recv(12) == b"HTTP/1.1 200"
        for pid in gateway.worker_pids():
            os.kill(pid, signal.SIGKILL)
        until(lambda: charged(gateway, "killed") == (1, PROMPT + 300, 0))


def test_what_the_gateway_refuses_is_charged_nothing(gateway):
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    looking = chat(messages=[{"role": "user", "content": image}])
    embeddings = json.dumps({"model": "demo-small", "input": "x"}).encode()
    with contextlib.ExitStack() as streams:
        busy = streams.enter_context(open_stream(gateway, "busy", model="demo-one"))
        assert busy.recv(12) == b"HTTP/1.1 200"
        streams.enter_context(open_stream(gateway, "busy", model="demo-one"))
        until(lambda: gateway.scrape().value("nexus_queue_depth") == 1)
        for id_, code, more in (
            ("unknown", "invalid_api_key", {}),
            ("narrow", "model_not_allowed", {"body": chat(model="demo-twice")}),
            (
                "narrow",
                "endpoint_not_allowed",
                {"body": embeddings, "target": "/v1/embeddings"},
            ),
            ("plain", "model_not_found", {"body": chat(model="no-such")}),
            ("plain", "queue_full", {"body": chat(model="demo-one")}),
            ("plain", "capability_mismatch", {"body": looking}),
            ("plain", "invalid_json", {"body": b"{"}),
            ("broke", "insufficient_quota", {}),
        ):
            reply = send(gateway, id_, **more)
            assert reply.code == code, reply
    for id_ in REFUSED:
        until(lambda id_=id_: charged(gateway, id_) == (0, 0, 0))


def test_shadow_counts_what_would_be_refused(gateway):
    before = gateway.settled()
    shadowed = [send(gateway, "shadow").status for _ in range(6)]
    refused = [send(gateway, "real").status for _ in range(6)]
    found = moved(
        before,
        gateway.settled(),
        ["nexus_limit_refusals_total", "nexus_limit_shadow_refusals_total"],
    )
    by_limit: dict[str, dict[str, float]] = {}
    for (_, labels), change in found.items():
        by_limit.setdefault(dict(labels)["limit"], {})[dict(labels)["dimension"]] = change
    assert shadowed == [200] * 6
    assert refused.count(429) == sum(by_limit["real"].values()) > 0
    assert by_limit["shadow"] == by_limit["real"]
