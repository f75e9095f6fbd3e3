"""Backends that fail, hang and recover under load: clients notice next to nothing, and the sick
are left alone."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from tests.support.load import Load, chat, run
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml
from tests.support.reconfigured import Reconfigured

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

TIMEOUT_S = 1.0
OPEN_S, SLOW_START_S, SICK_S = 1.0, 2.0, 3.5
CONFIG = f"""
[circuit_breaker]
open_seconds = {OPEN_S}
max_open_seconds = {OPEN_S}
slow_start_seconds = {SLOW_START_S}
[health_check]
"""


@pytest.fixture(scope="module")
def configured(module_dir: Path):
    """Gives a gateway of two workers a configuration."""
    with (
        Demo(module_dir, name="idle", models=["idle"]) as idle,
        Gateway(module_dir, backend_toml(idle)) as gateway,
    ):
        yield lambda config: nullcontext(Reconfigured(gateway, idle, config))


def attempts(gateway: Gateway | Reconfigured, name: str) -> float:
    return gateway.scrape().total("nexus_upstream_attempts_total", backend=name)


def share(gateway: Gateway | Reconfigured, names: list[str], over_s: float) -> Counter[str]:
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
            until(
                lambda: (
                    [name for name, state in circuits(gateway, names).items() if state == "closed"]
                    == ["well"]
                )
            )
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
        print(
            f"opened after {opened_after:.2f} s, closed after {closed_after:.2f} s; while sick "
            f"{sick_for}, then {again}; "
            f"{len(bad)} of {len(after)} bad"
        )
        assert len(after) > 500
        assert len(bad) < 0.01 * len(after), bad
        # Only probes: one request each time that the circuit is half open, whatever the number of
        # workers.
        assert sick_for["failing"] <= SICK_S / (OPEN_S * 0.9) + 1
        # A probe that hangs for as long as its lease may have the next one beside it.
        assert sick_for["hanging"] <= 2 * SICK_S / (OPEN_S * 0.9) + 1
        assert sick_for["well"] > 200
        assert all(again[name] > 0.15 * again.total() for name in names), again
        scrape = gateway.settled()
        assert scrape.value("nexus_circuit_opened_total", backend="failing") == 1
        assert scrape.value("nexus_circuit_opened_total", backend="well") == 0
        assert scrape.value("nexus_accounting_imbalance") == 0


def circuits(gateway: Gateway | Reconfigured, names: list[str]) -> dict[str, str]:
    """By `/v1/stats`; `/metrics` says the same."""
    return {
        entry["name"]: entry["circuit"]
        for entry in gateway.stats()["backends"]
        if entry["name"] in names
    }


def test_state_is_shown(tmp_path: Path, configured):
    with Demo(tmp_path, name="sick", models=["shared"], pace=0) as sick:
        config = (
            backend_toml(sick) + "[routing]\nmax_retries = 0\n[circuit_breaker]\nopen_seconds = 2\n"
        )
        with configured(config) as gateway:
            sick.fault("status=500")
            statuses: list[int] = []
            asks = [chat("x", "shared")] * 20
            run(
                gateway.port,
                asks,
                concurrency=1,
                seen=lambda _, status, __: statuses.append(status),
            )
            assert statuses == [502] * 20, (
                "five failures open it; where all circuits are open, one is tried all the same"
            )
            assert sick.tally()["requests"]["/v1/chat/completions"] == 20
            scrape = gateway.settled()
            assert scrape.value("nexus_backend_circuit_state", backend="sick") == 2
            assert scrape.value("nexus_circuit_opened_total", backend="sick") == 1
            assert scrape.value("nexus_routing_decision_seconds_count") == 20, (
                "one for each request, refused or not"
            )
            until(lambda: gateway.scrape().value("nexus_event_loop_lag_seconds_count") >= 2)
            assert circuits(gateway, ["sick"]) == {"sick": "open"}
            assert gateway.lines("circuit opened")[0]["backend"] == "sick"
            until(
                lambda: gateway.scrape().value("nexus_backend_circuit_state", backend="sick") == 1
            )
            sick.fault("")
            run(
                gateway.port,
                asks[:1],
                concurrency=1,
                seen=lambda _, status, __: statuses.append(status),
            )
            assert statuses[-1] == 200
            assert gateway.scrape().value("nexus_backend_circuit_state", backend="sick") == 0


def test_stream_closes_a_half_open_circuit_with_its_first_content(tmp_path: Path, configured):
    """What comes after that counts as with any other stream."""
    with (
        Demo(tmp_path, name="sick", models=["shared"], pace=50) as sick,
        configured(backend_toml(sick) + tripping(open_seconds=1.0)) as gateway,
    ):
        trip(gateway, sick)
        sick.fault("")
        until(lambda: gateway.scrape().value("nexus_backend_circuit_state", backend="sick") == 1)
        with streamed(gateway, tokens=400) as answer:
            assert b"content" in answer.readline()
            assert gateway.scrape().value("nexus_backend_circuit_state", backend="sick") == 0
            assert gateway.scrape().total("nexus_streams_active") == 1, "it goes on"
        assert len(gateway.lines("circuit closed")) == 1


def test_slow_half_open_probe_keeps_nobody_out(tmp_path: Path, configured):
    """A whole response that takes long has the backend for as long as a circuit stays open, then
    another one may try."""
    with (
        Demo(tmp_path, name="sick", models=["shared"], pace=0) as sick,
        Demo(tmp_path, name="well", models=["shared"], pace=0) as well,
        configured(
            backend_toml(sick, well) + tripping(open_seconds=1.0, strategy="round_robin")
        ) as gateway,
    ):
        trip(gateway, sick)
        sick.fault("delay=30")
        until(lambda: gateway.scrape().value("nexus_backend_circuit_state", backend="sick") == 1)
        slow = HTTPConnection("127.0.0.1", gateway.port, timeout=60)
        slow.request("POST", "/v1/chat/completions", json.dumps(chat("x", "shared").body), JSON)
        until(lambda: sick.tally()["open"] == 1)
        sick.fault("")
        statuses: list[int] = []

        def closed() -> bool:
            seen = lambda _, status, __: statuses.append(status)  # noqa: E731
            run(gateway.port, [chat("x", "shared")], concurrency=1, seen=seen)
            return gateway.scrape().value("nexus_backend_circuit_state", backend="sick") == 0

        until(closed, within_s=20)
        assert sick.tally()["open"] == 1, "the slow one still waits for its answer"
        assert set(statuses) == {200}
        slow.close()


def test_good_health_probe_closes_a_circuit_that_nobody_tries(tmp_path: Path, configured):
    with (
        Demo(tmp_path, name="sick", models=["shared"], pace=0) as sick,
        configured(backend_toml(sick) + tripping(open_seconds=0.5)) as gateway,
    ):
        trip(gateway, sick)
        until(
            lambda: gateway.scrape().value("nexus_backend_circuit_state", backend="sick") == 0,
            within_s=10,
        )


JSON = {"content-type": "application/json"}
POISON = "status=500"
CONFIG_OF_TWO = '[routing]\nstrategy = "round_robin"\n[circuit_breaker]\nopen_seconds = 60\n'


def send(
    gateway: Gateway | Reconfigured, model: str, fault: str = ""
) -> tuple[int, dict[str, str]]:
    """A request, with what it makes the backends do, whichever they are."""
    connection = HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    headers = {**JSON, **({"x-demo-fault": fault} if fault else {})}
    connection.request("POST", "/v1/chat/completions", json.dumps(chat("x", model).body), headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}


def test_poisoned_requests_take_the_only_backend_from_nobody(tmp_path: Path, configured):
    """One client's requests fail, one after the other: its circuit opens, and yet everybody else
    is served."""
    with (
        Demo(tmp_path, name="d", models=["shared"], pace=0) as demo,
        configured(backend_toml(demo) + "[circuit_breaker]\nopen_seconds = 60\n") as gateway,
    ):
        assert [send(gateway, "shared", POISON)[0] for _ in range(5)] == [502] * 5
        assert gateway.scrape().value("nexus_circuit_opened_total", backend="d") == 1, (
            "five requests, each counted once"
        )
        for _ in range(10):
            assert send(gateway, "shared", POISON)[0] == 502
            assert send(gateway, "shared")[0] == 200
        scrape = gateway.settled()
        assert scrape.value("nexus_requests_total", backend="d", model="shared", status="200") == 10
        assert scrape.value("nexus_requests_total", backend="d", model="shared", status="502") == 15
        assert (
            scrape.value("nexus_upstream_attempts_total", backend="d", outcome="backend_error")
            == 45
        )


def test_poisoned_requests_count_against_no_backend_where_several_fail(tmp_path: Path, configured):
    with (
        Demo(tmp_path, name="a", models=["shared"], pace=0) as a,
        Demo(tmp_path, name="b", models=["shared"], pace=0) as b,
        configured(backend_toml(a, b)) as gateway,
    ):
        assert [send(gateway, "shared", POISON)[0] for _ in range(20)] == [502] * 20
        assert [send(gateway, "shared")[0] for _ in range(10)] == [200] * 10
        scrape = gateway.settled()
        assert circuits(gateway, ["a", "b"]) == {"a": "closed", "b": "closed"}
        assert scrape.total("nexus_circuit_opened_total") == 0
        assert scrape.total("nexus_upstream_attempts_total", outcome="backend_error") == 60


def test_one_failing_backend_of_two_is_detected(tmp_path: Path, configured):
    """The same requests are served by the other one, so that it is not they who fail."""
    with (
        Demo(tmp_path, name="a", models=["shared"], pace=0, fault="status=500") as a,
        Demo(tmp_path, name="b", models=["shared"], pace=0) as b,
        configured(backend_toml(a, b) + CONFIG_OF_TWO) as gateway,
    ):
        assert {send(gateway, "shared")[0] for _ in range(40)} == {200}
        assert circuits(gateway, ["a", "b"]) == {"a": "open", "b": "closed"}
        assert a.tally()["requests"]["/v1/chat/completions"] == 5


def test_rate_limit_of_one_model_holds_no_other(tmp_path: Path, configured):
    with (
        Demo(tmp_path, name="d", models=["limited", "other"], pace=0) as demo,
        configured(
            backend_toml(demo) + "[queue]\nenabled = false\n[routing]\nmax_retries = 0\n"
        ) as gateway,
    ):
        assert send(gateway, "limited", "status=429,retry_after=30")[0] == 429
        assert send(gateway, "other")[0] == 200
        status, headers = send(gateway, "limited")
        assert (status, int(headers["retry-after"]) > 20) == (503, True)
        assert send(gateway, "other", "status=503,retry_after=30")[0] == 503
        assert send(gateway, "other")[0] == 503, "a 503 holds for the whole backend"
        assert gateway.scrape().value("nexus_backend_circuit_state", backend="d") == 0


def test_backend_that_lacks_a_listed_model_is_probed_at_once(tmp_path: Path):
    with (
        Demo(tmp_path, name="d", models=["shared"], pace=0) as demo,
        Gateway(tmp_path, backend_toml(demo), interval_s=3600) as gateway,
    ):
        assert send(gateway, "shared", "status=404")[0] == 404
        until(
            lambda: gateway.scrape().value("nexus_backend_latency_seconds_count", backend="d") == 2,
            within_s=10,
        )
        assert gateway.scrape().value("nexus_backend_circuit_state", backend="d") == 0


def tripping(*, open_seconds: float, strategy: str = "smart") -> str:
    return (
        f'[queue]\nenabled = false\n[routing]\nmax_retries = 0\nstrategy = "{strategy}"\n'
        f"[circuit_breaker]\nopen_seconds = {open_seconds}\nmax_open_seconds = {open_seconds}\n"
    )


def trip(gateway: Gateway | Reconfigured, demo: Demo) -> None:
    """Open the backend's circuit."""
    demo.fault("status=500")
    run(gateway.port, [chat("x", "shared")] * 10, concurrency=1, seen=lambda *_: None)
    demo.fault("")
    assert gateway.scrape().value("nexus_circuit_opened_total", backend="sick") == 1


