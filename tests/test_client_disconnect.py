"""A client that goes away: the backend's connection is closed at once, the request is counted as
499, nothing leaks."""

import json
import random
import selectors
import socket
import threading
import time

import pytest

from nexus.config import Config
from nexus.config.records import Server
from nexus.config.routing_records import Queue
from tests.support.load import chat
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, Workers, backend, backend_toml

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def slow(module_dir):
    with Demo(module_dir, name="slow", pace=20, length=10_000) as demo:
        yield demo


@pytest.fixture(scope="module")
def gateway(module_dir, slow):
    with Gateway(module_dir, backend_toml(slow)) as gateway:
        yield gateway


def send(gateway: Gateway, *, stream: bool, headers: str = "") -> socket.socket:
    body = json.dumps(chat("x", "demo-small", stream=stream).body).encode()
    sock = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
    sock.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        + headers.encode()
        + b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )
    return sock


def gone(gateway: Gateway) -> float:
    return gateway.scrape().value(
        "nexus_requests_total", model="demo_small", backend="slow", status="499"
    )


@pytest.mark.parametrize(
    ("stream", "headers", "read_first"),
    [
        (True, "", True),  # in the middle of a stream
        (True, "x-demo-fault: hang\r\n", False),  # before the first byte of a stream
        (False, "x-demo-fault: delay=60\r\n", False),  # while it waits for a whole response
    ],
)
def test_client_goes_away(gateway, slow, stream, headers, read_first):
    before, lines = gone(gateway), len(gateway.lines("request"))
    sock = send(gateway, stream=stream, headers=headers)
    if read_first:
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
    until(lambda: slow.tally()["open"] == 1)
    assert gateway.scrape().value("nexus_pending_requests", backend="slow") == 1
    sock.close()
    until(lambda: slow.tally()["open"] == 0, within_s=2)
    until(lambda: gone(gateway) == before + 1)
    scrape = gateway.scrape()
    assert scrape.value("nexus_pending_requests", backend="slow") == 0
    assert scrape.total("nexus_errors_total", error_type="client_disconnect") == before + 1
    assert gateway.request_line(lines)["status"] == 499


def test_bytes_sent_ahead_are_no_sign_of_leaving(gateway, slow):
    """A pipelined request waits for its turn; the first is answered in full."""
    sock = send(gateway, stream=False, headers="x-demo-fault: delay=0.3\r\n")
    sock.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    answer = b""
    while data := sock.recv(65536):
        answer += data
    sock.close()
    assert answer.count(b"HTTP/1.1 200") == 2
    assert answer.endswith(b"ok\n")


@pytest.mark.parametrize(
    "headers", ["x-demo-fault: delay=60\r\n", "x-demo-fault: delay=60\r\nkeep-alive: 5\r\n"]
)
def test_client_that_leaves_after_bytes_sent_ahead(gateway, slow, headers):
    """On the fast path and on gunicorn's."""
    before = gone(gateway)
    sock = send(gateway, stream=False, headers=headers)
    until(lambda: slow.tally()["open"] == 1)
    sock.sendall(b"\r\n")
    time.sleep(0.2)  # more than once it is looked at, and has not left
    assert slow.tally()["open"] == 1
    sock.close()
    until(lambda: slow.tally()["open"] == 0, within_s=2)
    until(lambda: gone(gateway) == before + 1)


CLIENTS = 1000
AT_ONCE = 200
CAPACITY = 60


