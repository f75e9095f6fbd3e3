"""Conversations come back to the backend that has their prompt, over all workers and both servers;
overload, failure and return of a backend move no more of them than needed."""

import hashlib
import http.client
import json
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

SETTINGS = """
[circuit_breaker]
slow_start_seconds = 0.2
[queue]
enabled = false
"""
CLIENTS = 12


def demo(directory, name, **options):
    return Demo(
        directory, name=name, models=["m"], pace=0, length=3,
        **{"cache-blocks": 1000, "prefill-ms": 0, "slots": 500, **options},
    )  # fmt: skip


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demos")
    with demo(directory, "a") as a, demo(directory, "b") as b, demo(directory, "c") as c:
        yield {"a": a, "b": b, "c": c}


@pytest.fixture(scope="module")
def gateway(demos, tmp_path_factory):
    with Gateway(
        tmp_path_factory.mktemp("affinity"),
        backend_toml(*demos.values()) + SETTINGS,
        workers=4,
        affinity=True,
    ) as gateway:
        yield gateway


def ask(gateway, messages, *, path="/v1/chat/completions", headers=None, **dashed):
    """The response's headers, and its usage; `path` with a query goes through Flask."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    body = json.dumps({"model": "m", "messages": messages})
    given = {name.replace("_", "-"): value for name, value in dashed.items()} | (headers or {})
    connection.request("POST", path, body, {"content-type": "application/json", **given})
    response = connection.getresponse()
    content = json.loads(response.read())
    connection.close()
    assert response.status == 200, content
    return dict(response.getheaders()), content["usage"]


def served(demos):
    return Counter(
        {name: one.tally()["requests"]["/v1/chat/completions"] for name, one in demos.items()}
    )


def ask_explain(gateway, messages):
    """The session of a prompt, as `nexus route explain` shows it."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "nexus", "route", "explain", "m"),
            *("-c", str(gateway.file), "--json", "--body", "-"),
        ],
        input=json.dumps({"model": "m", "messages": messages}),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)["affinity"]


def say(text):
    return [{"role": "user", "content": text}]


def home(gateway, name):
    headers, _ = ask(gateway, say("Hi"), x_nexus_affinity=name)
    return headers["x-nexus-backend"]


def chats(gateway, number, turns, **headers):
    """Chats that go on side by side; gives the cached share of all prompt tokens, by the usage of
    the responses."""
    tokens = Counter()
    talks = [
        [{"role": "user", "content": f"This is chat {n}. " + "It has a long story. " * 300}]
        for n in range(number)
    ]

    def turn(messages):
        _, usage = ask(gateway, messages, **headers)
        tokens["prompt"] += usage["prompt_tokens"]
        tokens["cached"] += usage["prompt_tokens_details"]["cached_tokens"]
        messages += [
            {"role": "assistant", "content": f"Answer {len(messages)}."},
            {"role": "user", "content": f"Question {len(messages)}. " * 12},
        ]

    with ThreadPoolExecutor(4) as pool:
        for _ in range(turns):
            Random(len(talks[0])).shuffle(talks)
            list(pool.map(turn, talks))
    return tokens["cached"] / tokens["prompt"]


