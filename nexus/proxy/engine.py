"""What all requests of a process share, and the shape of what they get; one request's life is an `Exchange`."""

from __future__ import annotations

import itertools
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from nexus.errors import RequestFailed
from nexus.fleet.load import LoadTable
from nexus.metrics.recorder import Recorder
from nexus.proxy.connections import Connections
from nexus.proxy.view import FleetView, View


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A proxied path, and the field of the body that it cannot do without."""

    name: str
    path: str
    required: str


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("chat_completions", "/v1/chat/completions", "messages"),
    Endpoint("completions", "/v1/completions", "prompt"),
    Endpoint("embeddings", "/v1/embeddings", "input"),
)


@dataclass(slots=True)
class Answer:
    """What the client gets. `body` must be iterated or closed; the request is recorded when it ends."""

    status: int
    headers: list[tuple[str, str]]
    body: Iterator[bytes]


class Engine:
    """What the requests of one process share. Safe from any greenlet or thread."""

    def __init__(
        self,
        *,
        fleet: FleetView,
        recorder: Recorder,
        load: LoadTable,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fleet = fleet
        self.recorder = recorder
        self.load = load
        self.environ = environ
        self.clock = clock
        self.connections = Connections(clock)
        self._turns = itertools.count(random.randrange(1 << 16))

    def view(self) -> View:
        view = self.fleet.current()
        if view is None:
            raise RequestFailed(
                "no_backend", "The fleet is not known yet; is the health process running?", headers={"retry-after": "1"}
            )
        return view

    def next_turn(self) -> int:
        return next(self._turns)

    @staticmethod
    def chance() -> float:
        return random.random()

    @staticmethod
    def new_request_id() -> str:
        return f"req_{uuid.uuid4().hex}"
