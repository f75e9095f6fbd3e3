"""Backends that fail, hang and recover under load: clients notice next to nothing, and the sick are left alone."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from tests.support.load import Load, chat, run
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

TIMEOUT_S = 1.0
OPEN_S, SLOW_START_S, SICK_S = 1.0, 2.0, 3.5
CONFIG = f"""
[circuit_breaker]
open_seconds = {OPEN_S}
max_open_seconds = {OPEN_S}
slow_start_seconds = {SLOW_START_S}
[health_check]
"""


def attempts(gateway: Gateway, name: str) -> float:
    return gateway.scrape().total("nexus_upstream_attempts_total", backend=name)


def share(gateway: Gateway, names: list[str], over_s: float) -> Counter[str]:
    before = {name: attempts(gateway, name) for name in names}
    threading.Event().wait(over_s)
    return Counter({name: int(attempts(gateway, name) - before[name]) for name in names})


def test_one_fails_one_hangs_one_is_well(tmp_path: Path):
    names = ["failing", "hanging", "well"]
    with (
        Demo(tmp_path, name="failing", models=["shared"], pace=0) as failing,
        Demo(tmp_path, name="hanging", models=["shared"], pace=0) as hanging,
        Demo(tmp_path, name="well", models=["shared"], pace=0) as well,
        Gateway(
            tmp_path,
            backend_toml(failing, hanging, well, first_byte_timeout_seconds=TIMEOUT_S)
            + CONFIG.replace("[health_check]\n", ""),
            workers=4,
        ) as gateway,
    ):
        load = Load(gateway.port, rate=200)
        try:
            until(lambda: all(attempts(gateway, name) > 20 for name in names))
            failing.fault("status=500")
            hanging.fault("hang")
            struck = time.monotonic()
            until(lambda: [name for name, state in circuits(gateway, names).items() if state == "closed"] == ["well"])
            opened_after = time.monotonic() - struck
            time.sleep(TIMEOUT_S + 0.5)  # those that hung when it opened have ended
            sick_for = share(gateway, names, SICK_S)
            failing.fault("")
            hanging.fault("")
            recovered = time.monotonic()
            until(lambda: set(circuits(gateway, names).values()) == {"closed"}, within_s=OPEN_S + 5)
            closed_after = time.monotonic() - recovered
            time.sleep(SLOW_START_S)
            again = share(gateway, names, 2.0)
        finally:
            load.stop()
        after = [(status, took) for began, status, took in load.results if struck + 1 <= began]
        bad = [entry for entry in after if entry[0] != 200 or entry[1] > TIMEOUT_S + 0.5]
        print(f"opened after {opened_after:.2f} s, closed after {closed_after:.2f} s; while sick {sick_for}, then {again}; "
              f"{len(bad)} of {len(after)} bad")  # fmt: skip
        assert len(after) > 500
        assert len(bad) < 0.01 * len(after), bad
        # Only probes: one request each time that the circuit is half open, whatever the number of workers.
        assert sick_for["failing"] <= SICK_S / (OPEN_S * 0.9) + 1
        assert sick_for["hanging"] <= SICK_S / (OPEN_S * 0.9) + 1
        assert sick_for["well"] > 200
        assert all(again[name] > 0.15 * again.total() for name in names), again
        scrape = gateway.settled()
        assert scrape.value("nexus_circuit_opened_total", backend="failing") == 1
        assert scrape.value("nexus_circuit_opened_total", backend="well") == 0
        assert scrape.value("nexus_accounting_imbalance") == 0


def circuits(gateway: Gateway, names: list[str]) -> dict[str, str]:
    """By `/v1/stats`; `/metrics` says the same."""
    return {entry["name"]: entry["circuit"] for entry in gateway.stats()["backends"] if entry["name"] in names}


def test_state_is_shown(tmp_path: Path):
    with Demo(tmp_path, name="sick", models=["shared"], pace=0) as sick:
        config = backend_toml(sick) + "[routing]\nmax_retries = 0\n[circuit_breaker]\nopen_seconds = 2\n"
        with Gateway(tmp_path, config) as gateway:
            sick.fault("status=500")
            statuses: list[int] = []
            asks = [chat("x", "shared")] * 20
            run(gateway.port, asks, concurrency=1, seen=lambda _, status, __: statuses.append(status))
            assert statuses == [502] * 5 + [503] * 15, "five failures open it, and then nothing reaches the backend"
            assert sick.tally()["requests"]["/v1/chat/completions"] == 5
            scrape = gateway.settled()
            assert scrape.value("nexus_backend_circuit_state", backend="sick") == 2
            assert scrape.value("nexus_circuit_opened_total", backend="sick") == 1
            assert scrape.value("nexus_routing_decision_seconds_count") == 20, "one for each request, refused or not"
            until(lambda: gateway.scrape().value("nexus_event_loop_lag_seconds_count") >= 2)
            assert circuits(gateway, ["sick"]) == {"sick": "open"}
            assert gateway.lines("circuit opened")[0]["backend"] == "sick"
            until(lambda: gateway.scrape().value("nexus_backend_circuit_state", backend="sick") == 1)
            sick.fault("")
            run(gateway.port, asks[:1], concurrency=1, seen=lambda _, status, __: statuses.append(status))
            assert statuses[-1] == 200
            assert gateway.scrape().value("nexus_backend_circuit_state", backend="sick") == 0


def test_a_stream_on_trial_is_judged_at_its_end(tmp_path: Path):
    """Content alone closes nothing: meanwhile nobody else is sent there, and a stream that breaks keeps it open."""
    with (
        Demo(tmp_path, name="sick", models=["shared"], pace=50) as sick,
        Gateway(tmp_path, backend_toml(sick) + tripping(open_seconds=1.0)) as gateway,
    ):
        trip(gateway, sick)
        for fault, then in (("break_after=20", 2), ("error_after=20,error_code=429", 0)):
            sick.fault(fault)
            until(lambda: gateway.scrape().value("nexus_backend_circuit_state", backend="sick") == 1)
            with streamed(gateway, tokens=60) as answer:
                assert b"content" in answer.readline()
                assert gateway.scrape().value("nexus_backend_circuit_state", backend="sick") == 1
                statuses: list[int] = []
                seen = lambda _, status, __, to=statuses: to.append(status)  # noqa: E731
                run(gateway.port, [chat("x", "shared")], concurrency=1, seen=seen)
                assert statuses == [503], "one request at a time tries"
                assert b'"error"' in answer.read()
            assert gateway.scrape().value("nexus_backend_circuit_state", backend="sick") == then, fault
        assert len(gateway.lines("circuit stays open")) == 1
        assert gateway.settled().value("nexus_circuit_opened_total", backend="sick") == 1


def test_a_long_stream_on_trial_keeps_no_backend_out(tmp_path: Path):
    with (
        Demo(tmp_path, name="sick", models=["shared"], pace=50) as sick,
        Gateway(tmp_path, backend_toml(sick) + tripping(open_seconds=0.5)) as gateway,
    ):
        trip(gateway, sick)
        sick.fault("")
        until(lambda: gateway.scrape().value("nexus_backend_circuit_state", backend="sick") == 1)
        with streamed(gateway, tokens=400) as answer:
            began = time.monotonic()
            assert b"content" in answer.readline()
            until(lambda: gateway.scrape().value("nexus_backend_circuit_state", backend="sick") == 0, within_s=5)
            assert 0.4 < time.monotonic() - began < 5, "after it has gone on for open_seconds"
            assert b"[DONE]" not in answer.readline(), "it goes on"
            assert gateway.scrape().total("nexus_streams_active") == 1


def tripping(*, open_seconds: float) -> str:
    return (
        "[queue]\nenabled = false\n[routing]\nmax_retries = 0\n"
        f"[circuit_breaker]\nopen_seconds = {open_seconds}\nmax_open_seconds = {open_seconds}\n"
    )


def trip(gateway: Gateway, demo: Demo) -> None:
    """Open the backend's circuit."""
    demo.fault("status=500")
    run(gateway.port, [chat("x", "shared")] * 10, concurrency=1, seen=lambda *_: None)
    assert gateway.scrape().value("nexus_circuit_opened_total", backend="sick") == 1


