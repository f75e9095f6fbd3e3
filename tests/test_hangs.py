"""Processes that are alive and do nothing: whoever watches must see it, and the health process
is replaced."""

import os
import signal
import subprocess

import pytest

from tests.support.metrics import scrape
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def gateway(module_dir):
    with (
        Demo(module_dir) as demo,
        Gateway(module_dir, backend_toml(demo), health_check="watchdog_seconds = 14") as gateway,
    ):
        yield gateway


def ready(base: str) -> tuple[int, list[str]]:
    """Status and lines of /readyz."""
    answer = subprocess.run(
        ["curl", "-s", "-m", "5", "-w", "%{http_code}", f"{base}/readyz?verbose"],
        capture_output=True,
        text=True,
    ).stdout
    *lines, status = answer.splitlines()
    return int(status), lines


def test_a_worker_that_hangs_is_seen(gateway):
    until(lambda: "[+] workers: 2 of 2 respond" in ready(gateway.operations)[1])
    first, second = gateway.worker_pids()
    try:
        os.kill(first, signal.SIGSTOP)
        until(lambda: scrape(gateway.operations).value("nexus_workers_silent") == 1, within_s=30)
        assert scrape(gateway.operations).value("nexus_workers") == 2
        status, lines = ready(gateway.operations)
        assert status == 200, "the other one serves"
        assert f"[!] workers: 1 of 2 respond, silent: {first}" in lines
        os.kill(second, signal.SIGSTOP)
        until(lambda: scrape(gateway.operations).value("nexus_workers_silent") == 2, within_s=30)
        until(lambda: ready(gateway.operations)[0] == 503)
        status, lines = ready(gateway.operations)
        [line] = [
            line for line in lines if line.startswith("[-] workers: 0 of 2 respond, silent: ")
        ]
        assert {int(pid) for pid in line.rpartition(": ")[2].split(", ")} == {first, second}
    finally:
        for pid in (first, second):
            os.kill(pid, signal.SIGCONT)
    until(lambda: scrape(gateway.operations).value("nexus_workers_silent") == 0)
    until(lambda: ready(gateway.operations)[0] == 200)
    assert gateway.worker_pids() == [first, second]


def test_a_health_process_that_hangs_is_seen_and_replaced(gateway):
    assert scrape(gateway.base).value("nexus_health_process_up") == 1
    hung = gateway.health_pid()
    os.kill(hung, signal.SIGSTOP)
    until(lambda: scrape(gateway.base).value("nexus_health_process_up") == 0, within_s=30)
    status, lines = ready(gateway.base)
    assert status == 200, "workers serve with the fleet that they know"
    assert "[!] health_process: whether it runs and its event loop moves" in lines
    until(lambda: gateway.health_pid() != hung, within_s=40)
    until(lambda: scrape(gateway.base).value("nexus_health_process_up") == 1)
    [killed] = gateway.lines("the health process hangs, killing it")
    assert killed["silent_s"] >= 14
    until(lambda: scrape(gateway.operations).value("nexus_backends_healthy") == 1)
