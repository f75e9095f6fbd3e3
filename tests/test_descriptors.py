"""Few descriptors: clients wait or are told to come back, and no backend is blamed."""

import http.client
import json
import resource
import socket
import time
from pathlib import Path

import pytest

from tests.support.load import chat, run
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def demo(module_dir):
    with Demo(module_dir, pace=20, length=20) as demo:
        yield demo


def limits(pid: int) -> tuple[str, str]:
    line = next(
        line
        for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
        if "open files" in line
    )
    soft, hard = line.split()[3:5]
    return soft, hard


def test_every_process_takes_what_the_hard_limit_allows(tmp_path, demo):
    few = ["sh", "-c", 'ulimit -S -n 256; exec "$@"', "sh"]
    with Gateway(tmp_path, backend_toml(demo), prefix=few) as gateway:
        for pid in (
            gateway.pid,
            gateway.master_pid(),
            gateway.health_pid(),
            *gateway.worker_pids(),
        ):
            found = limits(pid)
            assert found[0] == found[1]


def test_more_clients_than_descriptors_are_all_served(tmp_path, demo):
    """Those beyond half of the limit wait in the backlog, also behind connections that are idle."""
    with Gateway(
        tmp_path,
        backend_toml(demo),
        workers=1,
        prefix=["sh", "-c", 'ulimit -n 128; exec "$@"', "sh"],
    ) as gateway:
        idle = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(60)]
        try:
            statuses: list[int] = []
            asks = [chat("chat", "demo-small", stream=True)] * 120
            run(
                gateway.port,
                asks,
                concurrency=120,
                seen=lambda _, status, __: statuses.append(status),
            )
            assert statuses == [200] * 120
        finally:
            for sock in idle:
                sock.close()
        after = gateway.settled()
        assert after.value("nexus_accounting_imbalance") == 0
        assert after.total("nexus_errors_total") == 0
        assert "Traceback" not in gateway.output()


@pytest.mark.parametrize(
    "environ", [{}, {"NEXUS_WITHOUT_SHORT_WAY": "1"}], ids=["fast path", "Flask"]
)
def test_running_out_is_reported_to_clients_and_counted_against_no_backend(tmp_path, demo, environ):
    """The worker's limit is lowered while it runs, so that a connection to a backend is what
    fails."""
    with Gateway(tmp_path, backend_toml(demo), workers=1, environ=environ) as gateway:
        [pid] = gateway.worker_pids()
        client = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
        body = json.dumps({"model": "demo-small", "messages": [{"role": "user", "content": "x"}]})

        def ask() -> tuple[int, str | None, bytes]:
            client.request(
                "POST", "/v1/chat/completions", body, {"content-type": "application/json"}
            )
            answer = client.getresponse()
            return answer.status, answer.getheader("retry-after"), answer.read()

        client.request("GET", "/livez")
        assert client.getresponse().read() == b"ok\n"  # the client is connected, the backend is not
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(descriptors(pid)), hard))
        began = time.monotonic()
        for _ in range(8):
            status, retry_after, answer = ask()
            assert (status, retry_after) == (503, "1")
            assert json.loads(answer)["error"]["code"] == "at_capacity"
        told = len(gateway.lines("descriptors or memory for connections ran out"))
        assert 1 <= told <= 1 + (time.monotonic() - began), "once a second"
        waiting = socket.create_connection(("127.0.0.1", gateway.port))
        waiting.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        until(lambda: gateway.lines("descriptors or memory for connections ran out"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        waiting.settimeout(10)
        assert waiting.recv(64).startswith(b"HTTP/1.0 200"), "it waited in the backlog"
        waiting.close()
        assert ask()[0] == 200
        client.close()
        after = gateway.settled()
        assert (
            after.value("nexus_requests_total", model="demo_small", backend="demo", status="503")
            == 8
        )
        assert after.value("nexus_errors_total", error_type="rate_limited", model="demo_small") == 8
        assert (
            after.value("nexus_upstream_attempts_total", backend="demo", outcome="rate_limited")
            == 8
        )
        assert after.value("nexus_upstream_attempts_total", backend="demo", outcome="ok") == 1
        assert after.value("nexus_backend_circuit_state", backend="demo") == 0
        assert after.value("nexus_accounting_imbalance") == 0
        assert "Traceback" not in gateway.output()


def descriptors(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/fd").iterdir())
