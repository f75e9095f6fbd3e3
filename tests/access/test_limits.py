"""Limits in a running gateway: over the fast path and through Flask."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import anthropic
import openai
import pytest

from nexus.access.buckets import unit_ns
from nexus.access.keys import digest
from nexus.access.limits import Limits
from nexus.config.limit_records import Limit
from nexus.fleet.limit_table import LimitTable
from tests.access.limited import WAYS, chat, key_of, keys_toml, open_stream, own_limits, send
from tests.server.asking import GOOD, Reply
from tests.support.load import ParsedRequest, run
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml, clean_environ

pytestmark = pytest.mark.e2e

IDS = (
    "free",
    "hundred",
    "soon",
    "tokens",
    "few",
    "shadow",
    "closed",
    "both",
    "sdk",
    "gone",
    "reload",
    "calm",
    "full",
)
OWN = """
[[teams]]
name = "pair"
limits = { requests = "5/d" }
[[keys]]
id = "one"
team = "pair"
sha256 = ["%s"]
limits = { requests = "3/d", parallel = 9 }
[[keys]]
id = "two"
team = "pair"
sha256 = ["%s"]
[[teams]]
name = "viewers"
[[keys]]
id = "seen"
team = "viewers"
sha256 = ["%s"]
limits = { parallel = 2 }
[[limits]]
name = "seen"
match = { team = "viewers", model = "demo-*" }
each = ["team"]
requests = "5/d"
[[limits]]
name = "by model"
match = { team = "viewers" }
each = ["model"]
requests = "10/d"
"""
DAY_NS = 86_400_000_000_000


LIMITS = """
[auth]
mode = "keys"
[[limits]]
name = "hundred"
match = { key = "hundred" }
requests = "100/min"
[[limits]]
name = "soon"
match = { key = "s[od]*" }
each = ["key"]
requests = "1/s"
[[limits]]
name = "tokens"
match = { key = "tokens" }
tokens = "100k/d"
[[limits]]
name = "full"
match = { key = "full" }
tokens = "40k/d"
reserve_output = "full"
[[limits]]
name = "few"
match = { key = "few" }
parallel = 3
[[limits]]
name = "gone"
match = { key = "gone" }
parallel = 2
[[limits]]
name = "shadow"
match = { key = "shadow" }
requests = "2/d"
shadow = true
[[limits]]
name = "reload"
match = { key = "reload" }
requests = "8/d"
[[limits]]
name = "calm"
match = { key = "calm" }
requests = "100/d"
[[limits]]
name = "closed"
match = { key = "closed" }
requests = "0/d"
suspend = true
[[limits]]
name = "both requests"
match = { key = "both" }
requests = "5/d"
[[limits]]
name = "both tokens"
match = { key = "both", model = "demo-*" }
tokens = "10/d"
""" + keys_toml(*IDS)
LIMITS += OWN % tuple(digest(key_of(id_)) for id_ in ("one", "two", "seen"))
FAMILIES = (
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_key_tokens_total",
    "nexus_key_refusals_total",
    "nexus_limit_refusals_total",
    "nexus_limit_shadow_refusals_total",
    "nexus_limit_overrun_tokens_total",
    "nexus_limit_returned_tokens_total",
    "nexus_limit_untracked_total",
    "nexus_limit_lock_misses_total",
)


@pytest.fixture(scope="module")
def demo(module_dir) -> Iterator[Demo]:
    header = "header=x-ratelimit-remaining-tokens: 7"
    options = {"models": ["demo-small"], "pace": 20, "fault": header}
    with Demo(module_dir, name="demo", **options) as demo:
        yield demo


@pytest.fixture(scope="module")
def long(module_dir) -> Iterator[Demo]:
    """A backend that does not tell how long its model's context is."""
    with Demo(module_dir, name="long", kind="llamacpp", models=["demo-long"], pace=0) as demo:
        yield demo


@pytest.fixture(scope="module", params=WAYS)
def gateway(request, tmp_path_factory, demo, long) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("limits")
    config = LIMITS + backend_toml(demo) + backend_toml(long).replace("vllm", "openai")
    with Gateway(directory, config, workers=4, environ=WAYS[request.param]) as gateway:
        yield gateway


