"""The operations port under attack: floods, ambiguous framing, large bodies; it goes on, and so
does probing."""

import contextlib
import json
import resource
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from nexus.fleet.snapshot import SnapshotReader
from tests.support.metrics import scrape
from tests.support.polling import until
from tests.support.processes import Demo, Process, backend_toml, clean_environ, free_port, get_json

pytestmark = pytest.mark.e2e


class Health(Process):
    """A health process alone, with few descriptors."""

    def __init__(self, directory, config, *, descriptors):
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.run_dir = directory / "run"
        file = directory / "health.toml"
        file.write_text(
            f"""
            [server]
            run_dir = "{self.run_dir}"
            [health_check]
            interval_seconds = 0.2
            timeout_seconds = 2
            listen = "127.0.0.1:{self.port}"
            [logging]
            format = "json"
            {config}
            """
        )
        limited = (
            f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({descriptors}, "
            f"{descriptors}))"
        )
        start = f"{limited}; import runpy; runpy.run_module('nexus.health', run_name='__main__')"
        super().__init__(
            [sys.executable, "-c", start, "-c", str(file)],
            log=directory / "health.log",
            environ=clean_environ(),
        )
        until(lambda: get_json(f"{self.base}/health")["status"] == "healthy", within_s=20)

    def talk(self, data, *, timeout=5.0):
        """What comes back for these bytes, until the connection ends."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as sock:
            sock.sendall(data)
            received = b""
            with contextlib.suppress(ConnectionResetError):
                while part := sock.recv(65536):
                    received += part
            return received

    def memory_kib(self):
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(
            int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")
        )

    def shown_at(self):
        """When the state of the dashboard was last written."""
        return until(lambda: (self.run_dir / "live.json").stat().st_mtime_ns)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    with Demo(tmp_path_factory.mktemp("demo"), pace=0) as demo:
        yield demo


@pytest.fixture(scope="module")
def health(tmp_path_factory, demo):
    with Health(tmp_path_factory.mktemp("health"), backend_toml(demo), descriptors=256) as health:
        yield health


def published(health):
    """The backend as workers know it."""
    [backend] = SnapshotReader(health.run_dir).read().backends
    return backend


def probes(health):
    return scrape(health.base).total("nexus_backend_latency_seconds_count")


def test_a_flood_of_idle_connections_keeps_nobody_out(health, demo):
    pid, idle = health.pid, []
    try:
        for _ in range(400):
            sock = socket.create_connection(("127.0.0.1", health.port), timeout=5)
            sock.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n")  # never ends
            idle.append(sock)
        before = probes(health)
        shown = health.shown_at()
        for _ in range(5):
            assert get_json(f"{health.base}/health")["status"] == "healthy"
        until(lambda: probes(health) > before)
        until(lambda: health.shown_at() != shown)
        token = (health.run_dir / "admin.token").read_bytes()
        head = (
            b" HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\n"
        )
        for change, draining in ((b"drain", True), (b"undrain", False)):
            answer = health.talk(
                b"POST /admin/backends/demo/"
                + change
                + head
                + b"Authorization: Bearer "
                + token
                + b"\r\n\r\n"
            )
            assert answer.startswith(b"HTTP/1.1 200 ")
            until(lambda draining=draining: published(health).draining is draining)
    finally:
        for sock in idle:
            sock.close()
    assert health.child.poll() is None
    assert health.pid == pid
    assert "Traceback" not in health.output()
    assert "cannot be published" not in health.output()


def test_out_of_descriptors_it_lives_and_goes_on(tmp_path, demo):
    """Other descriptors than the port's are used up: what cannot be written is logged, and
    written later."""
    with Health(tmp_path, backend_toml(demo), descriptors=256) as health:

        def limit(soft):
            resource.prlimit(health.pid, resource.RLIMIT_NOFILE, (soft, 256))

        in_use = len(list(Path(f"/proc/{health.pid}/fd").iterdir()))
        limit(in_use - 2)
        until(lambda: "cannot be written" in health.output())
        limit(256)
        shown = health.shown_at()
        until(lambda: health.shown_at() != shown, within_s=20)
        assert get_json(f"{health.base}/health")["status"] == "healthy"
        assert health.child.poll() is None


GET = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n"
POST = b"POST /admin/backends HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 400),
        (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (POST + b"Content-Length: +2\r\n\r\n{}", 400),
        (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (GET + b"X-A: b\r\n folded\r\n\r\n", 400),
        (GET + b"X-A: b\nX-C: d\r\n\r\n", 400),
        (GET + b"Host: 127.0.0.1\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (GET + b"X-A: b\r\n" * 101 + b"\r\n", 431),
        (GET + b"X-A: " + b"b" * 20_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 414),
        (POST + b"Content-Length: 100000\r\n\r\n" + b" " * 100_000, 413),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, int) else None,
)
def test_what_is_ambiguous_or_too_long_is_refused(health, head, status):
    answer = health.talk(head + b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1, answer  # nothing behind it is taken for a request
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    _, _, body = answer.partition(b"\r\n\r\n")
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in health.output()


def test_a_chunked_body_has_the_same_bound(health):
    token = (health.run_dir / "admin.token").read_bytes()
    before = health.memory_kib()
    with socket.create_connection(("127.0.0.1", health.port), timeout=10) as sock:
        sock.sendall(
            POST + b"Authorization: Bearer " + token + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            for _ in range(64):
                sock.sendall(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")
    assert health.memory_kib() - before < 16 * 1024
    answer = health.talk(
        POST + b"Transfer-Encoding: chunked\r\n\r\n11000\r\n" + b" " * 0x11000 + b"\r\n0\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_requests_on_a_kept_connection(health):
    with socket.create_connection(("127.0.0.1", health.port), timeout=5) as sock:
        for _ in range(3):
            sock.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            received = b""
            while not received.endswith(b"ok\n"):
                received += sock.recv(65536)
            assert received.startswith(b"HTTP/1.1 200 ")


def test_a_body_that_does_not_come_is_not_waited_for(health):
    began = time.monotonic()
    answer = health.talk(POST + b"Content-Length: 10\r\n\r\n{", timeout=30)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began > 5  # the limit, not the machine, ended it


def test_deep_json_is_a_bad_request(health):
    token = (health.run_dir / "admin.token").read_text()
    body = b'{"name":' + b"[" * 30_000
    request = urllib.request.Request(
        f"{health.base}/admin/backends",
        data=body,
        headers={"authorization": f"Bearer {token}", "content-type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    with refused.value as error:
        assert error.code == 400
        assert "not a JSON object" in json.load(error)["error"]["message"]
    assert "Traceback" not in health.output()