@contextmanager
def streamed(gateway: Gateway | Reconfigured, *, tokens: int) -> Iterator[HTTPResponse]:
    """A stream that has come to its content."""
    body = {
        "model": "shared",
        "stream": True,
        "max_tokens": tokens,
        "messages": [{"role": "user", "content": "x"}],
    }
    connection = HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    try:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"}
        )
        answer = connection.getresponse()
        assert answer.status == 200
        yield answer
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("status=400", 400), ("status=404", 404), ("status=429", 429), ("status=529", 529),
        ("status=503,message=Loading model", 503),
        ("status=503,message=server busy; please try again", 503),
    ],
)  # fmt: skip
def test_what_does_not_speak_against_a_backend(tmp_path: Path, configured, fault: str, status: int):
    """Neither the clients' own errors nor being busy ever open a circuit."""
    with Demo(tmp_path, name="d", models=["shared"], pace=0, fault=fault) as demo:
        config = backend_toml(demo) + "[routing]\nmax_retries = 0\n[queue]\nenabled = false\n"
        with configured(config) as gateway:
            statuses: list[int] = []
            asks = [chat("x", "shared")] * 20
            run(
                gateway.port,
                asks,
                concurrency=1,
                seen=lambda _, status, __: statuses.append(status),
            )
            assert statuses[0] == status
            if status in (429, 503, 529):  # taken out for a second, then asked again
                assert set(statuses[1:]) <= {503, status}
                until(
                    lambda: (
                        run(
                            gateway.port,
                            asks[:1],
                            concurrency=1,
                            seen=lambda _, s, __: statuses.append(s),
                        )
                        or demo.tally()["requests"]["/v1/chat/completions"] > 1
                    )
                )
            else:
                assert set(statuses) == {status}
            assert gateway.settled().value("nexus_backend_circuit_state", backend="d") == 0
            if status != 503:  # which is also the gateway's own
                assert demo.tally()["requests"]["/v1/chat/completions"] == statuses.count(status)


