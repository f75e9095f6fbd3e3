"""Budgets in a running gateway: over the fast path and through Flask."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import openai
import pytest

from nexus.access.keys import digest
from tests.server.asking import GOOD, ask
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}
IDS = (
    "ten", "tokens", "soft", "watch", "empty", "cloud", "killed", "both", "small", "long", "paid",
    "model", "limited",
)  # fmt: skip
NANO = 10**9


def key_of(id_: str) -> str:
    return f"sk-nx-of-a-test-of-budgets-{id_}"


def budget(name: str, usd: str, **more: str) -> str:
    lines = "".join(f"{key} = {value}\n" for key, value in more.items())
    return f'[[budgets]]\nname = "{name}"\nusd = "{usd}"\nmatch = {{ key = "{name}" }}\n{lines}'


CONFIG = (
    """
[auth]
mode = "keys"
[routing.fallbacks]
demo-free = ["demo-paid"]
demo-gone = ["demo-paid"]
demo-out = ["demo-paid"]
[[costs.price]]
model = "demo-paid"
per_request = "0.1"
[[costs.price]]
model = "demo-tokens"
input = "1000"
output = "2000"
[[costs.price]]
model = "demo-out"
output = "2000"
[[costs.price]]
model = "demo-free"
[[budgets]]
name = "everything"
usd = "1000000"
per = "total"
mode = "watch"
unpriced = "free"
"""
    + budget("ten", "1")
    + budget("tokens", "100", reserve_output="50")
    + budget("soft", "0.15", mode='"soft"', per='"day"', timezone='"Europe/Berlin"')
    + budget("watch", "0.05", mode='"watch"')
    + budget("empty", "0")
    + budget("limited", "0")
    + budget("cloud", "1", per='"total"')
    + budget("killed", "1", reserve_output="100")
    + budget("both", "100")
    + budget("small", "0.002", reserve_output="1")
    + budget("paid", "0.2").replace("key = ", 'model = "*-paid", key = ')
    + budget("model", "100", each='["model"]', reserve_output="1")
    + budget("long", "100", each='["key", "model"]')
    + '[[limits]]\nname = "both"\nmatch = { key = "both" }\nrequests = "2/d"\n'
    + '[[limits]]\nname = "limited"\nmatch = { key = "limited" }\nrequests = "100/d"\n'
    + "".join(f'[[keys]]\nid = "{id_}"\nsha256 = ["{digest(key_of(id_))}"]\n' for id_ in IDS)
)
FAMILIES = (
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_budget_refusals_total",
    "nexus_budget_overrun_usd_total",
    "nexus_key_refusals_total",
    "nexus_key_cost_usd_total",
    "nexus_unpriced_requests_total",
)


@pytest.fixture(scope="module")
def demo(module_dir) -> Iterator[Demo]:
    models = ["demo-paid", "demo-tokens", "demo-free", "demo-out", "demo-unpriced"]
    with Demo(module_dir, name="demo", kind="llamacpp", models=models, pace=20) as demo:
        yield demo


@pytest.fixture(scope="module")
def local(module_dir) -> Iterator[Demo]:
    with Demo(module_dir, name="local", models=["demo-local"], pace=0) as demo:
        yield demo


@pytest.fixture(scope="module", params=WAYS)
def gateway(request, tmp_path_factory, demo, local) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("budgets")
    config = CONFIG + backend_toml(demo).replace("vllm", "openai") + backend_toml(local)
    environ = {**WAYS[request.param], "XDG_STATE_HOME": str(directory / "state")}
    with Gateway(directory, config, workers=4, environ=environ) as gateway:
        yield gateway


def chat(model: str = "demo-paid", **more) -> bytes:
    return json.dumps({**GOOD, "model": model, **more}).encode()


def send(gateway, id_, *, fault: str = "", **more):
    headers = {"content-type": "application/json", "x-demo-fault": fault}
    return ask(gateway, authorization=f"Bearer {key_of(id_)}", headers=headers, **more)


def changes(before, after) -> dict[str, int]:
    return {
        f"{name} {' '.join(value for _, value in sorted(labels))}": round(
            change * (NANO if "usd" in name else 1)
        )
        for (name, labels), change in moved(before, after, FAMILIES).items()
    }


def account(gateway, name: str, subject: str = "") -> tuple[int, int]:
    """(spent, held) in nano-dollars."""
    found = gateway.scrape()
    return tuple(
        round(found.value(f"nexus_budget_{what}_usd", budget=name, subject=subject) * NANO)
        for what in ("spent", "held")
    )


def test_a_budget_for_ten_admits_exactly_ten_over_all_workers(gateway):
    before, seen, scraped = gateway.settled(), Counter(), []

    def several() -> None:
        for _ in range(5):
            reply = send(gateway, "ten", body=chat())
            seen[reply.code if reply.status == 429 else reply.status] += 1

    threads = [threading.Thread(target=several) for _ in range(10)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        scraped.append(account(gateway, "ten")[0])
    for thread in threads:
        thread.join()
    found = changes(before, gateway.settled())
    assert seen[200] == 10
    assert set(seen) <= {200, "insufficient_quota", "budget_in_flight"}
    assert max(scraped) <= NANO
    assert account(gateway, "ten") == (NANO, 0)
    refused = 40
    assert found["nexus_requests_total none demo_paid 429"] == refused
    assert found["nexus_errors_total budget_exceeded demo_paid"] == refused
    assert found["nexus_key_refusals_total ten budget none"] == refused
    for reason, code in (("spent", "insufficient_quota"), ("in_flight", "budget_in_flight")):
        assert found.get(f"nexus_budget_refusals_total ten {reason}", 0) == seen[code]
    assert found["nexus_key_cost_usd_total ten none"] == NANO
    assert "nexus_budget_overrun_usd_total ten" not in found


def test_a_refusal_says_what_is_spent_and_when_it_resets(gateway):
    refused = send(gateway, "empty", body=chat())
    assert refused.status == 429
    error = json.loads(refused.content)["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    resets = refused.headers["x-nexus-budget-resets"]
    assert error["message"] == (
        "Budget 'empty': 0 USD a month; 0 spent, 0 held for requests in progress, 0.1 asked. "
        f"It resets at {resets}."
    )
    assert resets.endswith("-01T00:00:00Z")
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    in_anthropics_form = send(gateway, "empty", body=chat(), target="/v1/messages")
    assert json.loads(in_anthropics_form.content)["error"]["type"] == "rate_limit_error"


def test_the_real_client_raises_at_once(gateway):
    with openai.OpenAI(
        base_url=f"{gateway.base}/v1", api_key=key_of("empty"), max_retries=5
    ) as client:
        before = gateway.settled()
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(**{**GOOD, "model": "demo-paid"})
        assert refused.value.code == "insufficient_quota"
        assert (
            changes(before, gateway.settled())["nexus_errors_total budget_exceeded demo_paid"] == 1
        )


@pytest.mark.parametrize("fault", ["", "no_usage", "break_after=3", "leave"])
def test_streams_spend_what_came(gateway, fault):
    before, (spent, _) = gateway.settled(), account(gateway, "tokens")
    body = chat("demo-tokens", stream=True, max_tokens=12)
    if fault == "leave":
        with closing(open_stream(gateway, "tokens", chat("demo-tokens", stream=True))) as client:
            client.recv(2000)
            assert account(gateway, "tokens")[1] > 0
    else:
        assert send(gateway, "tokens", fault=fault, body=body).status == 200
    found = changes(before, gateway.settled())
    after, held = until(lambda: (now := account(gateway, "tokens"))[1] == 0 and now)
    assert held == 0
    assert after - spent == found["nexus_key_cost_usd_total tokens none"] > 0


def test_more_than_was_held_is_counted_as_overrun(gateway):
    """One token is held, and twenty are reported."""
    before = gateway.settled()
    reply = send(gateway, "small", body=chat("demo-out", max_tokens=20))
    assert json.loads(reply.content)["usage"]["completion_tokens"] == 20
    found = changes(before, gateway.settled())
    assert found["nexus_budget_overrun_usd_total small"] == 19 * 2_000_000
    assert account(gateway, "small") == (20 * 2_000_000, 0)
    assert send(gateway, "small", body=chat("demo-out", max_tokens=20)).status == 429


def test_each_model_may_have_a_budget_of_its_own(gateway):
    for model in ("demo-paid", "demo-tokens"):
        assert send(gateway, "long", body=chat(model)).status == 200
    gateway.settled()
    assert account(gateway, "long", "key long, model demo-paid") == (100_000_000, 0)
    assert account(gateway, "long", "key long, model demo-tokens")[0] > 0


def test_a_whole_response_without_usage_spends_what_was_held(gateway):
    (spent, _), body = account(gateway, "tokens"), chat("demo-tokens", max_tokens=10)
    assert send(gateway, "tokens", fault="no_usage", body=body).status == 200
    gateway.settled()
    tokens = -(-len(body) // 2) + 16
    assert account(gateway, "tokens") == (spent + (tokens * 1000 + 10 * 2000) * 1000, 0)


def test_a_soft_budget_refuses_once_it_is_spent(gateway):
    for status in (200, 200, 429):
        assert send(gateway, "soft", body=chat()).status == status
        gateway.settled()
    assert account(gateway, "soft") == (200_000_000, 0)


def test_a_watched_budget_refuses_nothing(gateway):
    assert [send(gateway, "watch", body=chat()).status for _ in range(3)] == [200] * 3
    gateway.settled()
    assert account(gateway, "watch") == (300_000_000, 0)


def test_a_free_model_is_served_by_an_empty_budget_and_its_paid_fallback_is_not(gateway, demo):
    assert send(gateway, "empty", body=chat("demo-free")).status == 200
    refused = send(gateway, "empty", body=chat("demo-gone"))
    assert (refused.status, refused.code) == (404, "fallback_exhausted")
    failed = send(gateway, "empty", fault="status=500", body=chat("demo-free"))
    assert failed.status == 502
    assert account(gateway, "empty") == (0, 0)
    paid = send(gateway, "both", body=chat("demo-gone"))
    assert paid.headers["x-nexus-fallback-model"] == "demo-paid"
    gateway.settled()
    assert account(gateway, "both") == (100_000_000, 0)


def test_a_fallback_is_held_to_the_budgets_of_its_model(gateway):
    """Whether the requested model has budgets of its own or not."""
    replies = [send(gateway, "paid", body=chat("demo-gone")) for _ in range(2)]
    assert [reply.headers["x-nexus-fallback-model"] for reply in replies] == ["demo-paid"] * 2
    gateway.settled()
    assert account(gateway, "paid") == (200_000_000, 0)
    refused = send(gateway, "paid", body=chat("demo-gone"))
    assert (refused.status, refused.code) == (404, "fallback_exhausted")
    assert send(gateway, "paid", body=chat("demo-free")).status == 200
    assert account(gateway, "paid") == (200_000_000, 0)


def test_only_the_budget_of_the_model_that_serves_is_charged(gateway):
    send(gateway, "model", fault="status=500", body=chat("demo-out"))
    served = send(gateway, "model", body=chat("demo-gone"))
    assert served.headers["x-nexus-fallback-model"] == "demo-paid"
    gateway.settled()
    assert account(gateway, "model", "model demo-paid") == (100_000_000, 0)
    assert account(gateway, "model", "model demo-out") == (0, 0)
    assert account(gateway, "model", "model demo-gone") == (0, 0)


def test_a_model_without_a_price_is_refused_and_a_local_one_is_free(gateway):
    before = gateway.settled()
    refused = send(gateway, "cloud", body=chat("demo-unpriced"))
    assert (refused.status, refused.code) == (403, "model_unpriced")
    assert send(gateway, "cloud", body=chat("demo-local")).headers["x-nexus-cost-usd"] == "0"
    found = changes(before, gateway.settled())
    assert found["nexus_budget_refusals_total cloud unpriced"] == 1
    assert found["nexus_errors_total forbidden demo_unpriced"] == 1
    assert "nexus_unpriced_requests_total local demo_local" not in found
    assert account(gateway, "cloud") == (0, 0)


def test_without_a_known_length_the_request_must_state_one(gateway):
    body = json.dumps({"model": "demo-tokens", "messages": GOOD["messages"]}).encode()
    refused = send(gateway, "long", body=body)
    assert (refused.status, refused.code) == (400, "max_tokens_required")
    assert send(gateway, "tokens", body=chat("demo-tokens", max_tokens=5)).status == 200


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/chat/completions", "x-ratelimit-{}-requests"),
        ("/v1/messages", "anthropic-ratelimit-requests-{}"),
    ],
)
def test_a_refusal_by_a_budget_shows_the_limits_and_uses_nothing_of_them(gateway, path, name):
    shown = set()
    for _ in range(3):
        refused = send(gateway, "limited", target=path, body=chat())
        assert refused.code == "insufficient_quota"
        shown.add(tuple(refused.headers[name.format(what)] for what in ("limit", "remaining")))
    assert shown == {("100", "99")}


def test_a_refusal_by_a_limit_holds_nothing(gateway):
    while send(gateway, "both", body=chat()).status == 200:
        pass
    gateway.settled()
    spent, held = account(gateway, "both")
    assert held == 0
    assert send(gateway, "both", body=chat()).code == "rate_limit_exceeded"
    assert account(gateway, "both") == (spent, 0)


def open_stream(gateway, id_, body: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", gateway.port), timeout=20)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key_of(id_)}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    client.sendall(head.encode() + body)
    return client


def test_what_a_killed_worker_held_is_spent(gateway):
    body = chat("demo-tokens", stream=True, max_tokens=100)
    with closing(open_stream(gateway, "killed", body)) as client:
        assert client.recv(12) == b"HTTP/1.1 200"
        _, held = account(gateway, "killed")
        assert held > 0
        for pid in gateway.worker_pids():
            os.kill(pid, signal.SIGKILL)
        until(lambda: answers(gateway) and account(gateway, "killed") == (held, 0))


def answers(gateway) -> bool:
    try:
        return bool(gateway.scrape().samples)
    except OSError:
        return False


def test_clients_and_operators_see_how_budgets_stand(gateway):
    reply = send(gateway, "watch", method="GET", target="/v1/key", body=None)
    [everything, watch] = sorted(
        json.loads(reply.content)["budgets"], key=lambda one: one["budget"]
    )
    assert watch["budget"] == "watch"
    assert (watch["limit_usd"], watch["spent_usd"], watch["left_usd"]) == ("0.05", "0.3", "0")
    assert everything["resets"] is None


def reload(gateway, text: str) -> str:
    gateway.file.write_text(text)
    command = [sys.executable, "-m", "nexus", "reload", "-c", str(gateway.file)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return run.stdout + run.stderr


def test_a_reload_keeps_what_was_spent_under_the_same_name(gateway):
    text, (spent, _) = gateway.file.read_text(), account(gateway, "watch")
    assert "starts with nothing spent" not in reload(gateway, text.replace('"0.05"', '"0.5"'))
    assert account(gateway, "watch") == (spent, 0)
    assert gateway.scrape().value("nexus_budget_limit_usd", budget="watch", subject="") == 0.5
    told = reload(gateway, text.replace('name = "watch"', 'name = "seen"'))
    assert "[[budgets]] seen: starts with nothing spent" in told
    assert account(gateway, "seen") == (0, 0)
    reload(gateway, text)
    assert account(gateway, "watch") == (spent, 0)
