"""What keys promise under load: when a change holds, that rotation refuses nobody, that guesses
leave no trace."""

import http.client
import itertools
import json
import secrets
import threading
import time
from collections.abc import Iterator

import pytest

from nexus.access.keys import new_key
from tests.access.test_run_time_keys import keys
from tests.server.asking import GOOD, ask
from tests.support.load import Load, ParsedRequest, chat
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = [pytest.mark.e2e, pytest.mark.long]

CANARY = "canary" + secrets.token_hex(8)


@pytest.fixture(scope="module")
def demo(module_dir) -> Iterator[Demo]:
    with Demo(module_dir, name="demo", models=["demo-small"], pace=20, length=400) as demo:
        yield demo


@pytest.fixture(scope="module")
def gateway(module_dir, demo) -> Iterator[Gateway]:
    config = '[auth]\nmode = "keys"\n' + backend_toml(demo)
    server = f'state_dir = "{module_dir}/state"'
    with Gateway(module_dir, config, workers=4, server=server) as gateway:
        yield gateway


def asking(*given: str):
    """Short requests with these keys in turn."""
    turn = itertools.cycle(given)

    def ask_one(_: int) -> ParsedRequest:
        one = chat("chat", "demo-small", max_tokens=1)
        return ParsedRequest(one.kind, one.path, one.body, next(turn))

    return ask_one


def test_a_block_holds_a_second_after_the_command(gateway):
    made = keys(gateway, "add")
    body = json.dumps({**GOOD, "max_tokens": 400, "stream": True}).encode()
    ends: list[bytes] = []
    stream = threading.Thread(
        target=lambda: ends.append(
            ask(gateway, body=body, authorization=f"Bearer {made['key']}").content
        )
    )
    stream.start()
    until(lambda: gateway.scrape().value("nexus_streams_active") == 1)
    load = Load(gateway.port, rate=50, clients=10, ask=asking(made["key"]))
    try:
        time.sleep(5)
        keys(gateway, "block", made["id"])
        returned = time.monotonic()
        time.sleep(5)
    finally:
        load.stop()
    before = {status for began, status, took in load.results if began + took < returned - 2}
    after = {status for began, status, _ in load.results if began >= returned + 1}
    assert 200 in before
    assert after == {401}
    stream.join(60)
    assert ends[0].endswith(b"data: [DONE]\n\n")


def test_nobody_is_refused_while_a_key_is_rotated(gateway):
    made = keys(gateway, "add")
    old = Load(gateway.port, rate=50, clients=10, ask=asking(made["key"]))
    try:
        time.sleep(1)
        rotated = keys(gateway, "rotate", made["id"], "--grace", "6s")
        returned = time.monotonic()
        both = Load(gateway.port, rate=50, clients=10, ask=asking(made["key"], rotated["key"]))
        time.sleep(3)
        both.stop()
        within = both.results + [one for one in old.results if one[0] < returned + 3]
        assert {status for _, status, _ in within} == {200}
        time.sleep(5)
        new = Load(gateway.port, rate=50, clients=10, ask=asking(rotated["key"]))
        since = time.monotonic()
        time.sleep(2)
        new.stop()
    finally:
        old.stop()
    assert {status for _, status, _ in new.results} == {200}
    assert {status for began, status, _ in old.results if began > since} == {401}


def test_ten_thousand_guesses_leave_no_series_and_no_secret(gateway, module_dir):
    before = len(gateway.settled().samples)

    def guess(numbers: range) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
        for number in numbers:
            key = f"{new_key()[1]}{CANARY}" if number % 2 else f"{CANARY}{number}"
            given = {"authorization": f"Bearer {key}", "content-type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(GOOD), given)
            reply = connection.getresponse()
            assert CANARY not in reply.read().decode()
            assert reply.status == 401
        connection.close()

    threads = [
        threading.Thread(target=guess, args=(range(start, start + 2500),))
        for start in range(0, 10_000, 2500)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    now = gateway.settled()
    refusals = now.value(
        "nexus_key_refusals_total", key="unknown", team="unknown", reason="invalid"
    )
    assert refusals >= 10_000
    assert len(now.samples) <= before + 10
    for directory in (module_dir, gateway.run_dir):
        for file in directory.rglob("*"):
            if file.is_file():
                assert CANARY.encode() not in file.read_bytes(), file
    assert CANARY not in gateway.output()