@contextmanager
def streamed(gateway: Gateway, *, tokens: int) -> Iterator[HTTPResponse]:
    """A stream that has come to its content."""
    body = {"model": "shared", "stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": "x"}]}
    connection = HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200
        yield answer
    finally:
        connection.close()


@pytest.mark.parametrize(("fault", "status"), [("status=400", 400), ("status=404", 404), ("status=429", 429)])
def test_what_does_not_speak_against_a_backend(tmp_path: Path, fault: str, status: int):
    """Neither the clients' own errors nor being busy ever open a circuit."""
    with Demo(tmp_path, name="d", models=["shared"], pace=0, fault=fault) as demo:
        config = backend_toml(demo) + "[routing]\nmax_retries = 0\n[queue]\nenabled = false\n"
        with Gateway(tmp_path, config) as gateway:
            statuses: list[int] = []
            asks = [chat("x", "shared")] * 20
            run(gateway.port, asks, concurrency=1, seen=lambda _, status, __: statuses.append(status))
            assert statuses[0] == status
            if status == 429:  # taken out for a second, then asked again
                assert set(statuses[1:]) <= {503, 429}
                until(
                    lambda: (
                        run(gateway.port, asks[:1], concurrency=1, seen=lambda _, s, __: statuses.append(s))
                        or statuses[-1] == 429
                    )
                )
            else:
                assert set(statuses) == {status}
            assert gateway.settled().value("nexus_backend_circuit_state", backend="d") == 0
            assert demo.tally()["requests"]["/v1/chat/completions"] == statuses.count(status)