def test_retries_do_not_multiply_an_outage(tmp_path: Path, configured):
    """All backends fail, circuits off: no more than the budget is added to what the clients ask."""
    with (
        Demo(tmp_path, name="a", models=["shared"], pace=0, fault="status=500") as a,
        Demo(tmp_path, name="b", models=["shared"], pace=0, fault="status=500") as b,
    ):
        config = (
            backend_toml(a, b) + "[routing]\nmax_retries = 10\n[circuit_breaker]\nenabled = false\n"
        )
        with configured(config) as gateway:
            statuses: list[int] = []
            asks = [chat("x", "shared")] * 600
            run(
                gateway.port,
                asks,
                concurrency=50,
                seen=lambda _, status, __: statuses.append(status),
            )
            assert statuses == [502] * 600
            scrape = gateway.settled()
            made = scrape.total("nexus_upstream_attempts_total")
            assert made == sum(a.tally()["requests"].values()) + sum(b.tally()["requests"].values())
            assert made == 600 + scrape.total("nexus_retries_total")
            # Ten a second and half of the requests, over however many windows the run took; two
            # workers may overshoot.
            until(lambda: len(gateway.lines("request")) == 600)
            took_s = max(line["duration_ms"] for line in gateway.lines("request")) / 1000 * 600 / 50
            assert scrape.total("nexus_retries_total") <= 100 + 300 + 10 * took_s + 50
            assert scrape.total("nexus_retries_denied_total") > 0


def test_round_robin_is_fair_over_all_workers(tmp_path: Path):
    with (
        Demo(tmp_path, name="a", models=["shared", "other"], pace=0) as a,
        Demo(tmp_path, name="b", models=["shared"], pace=0) as b,
        Demo(tmp_path, name="c", models=["shared", "other"], pace=0) as c,
        Gateway(
            tmp_path, backend_toml(a, b, c) + '[routing]\nstrategy = "round_robin"\n', workers=4
        ) as gateway,
    ):
        asks = [chat("x", model) for _ in range(300) for model in ("shared", "other")]
        run(gateway.port, asks, concurrency=12, seen=lambda *_: None)
        models = [demo.tally()["models"] for demo in (a, b, c)]
        assert [found["shared"] for found in models] == [100, 100, 100]
        assert [found.get("other", 0) for found in models] == [150, 0, 150]
