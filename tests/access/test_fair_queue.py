"""The queue's order among keys, over four workers: over the fast path and through Flask."""

import http.client
import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import pytest

from nexus.access.keys import digest
from nexus.config import Config
from nexus.config.access_records import Auth, Key, Team
from nexus.config.routing_records import Queue
from tests.support.polling import until
from tests.support.processes import Workers, backend
from tests.support.replay import Replay, whole

pytestmark = pytest.mark.e2e

WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}
KEYS = {id_: f"sk-nx-of-a-test-of-the-queue-{id_}" for id_ in ("a", "b", "c", "new")}
TEAMS = {"c": "heavy"}


def config(**queue) -> Config:
    return Config(
        auth=Auth(mode="optional"),
        teams=[Team(name="heavy", weight=3)],
        keys=[
            Key(
                id=id_,
                sha256=[digest(key)],
                team=TEAMS.get(id_, ""),
                priority="high" if id_ == "a" else "normal",
            )
            for id_, key in KEYS.items()
        ],
        queue=Queue(**queue),
    )


class Backend:
    """Serves one request at a time, each when the test lets it; `served` has their keys."""

    def __init__(self, replay: Replay) -> None:
        self.url = replay.url
        self.served: list[str] = []
        self._go = threading.Semaphore(0)
        replay.scripts["m"] = self._answer

    def _answer(self, body, sock) -> None:
        self.served.append(body["user"])
        self._go.acquire(timeout=60)
        usage = {"prompt_tokens": 100, "completion_tokens": 400}
        whole(200, {"choices": [], "usage": usage})(body, sock)

    def next(self, count: int = 1) -> list[str]:
        """Let as many requests end, one after another; returns who is served then."""
        before = len(self.served)
        for number in range(1, count + 1):
            self._go.release()
            until(lambda number=number: len(self.served) >= before + number, every_s=0.001)
        return self.served[before:]

    def open_all(self) -> None:
        self._go.release(10_000)


class Clients:
    """Keys that keep so many requests in the gateway, until they are told to stop."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()

    def keep(self, served: list[str], **counts: int) -> None:
        """Keep so many requests of each key in the gateway.

        One is at the backend before the others arrive: the backend's limit is exact only within a
        worker, so that requests which arrive together may exceed it.
        """
        first, *others = [key for key, count in counts.items() for _ in range(count)]
        self._start(first, {}, forever=True)
        until(lambda: served)
        for key in others:
            self._start(key, {}, forever=True)

    def send(self, key: str, **headers: str) -> None:
        self._start(key, headers, forever=False)

    def _start(self, key: str, headers: dict[str, str], *, forever: bool) -> None:
        def run() -> None:
            for _ in itertools.count() if forever else range(1):
                if self._stop.is_set():
                    return
                self._ask(key, headers)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def _ask(self, key: str, headers: dict[str, str]) -> None:
        port = self._workers.port
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            message = {"role": "user", "content": "Hello"}
            body = json.dumps({"model": "m", "messages": [message], "user": key})
            given = {"content-type": "application/json", "x-nexus-key": KEYS.get(key, "none")}
            connection.request("POST", "/v1/chat/completions", body, given | headers)
            connection.getresponse().read()

    def waiting(self, count: int) -> None:
        """Wait until exactly so many requests are in the queue."""
        until(lambda: self._workers.scrape().value("nexus_queue_depth") == count)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


@pytest.fixture(scope="module", params=WAYS)
def workers(request, tmp_path_factory) -> Iterator[Workers]:
    directory = tmp_path_factory.mktemp("fair")
    with Workers(directory, config(), [], workers=4, environ=WAYS[request.param]) as workers:
        yield workers


@pytest.fixture
def crowd(workers) -> Iterator[tuple[Workers, Backend, Clients]]:
    with Replay() as replay:
        served, clients = Backend(replay), Clients(workers)
        try:
            yield workers, served, clients
        finally:
            served.open_all()
            clients.stop()


def publish(workers: Workers, served: Backend, **queue) -> None:
    workers.publish(config(**queue), [backend("one", served.url, "m", max_concurrent=1)])


def test_one_request_is_served_before_the_fifty_of_another_key(crowd):
    workers, served, clients = crowd
    publish(workers, served)
    clients.keep(served.served, a=51)
    clients.waiting(50)
    assert served.next(3) == ["a"] * 3
    clients.waiting(50)
    clients.send("b")
    clients.waiting(51)
    assert served.next() == ["b"]
    assert served.next(2) == ["a"] * 2


def test_keys_share_by_weight_however_many_requests_each_has(crowd):
    workers, served, clients = crowd
    publish(workers, served)
    clients.keep(served.served, a=12, b=4, c=8)
    clients.waiting(23)
    found = Counter(served.next(60)[10:])
    assert abs(found["c"] - 30) <= 4, found
    assert abs(found["a"] - 10) <= 4, found
    assert abs(found["b"] - 10) <= 4, found


def test_a_high_priority_goes_before_every_share(crowd):
    workers, served, clients = crowd
    publish(workers, served)
    clients.keep(served.served, a=10)
    clients.waiting(9)
    served.next(2)
    clients.send("new")
    clients.send("a", **{"x-nexus-priority": "high"})
    clients.waiting(11)
    assert served.next(2) == ["a", "new"]


def test_a_key_that_may_not_go_first_does_not(crowd):
    workers, served, clients = crowd
    publish(workers, served, order="arrival")
    for number, priority in enumerate(("normal", "normal", "high")):
        clients.send("b" if priority == "high" else "a", **{"x-nexus-priority": priority})
        until(lambda: len(served.served) == 1)
        clients.waiting(number)
    assert served.next(2) == ["a", "b"]


def test_in_the_order_of_arrival_no_key_goes_before_another(crowd):
    workers, served, clients = crowd
    publish(workers, served, order="arrival")
    for number in range(6):
        clients.send("a")
        until(lambda: len(served.served) == 1)
        clients.waiting(number)
    clients.send("b")
    clients.waiting(6)
    assert served.next(6)[-1] == "b"
