"""Backends whose probes are well while requests to them are not: `nexus status`, `/v1/stats` and
the dashboard say so."""

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml, clean_environ, get_json

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    directory = tmp_path_factory.mktemp("silent")
    with (
        Demo(directory, name="hangs", models=["h"], pace=0, fault="hang=1") as hangs,
        Demo(directory, name="refuses", models=["r"], pace=0, fault="status=422") as refuses,
        Demo(directory, name="well", models=["w"], pace=0) as well,
        Gateway(directory, backend_toml(hangs, refuses, well), interval_s=0.3) as gateway,
    ):
        until(lambda: gateway.scrape().value("nexus_backends_healthy") == 3)
        yield gateway


def ask(gateway, model: str, **more: object) -> int:
    body = json.dumps(
        {"model": model, "messages": [{"role": "user", "content": "Hi"}], **more}
    ).encode()
    request = urllib.request.Request(
        f"{gateway.base}/v1/chat/completions", body, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def leave(gateway, model: str) -> None:
    """Ask, and go away once the backend has the request."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hi"}]}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as client:
        client.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        until(lambda: gateway.scrape().value("nexus_pending_requests", backend="hangs") == 1)
    until(lambda: gateway.scrape().value("nexus_pending_requests", backend="hangs") == 0)


def entry(base: str, name: str) -> dict:
    return next(
        backend for backend in get_json(f"{base}/v1/stats")["backends"] if backend["id"] == name
    )


def test_what_serves_nothing_is_reported(gateway):
    for _ in range(3):
        leave(gateway, "h")
    assert [ask(gateway, "r") for _ in range(5)] == [422] * 5
    assert [ask(gateway, "w", stream=True) for _ in range(4)] == [200] * 4
    gateway.settled()
    until(lambda: entry(gateway.base, "well")["last_hour"]["attempts"] == 4)
    until(lambda: entry(gateway.base, "refuses")["trouble"] == "refuses_all")
    until(lambda: entry(gateway.base, "hangs")["trouble"] == "hangs")

    well = entry(gateway.base, "well")
    assert (
        well["trouble"],
        well["last_hour"]["error_rate"],
        well["last_hour"]["success_rate"],
    ) == (None, 0, 1)
    assert well["last_hour"]["average_ttft_ms"] > 0
    assert {**well["last_day"], "seconds": 0} == {**well["last_hour"], "seconds": 0}
    assert entry(gateway.operations, "well")["last_hour"]["attempts"] == 4
    scrape = gateway.scrape()
    assert (
        scrape.value("nexus_upstream_attempts_total", backend="hangs", outcome="client_disconnect")
        == 3
    )
    assert (
        scrape.value("nexus_upstream_attempts_total", backend="refuses", outcome="invalid_request")
        == 5
    )
    assert scrape.value("nexus_backends_healthy") == 3

    done = subprocess.run(
        [sys.executable, "-m", "nexus", "status", "-c", str(gateway.file)],
        capture_output=True, text=True, timeout=30, env=clean_environ(),
    )  # fmt: skip
    assert done.returncode == 1, "something is wrong"
    assert "hangs is healthy by its probes, but served nothing in ten minutes" in done.stdout
    assert (
        "refuses is healthy by its probes, but refused every request in ten minutes" in done.stdout
    )
    assert "well is healthy by its probes" not in done.stdout

    def page() -> str:
        with urllib.request.urlopen(f"{gateway.base}/", timeout=10) as answer:
            return answer.read().decode()

    until(lambda: "hangs is healthy by its probes, but served nothing" in page())
    until(lambda: "refuses is healthy by its probes, but refused every request" in page())