def test_retries_do_not_multiply_an_outage(tmp_path: Path):
    """All backends fail, circuits off: no more than the budget is added to what the clients ask."""
    with (
        Demo(tmp_path, name="a", models=["shared"], pace=0, fault="status=500") as a,
        Demo(tmp_path, name="b", models=["shared"], pace=0, fault="status=500") as b,
    ):
        config = backend_toml(a, b) + "[routing]\nmax_retries = 10\n[circuit_breaker]\nenabled = false\n"
        with Gateway(tmp_path, config, workers=2) as gateway:
            statuses: list[int] = []
            asks = [chat("x", "shared")] * 600
            run(gateway.port, asks, concurrency=50, seen=lambda _, status, __: statuses.append(status))
            assert statuses == [502] * 600
            scrape = gateway.settled()
            made = scrape.total("nexus_upstream_attempts_total")
            assert made == sum(a.tally()["requests"].values()) + sum(b.tally()["requests"].values())
            assert made == 600 + scrape.total("nexus_retries_total")
            # Ten a second and half of the requests, over however many windows the run took; two workers may overshoot.
            until(lambda: len(gateway.lines("request")) == 600)
            took_s = max(line["duration_ms"] for line in gateway.lines("request")) / 1000 * 600 / 50
            assert scrape.total("nexus_retries_total") <= 100 + 300 + 10 * took_s + 50
            assert scrape.total("nexus_retries_denied_total") > 0


def test_round_robin_is_fair_over_all_workers(tmp_path: Path):
    with (
        Demo(tmp_path, name="a", models=["shared", "other"], pace=0) as a,
        Demo(tmp_path, name="b", models=["shared"], pace=0) as b,
        Demo(tmp_path, name="c", models=["shared", "other"], pace=0) as c,
        Gateway(tmp_path, backend_toml(a, b, c) + '[routing]\nstrategy = "round_robin"\n', workers=4) as gateway,
    ):
        asks = [chat("x", model) for _ in range(300) for model in ("shared", "other")]
        run(gateway.port, asks, concurrency=12, seen=lambda *_: None)
        models = [demo.tally()["models"] for demo in (a, b, c)]
        assert [found["shared"] for found in models] == [100, 100, 100]
        assert [found.get("other", 0) for found in models] == [150, 0, 150]