def test_chats_find_their_prompts(demos, gateway, tmp_path):
    """60 chats of 10 turns, known by how they start; the same through `round_robin`."""
    before = gateway.settled()
    with_affinity = chats(gateway, 60, 10)
    after = gateway.settled()
    counted = Counter(
        {
            labels: value - before.series("nexus_affinity_total", "source", "result").get(labels, 0)
            for labels, value in after.series("nexus_affinity_total", "source", "result").items()
        }
    )
    assert counted["prefix", "hit"] + counted["prefix", "spill"] == counted.total() == 600
    with Gateway(
        tmp_path,
        backend_toml(*demos.values()) + SETTINGS + '[routing]\nstrategy = "round_robin"\n',
        affinity=True,
    ) as other:
        without = chats(other, 60, 10)
        assert not other.scrape().series("nexus_affinity_total", "source", "result")
    print(f"cached: {with_affinity:.2f} with affinity, {without:.2f} with round_robin; {counted}")
    assert with_affinity >= 0.85
    assert without < with_affinity - 0.2


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat/completions?q=1"])
def test_header_and_count(gateway, path):
    before = gateway.settled()
    first, _ = ask(gateway, say("Hi"), path=path, session_id="s-1")
    again, _ = ask(gateway, say("Something else"), path=path, session_id="s-1")
    assert first["x-nexus-affinity"] == again["x-nexus-affinity"] == "hit"
    assert first["x-nexus-backend"] == again["x-nexus-backend"]
    off, _ = ask(gateway, say("Hi"), path=path, session_id="s-1", x_nexus_affinity="off")
    assert off["x-nexus-affinity"] == "none"
    named, _ = ask(gateway, say("Hi"), path=path, session_id="s-2", x_nexus_affinity="s-1")
    assert named["x-nexus-backend"] == first["x-nexus-backend"]
    after = gateway.settled()
    moved = {
        labels: value - before.value("nexus_affinity_total", source=labels[0], result=labels[1])
        for labels, value in after.series("nexus_affinity_total", "source", "result").items()
    }
    assert {labels: value for labels, value in moved.items() if value} == {("header", "hit"): 3}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat/completions?q=1"])
def test_a_name_with_underscores_names_the_session(gateway, demos, path):
    """Codex sent `session_id`. Backends get no such header: CGI has one name for `x_a` and
    `x-a`."""
    named = {name: {"session_id": name, "x_real_ip": "1.2.3.4"} for name in "pqrstu"}
    for name, given in named.items():
        reply, _ = ask(gateway, say("Hi"), path=path, headers=given)
        assert reply["x-nexus-affinity"] == "hit"
        assert reply["x-nexus-backend"] == home(gateway, name)
    for demo in demos.values():
        assert not {"session_id", "x_real_ip", "x-real-ip"} & demo.last()["headers"].keys()


def test_keys_have_sessions_of_their_own(demos, tmp_path):
    keys = {name: f"nx-{name * 20}" for name in "ab"}
    config = backend_toml(*demos.values()) + SETTINGS + '[auth]\nmode = "keys"\n'
    for name, key in keys.items():
        digest = hashlib.sha256(key.encode()).hexdigest()
        config += f'[[keys]]\nid = "{name}"\nsha256 = ["{digest}"]\n'
    with Gateway(tmp_path, config, workers=1, affinity=True) as gateway:
        homes = {
            name: [
                ask(gateway, say("Hi"), authorization=f"Bearer {key}", session_id=f"s-{n}")[0][
                    "x-nexus-backend"
                ]
                for n in (*range(12), *range(12))
            ]
            for name, key in keys.items()
        }
    assert all(found[:12] == found[12:] for found in homes.values())
    assert homes["a"] != homes["b"]


def test_one_session_at_100_at_once_is_spread(demos, gateway):
    """No backend works on more than the load guard allows. Workers that choose in the same instant
    may each exceed it by one."""
    before = served(demos)
    headers = {"x_nexus_affinity": "hot", "x_demo_fault": "delay=1.5"}
    for one in demos.values():
        one.fault("delay=1.5")
    try:
        with ThreadPoolExecutor(100) as pool:
            found = list(pool.map(lambda _: ask(gateway, say("Hi"), **headers)[0], range(100)))
    finally:
        for one in demos.values():
            one.fault("")
    loads = served(demos)
    loads.subtract(before)
    assert loads.total() == 100
    assert max(loads.values()) <= max(1.25 * 100 / 3, min(loads.values()) + 2) + 3, loads
    results = Counter(headers["x-nexus-affinity"] for headers in found)
    assert results.keys() == {"hit", "spill"}


