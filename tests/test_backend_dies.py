"""A backend's process ends: requests go to another, the gauge falls after the threshold, and it
is taken back."""

import pytest

from tests.support.load import chat, run
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e


def ask(gateway: Gateway, count: int) -> list[int]:
    statuses: list[int] = []
    run(
        gateway.port,
        [chat("chat", "demo-small")] * count,
        concurrency=8,
        seen=lambda _, status, __: statuses.append(status),
    )
    return statuses


def test_dies_and_comes_back(tmp_path):
    with Demo(tmp_path, name="b", pace=0) as b:
        a = Demo(tmp_path, name="a", pace=0)
        config = (
            backend_toml(a, b)
            + '[routing]\nstrategy = "round_robin"\n[circuit_breaker]\nslow_start_seconds = 2\n'
        )
        with Gateway(tmp_path, config, interval_s=1.0) as gateway:
            assert ask(gateway, 20) == [200] * 20
            assert a.tally()["requests"]
            assert b.tally()["requests"]

            a.stop()
            assert ask(gateway, 40) == [200] * 40
            scrape = gateway.settled()
            refused = scrape.value(
                "nexus_upstream_attempts_total", backend="a", outcome="backend_error"
            )
            assert refused >= 1, "no request met the dead backend before the threshold"
            assert scrape.total("nexus_requests_total", status="200") == 60
            assert scrape.total("nexus_errors_total") == 0

            until(lambda: gateway.scrape().value("nexus_backends_healthy") == 1)
            assert gateway.scrape().value("nexus_backend_up", backend="a") == 0
            attempts = gateway.settled().total("nexus_upstream_attempts_total", backend="a")
            assert ask(gateway, 20) == [200] * 20
            assert gateway.settled().total("nexus_upstream_attempts_total", backend="a") == attempts

            with Demo(tmp_path, name="a", port=a.port, pace=0) as again:
                until(lambda: gateway.scrape().value("nexus_backends_healthy") == 2)

                def gets_its_share() -> bool:
                    before = again.tally()["requests"].get("/v1/chat/completions", 0)
                    assert ask(gateway, 20) == [200] * 20
                    return again.tally()["requests"].get("/v1/chat/completions", 0) - before >= 8

                until(gets_its_share, within_s=15, every_s=0.2)
            changes = [
                line for line in gateway.lines() if line["event"].startswith("backend is now")
            ]
            assert [(c["backend"], c["event"].split()[-1]) for c in changes][-2:] == [
                ("a", "unhealthy"),
                ("a", "healthy"),
            ]


def test_the_only_backend_dies(tmp_path):
    with Demo(tmp_path, name="a", pace=0) as a, Gateway(tmp_path, backend_toml(a)) as gateway:
        a.stop()
        assert ask(gateway, 1) == [502]
        until(lambda: ask(gateway, 1) == [503])
        scrape = gateway.settled()
        assert (
            scrape.value("nexus_requests_total", model="demo_small", backend="a", status="502") >= 1
        )
        assert (
            scrape.value("nexus_errors_total", model="demo_small", error_type="no_healthy_backend")
            == 1
        )
        assert scrape.total("nexus_errors_total") == scrape.total("nexus_requests_total")
