"""Waiting for room: order, priorities, limits and time-outs, in one worker exactly and over four
as documented."""

import http.client
import json
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from nexus.config import Config
from nexus.config.records import Server
from nexus.config.routing_records import Queue, Routing
from tests.support.load import chat, run
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Demo, Workers, backend
from tests.support.replay import Replay, in_packets, whole

pytestmark = pytest.mark.e2e

CAPACITY = 4


class Client(threading.Thread):
    """One request; what came of it, and when."""

    def __init__(
        self,
        port: int,
        *,
        priority: str = "normal",
        stream: bool = False,
        model: str = "m",
        user: int = 0,
    ) -> None:
        super().__init__()
        self.port, self.priority, self.stream, self.model, self.user = (
            port,
            priority,
            stream,
            model,
            str(user),
        )
        self.status, self.headers, self.content = 0, {}, b""
        self.ended = 0.0
        self.start()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = json.dumps(
            chat("x", self.model, stream=self.stream, max_tokens=3, user=self.user).body
        )
        headers = {"content-type": "application/json", "x-nexus-priority": self.priority}
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        self.status, self.headers = (
            answer.status,
            {name.lower(): value for name, value in answer.getheaders()},
        )
        self.content = answer.read()
        self.ended = time.monotonic()
        connection.close()


def config(**queue) -> Config:
    return Config(
        queue=Queue(**queue),
        routing=Routing(strategy="smart"),
        server=Server(request_timeout_seconds=60),
    )


@pytest.fixture(scope="module")
def demo(module_dir: Path):
    with Demo(module_dir, name="limited", models=["m"], pace=0, fault="delay=0.25") as demo:
        yield demo


@pytest.fixture(scope="module")
def one(module_dir: Path, demo: Demo):
    directory = module_dir / "one"
    directory.mkdir()
    with Workers(
        directory, config(), [backend("limited", demo.url, "m", max_concurrent=CAPACITY)]
    ) as workers:
        yield workers


def depth(workers: Workers) -> float:
    return workers.scrape().value("nexus_queue_depth")


MOVED = (
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_queue_rejections_total",
    "nexus_queue_wait_seconds_count",
    "nexus_upstream_attempts_total",
)


def changes(before, after) -> dict[str, float]:
    return {
        f"{name.removeprefix('nexus_')}{{{','.join(v for _, v in sorted(labels))}}}": change
        for (name, labels), change in moved(before, after, MOVED).items()
    }


def test_two_hundred_arrivals_at_one_worker(one: Workers):
    """Four are served at once, a hundred wait, the rest are turned away; those of high priority
    go first, then in order."""
    go, served = threading.Event(), []
    event = (
        b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    )

    def answer(body, sock) -> None:
        served.append(int(body["user"]))
        go.wait(60)
        time.sleep(0.03)  # so that a thread which is late lets few others by
        (in_packets(event, 10_000) if body["stream"] else whole(200, {"choices": []}))(body, sock)

    with Replay() as replay:
        replay.scripts["m"] = answer
        one.publish(
            config(max_size=100, max_wait_seconds=60),
            [backend("limited", replay.url, "m", max_concurrent=CAPACITY)],
        )
        before = one.settled()
        clients: list[Client] = []
        for number in range(200):
            high = number % 4 == 0
            clients.append(
                Client(
                    one.port,
                    priority="high" if high else "normal",
                    stream=number % 2 == 0,
                    user=number,
                )
            )
            # Each is known to have found its place before the next is sent: so the order of arrival
            # is ours.
            if number < CAPACITY:
                until(lambda number=number: len(served) == number + 1, every_s=0.001)
            elif number < CAPACITY + 100:
                until(lambda number=number: depth(one) == number + 1 - CAPACITY, every_s=0.001)
        refused = clients[CAPACITY + 100 :]
        for client in refused:
            client.join(60)
        assert {client.status for client in refused} == {503}
        assert len(served) == CAPACITY
        assert one.scrape().value("nexus_pending_requests", backend="limited") == CAPACITY + 100
        go.set()
        for client in clients:
            client.join(60)
    assert {client.status for client in clients[: CAPACITY + 100]} == {200}
    waited = range(CAPACITY, CAPACITY + 100)
    expected = [n for n in waited if n % 4 == 0] + [n for n in waited if n % 4]
    # As many as have a place reach the backend at once, in whatever order its threads have; one may
    # be late.
    assert sorted(served[CAPACITY:]) == sorted(expected)
    assert all(
        abs(served[CAPACITY:].index(n) - place) < 3 * CAPACITY for place, n in enumerate(expected)
    )
    after = one.settled()
    assert changes(before, after) == {
        "requests_total{limited,m,200}": 104,
        "requests_total{none,m,503}": 96,
        "errors_total{queued,m}": 96,
        "queue_rejections_total{full}": 96,
        "queue_wait_seconds_count{}": 100,
        "upstream_attempts_total{limited,ok}": 104,
    }
    assert all(client.headers["retry-after"] == "1" for client in refused)
    assert all(json.loads(client.content)["error"]["code"] == "queue_full" for client in refused)
    assert after.value("nexus_queue_depth") == 0
    assert after.value("nexus_pending_requests", backend="limited") == 0


