"""The cost of requests in a running gateway: over the fast path and through Flask."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing

import jsonschema
import pytest
import requests

from nexus.access.keys import digest
from nexus.config.loading import load
from tests.cli.schemas import SCHEMAS
from tests.server.asking import GOOD, ask
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}
KEYS = {id_: f"sk-nx-of-a-test-of-costs-{id_}" for id_ in ("a", "b")}
PRICES = """
version = "2026-11-01"
[[price]]
backend = "good"
model = "demo-small"
input = "1.23"
output = "4.567891"
[[price]]
model = "demo-image"
per_image = "0.04"
[[price]]
backend = "bad"
model = "demo-small"
input = "900"
output = "900"
per_second = "0.5"
"""
CONFIG = """
[auth]
mode = "optional"
[costs]
prices = "prices.toml"
[[budgets]]
name = "edits"
match = { endpoint = "image_edits" }
usd = "0.07"
""" + "".join(f'[[keys]]\nid = "{id_}"\nsha256 = ["{digest(key)}"]\n' for id_, key in KEYS.items())
FAMILIES = (
    "nexus_cost_usd_total",
    "nexus_key_cost_usd_total",
    "nexus_unpriced_requests_total",
    "nexus_tokens_total_sum",
)


@pytest.fixture(scope="module")
def demo(module_dir) -> Iterator[Demo]:
    with Demo(
        module_dir, name="good", models=["demo-small", "demo-free", "demo-image"], pace=0
    ) as demo:
        yield demo


@pytest.fixture(scope="module")
def bad(module_dir) -> Iterator[Demo]:
    options = {"models": ["demo-small", "demo-cloud"], "pace": 0}
    with Demo(module_dir, name="bad", **options) as demo:
        yield demo


@pytest.fixture(scope="module", params=WAYS)
def gateway(request, tmp_path_factory, demo, bad) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("costs")
    (directory / "prices.toml").write_text(PRICES)
    config = CONFIG + backend_toml(demo) + backend_toml(bad, priority=90).replace("vllm", "openai")
    environ = {**WAYS[request.param], "XDG_STATE_HOME": str(directory / "state")}
    with Gateway(directory, config, workers=2, environ=environ) as gateway:
        yield gateway


def chat(**more) -> bytes:
    return json.dumps({**GOOD, **more}).encode()


def send(gateway, key="a", **more):
    return ask(gateway, authorization=f"Bearer {KEYS[key]}", **more)


def changes(before, after) -> dict[str, int]:
    """What changed, in nano-dollars for amounts of money."""
    return {
        f"{name} {' '.join(value for _, value in sorted(labels))}": round(
            change * (10**9 if "usd" in name else 1)
        )
        for (name, labels), change in moved(before, after, FAMILIES).items()
    }


def nano(prompt: int, completion: int) -> tuple[int, int]:
    """The parts of the cost at the backend `good`: its input, and the rest."""
    input_, both = prompt * 1_230_000, prompt * 1_230_000 + completion * 4_567_891
    first = (input_ + 500) // 1000
    return first, (both + 500) // 1000 - first


def test_a_response_says_what_it_cost(gateway):
    before, lines = gateway.settled(), len(gateway.lines("request"))
    reply = send(gateway, body=chat(max_tokens=30))
    usage = json.loads(reply.content)["usage"]
    input_, output = nano(usage["prompt_tokens"], usage["completion_tokens"])
    assert reply.headers["x-nexus-cost-usd"] == f"{(input_ + output) / 1e9:.9f}".rstrip("0")
    found = changes(before, gateway.settled())
    assert found["nexus_cost_usd_total good demo_small delivered input"] == input_
    assert found["nexus_cost_usd_total good demo_small delivered output"] == output
    assert found["nexus_key_cost_usd_total a none"] == input_ + output
    line = gateway.request_line(lines)
    assert line["cost_usd"] == reply.headers["x-nexus-cost-usd"]


@pytest.mark.parametrize("fault", ["", "no_usage", "break_after=4"])
def test_a_stream_costs_what_came(gateway, fault):
    before = gateway.settled()
    more = {"x-demo-fault": fault} if fault else {}
    headers = {"content-type": "application/json", **more}
    reply = send(gateway, body=chat(stream=True, max_tokens=20), headers=headers)
    assert reply.status == 200
    assert "x-nexus-cost-usd" not in reply.headers
    found = changes(before, gateway.settled())
    cost = "nexus_cost_usd_total good demo_small delivered"
    if fault:
        prompt = max(1, len(json.dumps(GOOD["messages"])) // 4)
        events = reply.content.count(b'"content":')
        input_ = nano(prompt, 0)[0]
        assert found[f"{cost} input"] == input_
        assert 0 < found[f"{cost} output"] <= nano(prompt, events)[1] + 1
    else:
        prompt, completion = (
            found[f"nexus_tokens_total_sum good demo_small {kind}"]
            for kind in ("prompt", "completion")
        )
        assert (found[f"{cost} input"], found[f"{cost} output"]) == nano(prompt, completion)
    assert found["nexus_key_cost_usd_total a none"] == sum(
        found[f"{cost} {kind}"] for kind in ("input", "output")
    )


def test_a_model_without_a_price_is_counted(gateway):
    before = gateway.settled()
    reply = send(gateway, body=chat(model="demo-cloud"))
    assert reply.status == 200
    assert "x-nexus-cost-usd" not in reply.headers
    found = changes(before, gateway.settled())
    assert found["nexus_unpriced_requests_total bad demo_cloud"] == 1
    assert not [name for name in found if "usd" in name]


def test_images_cost_by_their_number(gateway):
    before = gateway.settled()
    body = json.dumps({"model": "demo-image", "prompt": "a cat", "n": 2}).encode()
    reply = send(gateway, body=body, target="/v1/images/generations")
    assert reply.headers["x-nexus-cost-usd"] == "0.08"
    found = changes(before, gateway.settled())
    assert found["nexus_cost_usd_total good demo_image delivered image"] == 80_000_000


def test_a_form_holds_for_the_images_that_it_asks_for(gateway):
    def edit(number: int):
        fields = {
            "model": (None, "demo-image"),
            "prompt": (None, "a cat"),
            "n": (None, str(number)),
        }
        form = requests.Request(
            "POST", gateway.base, files={**fields, "image": ("a.png", b"x")}
        ).prepare()
        headers = {"content-type": form.headers["content-type"]}
        return send(gateway, target="/v1/images/edits", body=form.body, headers=headers)

    refused = edit(2)
    assert (refused.status, refused.code) == (429, "insufficient_quota")
    assert "0.08 asked" in refused.content.decode()
    assert edit(1).headers["x-nexus-cost-usd"] == "0.04"


def test_a_local_model_costs_nothing(gateway):
    before = gateway.settled()
    reply = send(gateway, body=chat(model="demo-free"))
    assert reply.headers["x-nexus-cost-usd"] == "0"
    found = changes(before, gateway.settled())
    assert not [name for name in found if "usd" in name or "unpriced" in name]


def test_time_of_an_attempt_that_failed_is_charged_to_no_key(gateway, demo, bad):
    """The dearer backend is tried last and fails, too; so nothing was delivered."""
    demo.fault("status=500")
    bad.fault("status=500,delay=0.2")
    try:
        before = gateway.settled()
        assert send(gateway).status == 502
        found = changes(before, gateway.settled())
    finally:
        demo.fault("")
        bad.fault("")
    assert found["nexus_cost_usd_total bad demo_small retried time"] >= 0.2 * 0.5 * 1e9
    assert not [name for name in found if "delivered" in name or "key_cost" in name]


def leave(gateway, key: str) -> None:
    """Ask for a stream, and leave in the middle of it."""
    body = chat(stream=True, max_tokens=200)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {KEYS[key]}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with closing(socket.create_connection(("127.0.0.1", gateway.port), timeout=20)) as client:
        client.sendall(head.encode() + body)
        client.recv(1000)


def test_the_sums_by_key_and_by_backend_are_the_same_to_the_nano_dollar(gateway):
    before = gateway.settled()

    def mixed(key: str) -> None:
        for number in range(12):
            fault = ("", "no_usage", "status=500", "break_after=3")[number % 4]
            headers = {"content-type": "application/json", "x-demo-fault": fault}
            stream, length = number % 3 == 0, 3 + number
            send(gateway, key, body=chat(stream=stream, max_tokens=length), headers=headers)
        leave(gateway, key)
        ask(gateway, body=chat(max_tokens=5))  # without a key

    threads = [threading.Thread(target=mixed, args=(key,)) for key in (*KEYS, *KEYS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = changes(before, gateway.settled())
    by_key = sum(value for name, value in found.items() if "key_cost" in name)
    delivered = sum(value for name, value in found.items() if "delivered" in name)
    assert by_key == delivered > 0
    assert {name.split()[1] for name in found if "key_cost" in name} == {"a", "b", "none"}
    assert gateway.scrape().value("nexus_accounting_imbalance") == 0


def nexus(gateway, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nexus", *arguments, "-c", str(gateway.file)]
    environment = {**os.environ, **environ}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_prices_are_reloaded_and_checked(gateway):
    run = nexus(gateway, "prices", "check", "--json")
    assert run.returncode == 1
    told = json.loads(run.stdout)
    jsonschema.validate(told, SCHEMAS["prices check"])
    assert told["unpriced"] == [{"backend": "bad", "model": "demo-cloud"}]
    assert (told["version"], told["prices"], told["models"]) == ("2026-11-01", 3, 5)
    assert gateway.scrape().value("nexus_prices_age_seconds") > 0
    assert "1 model of 5 have no price" in nexus(gateway, "doctor", "--no-request").stdout
    file = gateway.file.with_name("prices.toml")
    file.write_text('[[price]]\nmodel = "*"\nper_request = "0.5"\n')
    assert nexus(gateway, "prices", "check").returncode == 0
    assert nexus(gateway, "reload").returncode == 0
    assert until(lambda: send(gateway).headers["x-nexus-cost-usd"]) == "0.5"
    file.write_text("[[price]]\ninput = 1\n")
    assert nexus(gateway, "reload").returncode == 2
    assert send(gateway).headers["x-nexus-cost-usd"] == "0.5"
    file.write_text(PRICES)
    assert nexus(gateway, "reload").returncode == 0


def test_a_proposal_needs_a_package(gateway, tmp_path):
    (tmp_path / "genai_prices.py").write_text("raise ImportError\n")  # as if it were not installed
    run = nexus(gateway, "prices", "update", PYTHONPATH=str(tmp_path))
    assert run.returncode == 2
    assert "pip install genai-prices" in run.stderr


def test_a_proposal_of_prices(tmp_path):
    with Demo(tmp_path, name="cloud", models=["gpt-4o", "claude-sonnet-4-5", "own"]) as demo:
        openai = backend_toml(demo).replace("vllm", "openai")
        config = openai + openai.replace('"cloud"', '"claude"').replace('"openai"', '"anthropic"')
        costs = '[[costs.price]]\nmodel = "gpt-4o"\ninput = "1"\n'
        file, state = tmp_path / "proposed.toml", {"XDG_STATE_HOME": str(tmp_path)}
        with Gateway(tmp_path, config + costs, environ=state) as gateway:
            run = nexus(gateway, "prices", "update", "--json", "--output", str(file))
            unwritten = nexus(gateway, "prices", "update", "--output", "/nowhere/prices.toml")
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    jsonschema.validate(told, SCHEMAS["prices update"])
    assert unwritten.returncode == 2
    assert unwritten.stderr == (
        "/nowhere/prices.toml cannot be written (No such file or directory); "
        "name another with --output.\n"
    )
    assert {"backend": "cloud", "model": "own"} in told["unknown"]
    assert '-input = "1"\n' in told["diff"]
    other = tmp_path / "other.toml"
    other.write_text('[costs]\nprices = "proposed.toml"\n')
    prices = {price.model: price for price in load(other, environ={}).config.costs.price}
    claude = prices["claude-sonnet-4-5"]
    assert claude.above.input_tokens == 200_000
    assert float(claude.above.input) == 2 * float(claude.input)