def changes(before, after) -> dict[str, float]:
    return {
        f"{name} {' '.join(value for _, value in sorted(labels))}": change
        for (name, labels), change in moved(before, after, FAMILIES).items()
    }


def record_of(gateway, limit: Limit) -> int:
    """When the bucket of a limit is full again, in nanoseconds of the host's clock."""
    paths = list(Path(gateway.run_dir).rglob("limits.db"))
    if not paths:  # no request has had a limit yet
        return 0
    table = LimitTable(paths[0])
    [counter] = Limits([limit]).counters(None, "demo-small", "chat_completions")
    assert table.acquire()
    record = table._find(counter.digest)
    full_at = 0 if record is None else table.level(record)[0]
    table.release()
    table.close()
    return full_at


def test_a_gateway_counts_exactly_over_all_workers(gateway):
    """400 requests by 50 connections, of which 100 a minute may pass: a few more on a slow host."""
    before, seen = gateway.settled(), Counter()
    asked = ParsedRequest("hundred", "/v1/chat/completions", GOOD, key_of("hundred"))
    started = time.monotonic()
    run(gateway.port, [asked] * 400, concurrency=50, seen=lambda _, s, __: seen.update([s]))
    most = 100 + (time.monotonic() - started) * 100 / 60
    found = changes(before, gateway.settled())
    missed = int(found.get("nexus_limit_lock_misses_total ", 0))  # on a host that is too busy
    assert 100 <= seen[200] - missed <= most
    assert seen[200] + seen[429] == 400
    assert found["nexus_requests_total demo demo_small 200"] == seen[200]
    for refused in (
        "nexus_limit_refusals_total requests hundred",
        "nexus_key_refusals_total hundred requests none",
        "nexus_requests_total none demo_small 429",
        "nexus_errors_total rate_limited demo_small",
    ):
        assert found[refused] == seen[429]


def test_a_fresh_request_is_admitted_when_told_and_not_before(gateway):
    started = time.monotonic()
    while (reply := send(gateway, "hundred")).status == 200:  # if this test runs alone
        started = time.monotonic()
    wait_s = int(reply.headers["retry-after-ms"]) / 1000
    earliest, latest = started + wait_s, time.monotonic() + wait_s
    assert 0 < wait_s <= 0.6
    while True:
        started = time.monotonic()
        if send(gateway, "hundred").status == 200:
            break
        assert started <= latest
    assert time.monotonic() >= earliest


def test_a_client_is_told_when_to_come_again(gateway):
    assert send(gateway, "soon").status == 200
    refused = send(gateway, "soon")
    assert refused.status == 429
    error = json.loads(refused.content)["error"]
    assert (error["type"], error["param"], error["code"]) == (
        "requests",
        None,
        "rate_limit_exceeded",
    )
    assert error["message"].startswith(
        "Limit 'soon' of key soon on requests: 1 a second; 0 left, 1 asked. Try again in "
    )
    wait_ms = int(refused.headers["retry-after-ms"])
    assert 0 < wait_ms <= 1000
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["x-ratelimit-limit-requests"] == "1"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    time.sleep(wait_ms / 1000)
    assert send(gateway, "soon").status == 200