def test_order_within_a_worker(one: Workers, demo: Demo):
    """With everything queued before anything ends: high priority in order, then the others in
    order."""
    one.publish(config(max_size=100), [backend("limited", demo.url, "m", max_concurrent=1)])
    demo.fault("delay=1.5")
    first = Client(one.port)
    until(lambda: demo.tally()["open"] == 1)
    demo.fault("delay=0.15")  # far apart, so that a busy host sees the ends in their order
    waiting: list[Client] = []
    for number in range(20):
        waiting.append(
            Client(
                one.port, priority="high" if number % 3 == 0 else "normal", stream=number % 2 == 0
            )
        )
        until(lambda number=number: depth(one) == number + 1, every_s=0.001)
    assert one.scrape().value("nexus_pending_requests", backend="limited") == 21, (
        "queued ones count as pending"
    )
    for client in (first, *waiting):
        client.join(60)
    demo.fault("delay=0.25")
    assert {client.status for client in waiting} == {200}
    served = sorted(range(20), key=lambda number: waiting[number].ended)
    assert served == [n for n in range(20) if n % 3 == 0] + [n for n in range(20) if n % 3]


def test_longest_wait(one: Workers, demo: Demo):
    one.publish(config(max_wait_seconds=0.3), [backend("limited", demo.url, "m", max_concurrent=1)])
    demo.fault("delay=1")
    before = one.settled()
    first = Client(one.port)
    until(lambda: demo.tally()["open"] == 1)
    started = time.monotonic()
    late = [Client(one.port, stream=stream) for stream in (False, True)]
    for client in late:
        client.join(10)
    assert min(client.ended for client in late) - started >= 0.3
    first.join(10)
    demo.fault("delay=0.25")
    assert [client.status for client in (first, *late)] == [200, 503, 503]
    assert {json.loads(client.content)["error"]["code"] for client in late} == {"queue_timeout"}
    assert json.loads(late[0].content)["context"]["available_backends"] == ["limited"]
    assert changes(before, one.settled()) == {
        "requests_total{limited,m,200}": 1,
        "requests_total{none,m,503}": 2,
        "errors_total{queued,m}": 2,
        "queue_rejections_total{late}": 2,
        "queue_wait_seconds_count{}": 2,
        "upstream_attempts_total{limited,ok}": 1,
    }


def test_without_a_queue(one: Workers, demo: Demo):
    one.publish(config(enabled=False), [backend("limited", demo.url, "m", max_concurrent=1)])
    first = Client(one.port)
    until(lambda: demo.tally()["open"] == 1)
    second = Client(one.port)
    second.join(10)
    first.join(10)
    assert (first.status, second.status, json.loads(second.content)["error"]["code"]) == (
        200,
        503,
        "at_capacity",
    )


@pytest.mark.parametrize(
    ("fault", "status"),
    [("status=429,retry_after=1", 429), ("status=503,message=Loading model", 503)],
)
def test_a_busy_backend_is_waited_for(one: Workers, demo: Demo, fault: str, status: int):
    """The next request waits for the time that it said, or for a second, and reaches it."""
    one.publish(config(), [backend("limited", demo.url, "m")])
    demo.fault(fault)
    assert (client := Client(one.port)).join() is None
    demo.fault("")
    assert client.status == status
    started = time.monotonic()
    again = Client(one.port)
    again.join(10)
    demo.fault("delay=0.25")
    assert again.status == 200
    assert again.ended - started > 0.5


def test_over_four_workers(tmp_path: Path, demo: Demo):
    """The limit is held within one for each other worker, and nobody starves."""
    demo.fault("delay=0.02")
    with Workers(
        tmp_path,
        config(max_size=500),
        [backend("limited", demo.url, "m", max_concurrent=CAPACITY)],
        workers=4,
    ) as workers:
        most, stop = [0], threading.Event()

        def watch() -> None:
            while not stop.is_set():
                most[0] = max(most[0], demo.tally()["open"])

        watcher = threading.Thread(target=watch)
        watcher.start()
        statuses: Counter[int] = Counter()

        def seen(_, status: int, __: bytes) -> None:
            statuses[status] += 1

        started = time.monotonic()
        run(workers.port, [chat("x", "m", max_tokens=3)] * 600, concurrency=60, seen=seen)
        took_s = time.monotonic() - started
        stop.set()
        watcher.join()
        demo.fault("delay=0.25")
        assert statuses == {200: 600}
        assert most[0] <= CAPACITY + 3, "one for each other worker that looks in the same instant"
        scrape = workers.settled()
        assert scrape.value("nexus_queue_wait_seconds_count") > 100
        lines = until(lambda: found if len(found := workers.lines("request")) == 600 else None)
        longest_s = max(line["duration_ms"] for line in lines) / 1000
        assert longest_s < took_s / 2, "each client has ten turns, and waits for none as for five"
        assert scrape.value("nexus_queue_depth") == 0
        assert scrape.value("nexus_accounting_imbalance") == 0