class Upstream:
    """Notes when a backend's side of each connection is seen to end; the backend never responds
    by itself."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.ended: dict[str, float] = {}
        self.reached: set[str] = set()
        self._stop = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        selector = selectors.DefaultSelector()
        self.listener.setblocking(False)
        selector.register(self.listener, selectors.EVENT_READ)
        seen: dict[socket.socket, list] = {}
        while not self._stop:
            for key, _ in selector.select(0.05):
                if key.fileobj is self.listener:
                    sock, _ = self.listener.accept()
                    sock.setblocking(False)
                    seen[sock] = [b"", ""]
                    selector.register(sock, selectors.EVENT_READ)
                else:
                    self._read(selector, key.fileobj, seen)
        for sock in seen:
            sock.close()
        selector.close()

    def _read(self, selector, sock: socket.socket, seen: dict) -> None:
        try:
            data = sock.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            self.ended[seen.pop(sock)[1]] = time.monotonic()
            selector.unregister(sock)
            sock.close()
            return
        seen[sock][0] += data
        head, found, _ = seen[sock][0].partition(b"\r\n\r\n")
        if found and not seen[sock][1]:
            lines = head.decode().lower().split("\r\n")
            seen[sock][1] = next(
                line.split(": ")[1] for line in lines if line.startswith("x-request-id")
            )
            self.reached.add(seen[sock][1])
            if b"x-begin: yes" in head.lower():  # into a stream: the role and a word
                event = b'data: {"choices":[{"delta":{"role":"assistant","content":"Hi"}}]}\n\n'
                sock.sendall(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                    b"transfer-encoding: chunked\r\n"
                    b"\r\n" + b"%x\r\n%s\r\n" % (len(event), event)
                )

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        self.listener.close()


def test_a_thousand_clients_leave_at_random(module_dir):
    """Before the first token, in the middle of a stream, while queued: each is counted once, and
    nothing is left."""
    upstream = Upstream()
    directory = module_dir / "thousand"
    directory.mkdir()
    config = Config(queue=Queue(max_size=CLIENTS), server=Server(max_concurrent_requests=CLIENTS))
    limited = [backend("up", upstream.url, "m", max_concurrent=CAPACITY)]
    rng = random.Random(4)
    left: dict[str, float] = {}
    try:
        with Workers(directory, config, limited, workers=2) as workers:
            open_: list[tuple[float, str, socket.socket]] = []
            for number in range(CLIENTS):
                name = f"client-{number}"
                sock = socket.create_connection(("127.0.0.1", workers.port), timeout=10)
                starts = number % 3 == 0
                body = json.dumps(chat("x", "m", stream=starts or number % 2 == 0).body).encode()
                begins = f"x-begin: {'yes' if starts else 'no'}"
                sock.sendall(
                    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
                    b"content-type: application/json\r\n"
                    + f"x-request-id: {name}\r\n{begins}\r\n".encode()
                    + b"content-length: %d\r\n\r\n%s" % (len(body), body)
                )
                open_.append((time.monotonic() + rng.expovariate(1.0), name, sock))
                while len(open_) >= AT_ONCE or (number == CLIENTS - 1 and open_):
                    open_.sort(key=lambda entry: entry[0])
                    due, name, sock = open_.pop(0)
                    time.sleep(max(0.0, due - time.monotonic()))
                    left[name] = time.monotonic()
                    sock.close()
            scrape = until(
                lambda: (
                    (s := workers.settled()).value(
                        "nexus_requests_total", model="m", backend="up", status="499"
                    )
                    and s
                )
            )
            counted = {
                b: scrape.value("nexus_requests_total", model="m", backend=b, status="499")
                for b in ("up", "none")
            }
            assert sum(counted.values()) == CLIENTS == scrape.total("nexus_requests_total")
            assert scrape.series("nexus_upstream_attempts_total", "backend", "outcome") == {
                ("up", "client_disconnect"): counted["up"]
            }
            # A few left after their place was taken and before their request was sent.
            assert 0.9 * counted["up"] < len(upstream.reached) <= counted["up"]
            assert counted["none"] > 50, "some left while they were queued"
            assert scrape.total("nexus_errors_total", error_type="client_disconnect") == CLIENTS
            assert scrape.value("nexus_pending_requests", backend="up") == 0
            assert scrape.value("nexus_queue_depth") == 0
            assert scrape.value("nexus_accounting_imbalance") == 0
            assert scrape.value("nexus_backend_circuit_state", backend="up") == 0
            until(lambda: upstream.reached <= upstream.ended.keys())
            delays = sorted(upstream.ended[name] - left[name] for name in upstream.reached)
            print(
                f"{len(delays)} reached the backend; closed after "
                f"{delays[len(delays) // 2] * 1000:.1f} "
                f"ms in the middle, "
                f"{delays[-1] * 1000:.1f} ms at most; {counted['none']:.0f} left the queue"
            )
            assert delays[-1] < 30, "the client's end closed it, and no time limit"
    finally:
        upstream.close()