def test_the_real_client_waits_as_told(gateway):
    with openai.OpenAI(
        base_url=f"{gateway.base}/v1", api_key=key_of("sdk"), max_retries=2
    ) as client:
        for _ in range(2):
            assert client.chat.completions.create(**GOOD).choices[0].message.content
        with pytest.raises(openai.RateLimitError) as refused:
            client.with_options(max_retries=0, api_key=key_of("closed")).chat.completions.create(
                **GOOD
            )
        assert refused.value.type == "requests"
        assert refused.value.code == "rate_limit_exceeded"


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_charged_as_the_backend_reports_them(gateway, stream):
    limit = Limit(name="tokens", tokens="100k/d")
    unit = unit_ns(100_000, DAY_NS)
    start = record_of(gateway, limit)
    before, started = gateway.settled(), time.monotonic_ns()
    reply = send(gateway, "tokens", body=chat(stream=stream, max_tokens=30))
    found = changes(before, gateway.settled())
    assert reply.status == 200, reply
    used = sum(found[f"nexus_key_tokens_total tokens none {t}"] for t in ("prompt", "completion"))
    full_at = until(lambda: record_of(gateway, limit))
    base = full_at - int(used) * unit
    assert started <= base <= time.monotonic_ns() if not start else base == start
    reserved = 30 + max(1, len(json.dumps(GOOD["messages"])) // 4)
    returned = found.get("nexus_limit_returned_tokens_total tokens", 0)
    overrun = found.get("nexus_limit_overrun_tokens_total tokens", 0)
    assert reserved - returned + overrun == used
    assert reply.headers["x-ratelimit-limit-tokens"] == "100000"
    if not start:
        assert reply.headers["x-ratelimit-remaining-tokens"] == str(100_000 - reserved)


def test_as_many_tokens_are_reserved_as_a_response_can_have(gateway):
    prompt = max(1, len(json.dumps(GOOD["messages"])) // 4)

    def is_left(shown: str | int, tokens: int) -> bool:
        """Whether so many are left, or a minute's refill more."""
        return tokens <= int(shown) <= tokens + 28

    def settled(*served: Reply) -> int:
        """The tokens that are left once these requests have what they used."""
        left = 40_000 - sum(json.loads(one.content)["usage"]["total_tokens"] for one in served)

        def now() -> int:
            levels = own_limits(gateway, "full").items()
            return next(at["left"] for (name, _), at in levels if name == "full")

        until(lambda: is_left(now(), left))
        return left

    def shown(reply: Reply) -> str:
        return reply.headers["x-ratelimit-remaining-tokens"]

    stated = send(gateway, "full", body=chat(max_tokens=2000))
    assert shown(stated) == str(40_000 - prompt - 2000)
    left = settled(stated)
    capped = send(gateway, "full", body=chat(max_tokens=10**30))
    assert is_left(shown(capped), left - prompt - 32_768)
    several = send(gateway, "full", body=chat(max_tokens=9000, n=5))
    assert (several.status, several.code) == (429, "rate_limit_exceeded")
    left = settled(stated, capped)
    body = json.dumps({"model": "demo-small", "messages": GOOD["messages"]}).encode()
    unstated = send(gateway, "full", body=body)
    # 32,768 is the length of the model's context.
    assert is_left(shown(unstated), left - prompt - 32_768)
    body = body.replace(b"demo-small", b"demo-long")
    unknown = send(gateway, "full", body=body)
    assert (unknown.status, unknown.code) == (400, "max_tokens_required")
    assert send(gateway, "full", body=chat(model="demo-long", max_tokens=9)).status == 200


def test_a_backends_own_limits_are_shown_only_without_ours(gateway):
    assert send(gateway, "free").headers["x-ratelimit-remaining-tokens"] == "7"
    assert "x-ratelimit-remaining-tokens" not in send(gateway, "calm").headers


def test_what_is_refused_before_dispatch_costs_nothing(gateway):
    unknown = chat(model="no-such-model")
    assert [send(gateway, "both", body=unknown).status for _ in range(8)] == [404] * 8
    assert send(gateway, "both", body=b"{").status == 400
    first = send(gateway, "both")
    assert first.status == 200
    assert first.headers["x-ratelimit-remaining-requests"] == "4"
    second = send(gateway, "both")
    assert second.status == 429
    assert json.loads(second.content)["error"]["type"] == "tokens"
    assert second.headers["x-ratelimit-remaining-requests"] == "3"
    assert send(gateway, "both", body=unknown).headers["x-ratelimit-remaining-requests"] == "3"


def test_keys_and_teams_have_limits_of_their_own(gateway):
    before = gateway.settled()
    assert [send(gateway, "one").status for _ in range(4)] == [200] * 3 + [429]
    replies = [send(gateway, "two") for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 429]
    message = json.loads(replies[2].content)["error"]["message"]
    assert message.startswith("Limit '[[teams]]' of team pair on requests: 5 a day; 0 left")
    found = changes(before, gateway.settled())
    assert found["nexus_limit_refusals_total requests [[keys]]"] == 1
    assert found["nexus_limit_refusals_total requests [[teams]]"] == 1
    assert found["nexus_key_refusals_total one requests pair"] == 1
    assert found["nexus_key_refusals_total two requests pair"] == 1


def test_clients_see_their_limits_and_operators_those_that_are_used_up(gateway):
    unused = own_limits(gateway, "seen")
    assert unused["seen", "requests"] == {
        "name": "seen",
        "dimension": "requests",
        "subject": "team viewers",
        "model": "demo-*",
        "endpoint": "*",
        "rate": "5/d",
        "capacity": 5,
        "used": 0,
        "left": 5,
        "full_in_seconds": 0.0,
        "shadow": False,
    }
    assert unused["[[keys]]", "parallel"]["left"] == 2
    assert send(gateway, "seen").status == 200
    with closing(open_stream(gateway, "seen")) as client:
        assert client.recv(12) == b"HTTP/1.1 200"
        used = own_limits(gateway, "seen")
        assert used["seen", "requests"]["used"] == 2
        assert 0 < used["seen", "requests"]["full_in_seconds"] - 86_400 / 5 <= 86_400 / 5
        assert used["[[keys]]", "parallel"]["left"] == 1
        assert used["by model", "requests"]["subject"] == "model demo-small"
        assert used["by model", "requests"]["used"] == 2
        levels = gateway.scrape().series("nexus_limit_level", "limit", "subject", "dimension")
        assert levels["seen", "team viewers", "requests"] == 3 / 5
        assert levels["[[keys]]", "key seen", "parallel"] == 1 / 2
        assert levels["by model", "model demo-small", "requests"] == 8 / 10
        assert len(levels) <= 50
    for _ in range(3):
        until(lambda: send(gateway, "seen").status == 200)
    used_up = {"limit": "seen", "subject": "team viewers", "dimension": "requests", "left": 0}
    assert used_up in json.loads(nexus(gateway, "status", "--json"))["exhausted_limits"]
    assert "seen of team viewers on requests: 0% left" in nexus(gateway, "status")
    assert "seen of team viewers on requests: 0% left" in nexus(gateway, "doctor")


def nexus(gateway, *words: str) -> str:
    """The output of a command, whatever it exits with."""
    done = subprocess.run(
        [sys.executable, "-m", "nexus", *words, "-c", str(gateway.file)],
        capture_output=True, text=True, timeout=60, check=False, env=clean_environ(),
    )  # fmt: skip
    return done.stdout


def test_shadow_counts_and_refuses_nothing(gateway):
    before = gateway.settled()
    replies = [send(gateway, "shadow") for _ in range(5)]
    assert {reply.status for reply in replies} == {200}
    found = changes(before, gateway.settled())
    assert found["nexus_limit_shadow_refusals_total requests shadow"] == 3
    assert "nexus_limit_refusals_total requests shadow" not in found
    assert "nexus_key_refusals_total shadow requests none" not in found


def test_a_suspended_key_gets_nothing(gateway):
    refused = send(gateway, "closed")
    assert refused.status == 429
    assert refused.headers["retry-after"] == "3600"
    assert json.loads(refused.content)["error"]["message"] == (
        "Limit 'closed' on requests: nothing is admitted."
    )


def test_only_so_many_at_once_and_their_places_are_given_back(gateway):
    clients = [open_stream(gateway, "few") for _ in range(3)]
    assert [client.recv(12) for client in clients] == [b"HTTP/1.1 200"] * 3
    refused = send(gateway, "few")
    assert refused.status == 429
    assert json.loads(refused.content)["error"]["type"] == "parallel"
    with closing(open_stream(gateway, "few")) as another:
        assert another.recv(12) == b"HTTP/1.1 429"
    for client in clients:
        client.close()
    until(lambda: send(gateway, "few").status == 200)
    for _ in range(10):
        open_stream(gateway, "few").close()
    gateway.settled()
    clients = until(lambda: all_open(gateway, "few", 3))
    for client in clients:
        client.close()


def all_open(gateway, id_, count) -> list[socket.socket] | None:
    """As many streams at once, if all are admitted."""
    clients = [open_stream(gateway, id_) for _ in range(count)]
    if [client.recv(12) for client in clients] == [b"HTTP/1.1 200"] * count:
        return clients
    for client in clients:
        client.close()
    return None


def test_a_killed_worker_gives_its_places_back(gateway):
    clients = [open_stream(gateway, "gone") for _ in range(2)]
    assert [client.recv(12) for client in clients] == [b"HTTP/1.1 200"] * 2
    assert send(gateway, "gone").status == 429
    for pid in gateway.worker_pids():
        os.kill(pid, signal.SIGKILL)

    def served() -> bool:
        try:
            return send(gateway, "gone").status == 200
        except OSError:
            return False

    until(served)
    for client in clients:
        client.close()
    for client in until(lambda: all_open(gateway, "gone", 2)):
        client.close()


def test_while_the_levels_are_locked_rates_are_not_held_and_the_rest_is_refused(gateway):
    """The lock's holder was stopped, say. What could not be settled is settled after it."""
    assert send(gateway, "few").status == 200
    assert send(gateway, "tokens").status == 200
    gateway.settled()
    limit = Limit(name="tokens", tokens="100k/d")
    level, before = record_of(gateway, limit), gateway.settled()
    [path] = Path(gateway.run_dir).rglob("limits.db")
    holder = LimitTable(path)
    assert until(holder.acquire)
    refused, admitted = send(gateway, "few"), send(gateway, "tokens")
    found = changes(before, gateway.settled())
    holder.release()
    holder.close()
    assert (refused.status, refused.code) == (503, "limits_unavailable")
    assert refused.headers["retry-after"] == "1"
    assert admitted.status == 200
    assert "x-ratelimit-limit-tokens" not in admitted.headers
    assert found["nexus_limit_lock_misses_total "] == 2
    assert found["nexus_errors_total other demo_small"] == 1
    assert record_of(gateway, limit) == level
    assert until(lambda: send(gateway, "few").status == 200)


def test_a_reload_keeps_what_was_used(gateway):
    for _ in range(2):
        assert send(gateway, "reload").status == 200
    text = gateway.file.read_text()
    gateway.file.write_text(text.replace('requests = "8/d"', 'requests = "4/d"'))
    done = subprocess.run(
        [sys.executable, "-m", "nexus", "reload", "-c", str(gateway.file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reply = send(gateway, "reload")
    assert reply.headers["x-ratelimit-limit-requests"] == "4"
    assert reply.headers["x-ratelimit-remaining-requests"] == "1"
    assert send(gateway, "reload").status == 200
    assert send(gateway, "reload").status == 429


def test_an_anthropic_client_is_told_in_its_own_form(gateway):
    asked = {"model": "demo-small", "max_tokens": 2, "messages": GOOD["messages"]}

    def client(id_: str, retries: int) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=gateway.base, api_key=key_of(id_), max_retries=retries)

    with client("calm", 0) as calm, client("closed", 0) as closed, client("sdk", 2) as sdk:
        raw = calm.messages.with_raw_response.create(**asked)
        assert raw.headers["anthropic-ratelimit-requests-limit"] == "100"
        reset = datetime.fromisoformat(raw.headers["anthropic-ratelimit-requests-reset"])
        remaining = 100 - int(raw.headers["anthropic-ratelimit-requests-remaining"])
        assert 0 < (reset - datetime.now(UTC)).total_seconds() <= remaining * 864 + 1
        assert not any(name.startswith("x-ratelimit") for name in raw.headers)
        with pytest.raises(anthropic.RateLimitError) as refused:
            closed.messages.create(**asked)
        for _ in range(2):  # it waits as long as the response says
            assert sdk.messages.create(**asked).content
    body = refused.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "rate_limit_error")
    assert body["request_id"] == refused.value.response.headers["request-id"]
    headers = refused.value.response.headers
    assert headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert "x-ratelimit-remaining-requests" not in headers