def test_where_a_prompt_was_computed_is_known_to_all_workers(demos, gateway):
    """While its home is busy, a new prompt goes elsewhere, and stays there."""
    prompt = say("This is a long question that nobody has asked before. " * 60)
    order = ask_explain(gateway, prompt)["order"]
    pinned = next(name for n in range(99) if home(gateway, name := f"pin-{n}") == order[0])
    demos[order[0]].fault("delay=1")
    try:
        with ThreadPoolExecutor(3) as pool:
            waiting = [
                pool.submit(ask, gateway, say("Hi"), x_nexus_affinity=pinned) for _ in range(3)
            ]
            until(lambda: demos[order[0]].tally()["open"] == 3)
            headers, _ = ask(gateway, prompt)
            for one in waiting:
                one.result()
    finally:
        demos[order[0]].fault("")
    other = headers["x-nexus-backend"]
    assert other != order[0]
    assert ask_explain(gateway, prompt)["order"][0] == other
    for _ in range(8):
        headers, usage = ask(gateway, prompt)
        assert headers["x-nexus-backend"] == other
        assert headers["x-nexus-affinity"] == "hit"
        assert usage["prompt_tokens_details"]["cached_tokens"] > 600


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat/completions?q=1"])
def test_sessions_with_ids_share_a_long_start(gateway, path):
    """Each worker finds it where one session had it computed, whatever the session's own order."""
    before = gateway.settled()
    rules = {"role": "system", "content": f"The rules by {path}. " + "Be kind to everybody. " * 900}
    found = [
        ask(gateway, [rules, *say(f"Question {n}")], path=path, session_id=f"{path} {n}")
        for n in range(24)
    ]
    assert len({headers["x-nexus-backend"] for headers, _ in found}) == 1
    assert {headers["x-nexus-affinity"] for headers, _ in found} == {"hit"}
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for _, usage in found]
    assert cached[0] == 0
    assert min(cached[1:]) > 4500
    after = gateway.settled()
    labels = {"source": "header", "result": "hit"}
    assert (
        after.value("nexus_affinity_total", **labels)
        == before.value("nexus_affinity_total", **labels) + 24
    )


def test_a_slow_backend_gets_fewer_requests(demos, gateway):
    sessions = [f"slow-{n}" for n in range(30)]
    own = sum(home(gateway, name) == "a" for name in sessions)
    assert own
    demos["a"].fault("delay=0.2")
    for name in ("b", "c"):
        demos[name].fault("delay=0.04")
    most, done = 0, threading.Event()

    def observe():
        nonlocal most
        while not done.wait(0.02):
            most = max(most, demos["a"].tally()["open"])

    observer = threading.Thread(target=observe)
    observer.start()
    try:
        with ThreadPoolExecutor(CLIENTS) as pool:
            served = Counter(
                headers["x-nexus-backend"]
                for headers, _ in pool.map(
                    lambda n: ask(gateway, say("Hi"), x_nexus_affinity=sessions[n % 30]), range(300)
                )
            )
    finally:
        done.set()
        observer.join()
        for one in demos.values():
            one.fault("")
    assert most <= 1.25 * CLIENTS / 3 + 3, "its queue is bounded"
    assert served["a"] < 300 * own / 30, "others take over"


def test_a_failure_goes_to_the_next_in_order_and_comes_back(demos, gateway):
    first = home(gateway, "retried")
    demos[first].fault("status=503")
    try:
        headers, _ = ask(gateway, say("Hi"), x_nexus_affinity="retried")
        second = headers["x-nexus-backend"]
        assert second != first
        assert headers["x-nexus-affinity"] == "spill"
    finally:
        demos[first].fault("")
    until(lambda: home(gateway, "retried") == first)


def test_a_lost_backend_moves_its_own_sessions_only(demos, gateway, tmp_path):
    names = [f"lost-{n}" for n in range(60)]
    before = {name: home(gateway, name) for name in names}
    lost = demos["c"]
    port = lost.port
    lost.__exit__(None, None, None)
    until(lambda: gateway.scrape().value("nexus_backend_up", backend="c") == 0)
    without = {name: home(gateway, name) for name in names}
    moved = {name for name in names if without[name] != before[name]}
    assert moved == {name for name in names if before[name] == "c"}
    with demo(tmp_path, "c", port=port) as returned:
        demos["c"] = returned
        until(lambda: gateway.scrape().value("nexus_backend_up", backend="c") == 1)
        until(lambda: {name: home(gateway, name) for name in names} == before)
