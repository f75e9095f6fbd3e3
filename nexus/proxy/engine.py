"""What all requests of a process share, and the form of responses. An `Exchange` is one request."""

from __future__ import annotations

import itertools
import logging
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping

import msgspec

from nexus.access.budgets import BudgetSummary
from nexus.access.callers import Caller
from nexus.config.admin_records import Cors
from nexus.config.records import Server
from nexus.errors import RequestFailed
from nexus.fleet.background_table import BackgroundTable
from nexus.fleet.circuits import CircuitTable
from nexus.fleet.history import History, Ring
from nexus.fleet.limit_table import LimitTable
from nexus.fleet.load_table import WINDOW_S, LoadTable, Row
from nexus.fleet.outcome import Outcome
from nexus.fleet.prefix_table import PrefixTable
from nexus.fleet.records import Snapshot
from nexus.fleet.share_table import ShareTable
from nexus.fleet.sticky_table import StickyTable
from nexus.http.address import Address
from nexus.http.connection_pool import ConnectionPool
from nexus.metrics.recorder import Recorder
from nexus.proxy.admission import Admission
from nexus.proxy.background import BackgroundHolds
from nexus.proxy.buffers import Buffers
from nexus.proxy.fair_share import FairShares
from nexus.proxy.fleet_view import NO_FLEET, FleetView, View
from nexus.proxy.limits import Limiter
from nexus.proxy.outcome import log_outcome
from nexus.proxy.place_queue import PlaceQueue
from nexus.proxy.request_log import RequestLog
from nexus.routing.retries import may_retry

log = logging.getLogger("nexus.proxy")


class ClientResponse(msgspec.Struct):
    """What the client gets. `body` must be iterated or closed; the request is recorded then."""

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
        row: Row,
        circuits: CircuitTable,
        ring: Ring,
        limit_table: Callable[[], LimitTable],
        share_table: Callable[[], ShareTable],
        prefixes: PrefixTable | None = None,
        sticky: StickyTable | None = None,
        background_table: Callable[[], BackgroundTable] | None = None,
        environ: Mapping[str, str],
        name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`name` identifies this gateway in Via headers; all its processes share it."""
        self.name = name or f"nexus-{uuid.uuid4().hex[:16]}"
        self.fleet = fleet
        self.recorder = recorder
        self.load = load
        self.environ = environ
        self.clock = clock
        self.circuits = circuits
        self.history = History(ring)
        self.outcome_readers: tuple[Callable[[Outcome], None], ...] = (
            recorder.request_finished,
            self.history.record,
            log_outcome,
        )
        """Each gets the outcome of every request, in this order."""
        self._request_log: RequestLog | None = None
        self.sticky = sticky or StickyTable(None)
        self.limiter = Limiter(limit_table, recorder)
        self.background = BackgroundHolds(
            background_table or (lambda: BackgroundTable(None)), self.limiter, clock
        )
        self.running: dict[int, Caller] = {}
        """The caller of each request with a key, by the `get_ident()` of what serves it."""
        self.places = PlaceQueue()
        self.fair_shares = FairShares(share_table)
        self._id_prefix, self._ids = _id_prefix(), itertools.count(1)
        self.connections = ConnectionPool(clock, on_unsolicited=self._unsolicited)
        self.buffers = Buffers(lambda: self.server().max_buffered_bytes)
        self.admission = Admission(
            load=load,
            row=row,
            circuits=circuits,
            recorder=recorder,
            prefixes=prefixes or PrefixTable(None),
            view=self.view,
            chance=random.random,
        )
        fleet.subscribe(self._apply_settings)

    def _apply_settings(self, snapshot: Snapshot) -> None:
        """Start, change, or stop the request log, as the configuration says."""
        settings, before = snapshot.config.request_log, self._request_log
        if before is not None:
            if settings == before.settings:
                return
            self.outcome_readers = tuple(
                read for read in self.outcome_readers if read != before.record
            )
            before.close()
            self._request_log = None
        if settings.path:
            self._request_log = RequestLog(settings, self.recorder)
            self.outcome_readers = (*self.outcome_readers, self._request_log.record)

    def view(self) -> View:
        view = self.fleet.current()
        if view is None:
            raise RequestFailed(
                "no_backend",
                "The fleet is not known yet; is the health process running?",
                headers={"retry-after": "1"},
            )
        return view

    def _unsolicited(self, address: Address) -> None:
        """Record that the backends at this address sent bytes without a request."""
        view = self.fleet.current()
        if view is None:
            return
        for backend in view.snapshot.backends:
            if view.address(backend) == address:
                self.recorder.unsolicited_response(backend.label)
                log.warning("backend sent bytes without a request", extra={"backend": backend.name})

    def server(self) -> Server:
        """The `[server]` settings; the defaults before a fleet is known."""
        return (self.fleet.current() or NO_FLEET).snapshot.config.server

    def on_heartbeat(self) -> None:
        """Follow the fleet and settle limits. An idle worker calls it, too."""
        view = self.fleet.current()
        if view is not None and view.budgets is not None:
            self.limiter.open()
        self.background.settle()
        self.limiter.flush()

    def ended_keys(self) -> frozenset[str]:
        """The keys whose requests in progress are to be ended."""
        callers = (self.fleet.current() or NO_FLEET).callers
        return callers.ended if callers is not None else frozenset()

    def cors(self) -> Cors:
        """Which web pages may use the gateway; none before a fleet is known."""
        return (self.fleet.current() or NO_FLEET).snapshot.config.cors

    def budgets_of(self, caller: Caller) -> list[BudgetSummary]:
        """How the budgets stand that hold for a caller."""
        view = self.fleet.current()
        if view is None or (budgets := view.budgets) is None:
            return []
        states = budgets.states(self.limiter.accounts(), time.time())
        return [state.summary for state in budgets.of_caller(states, caller)]

    def may_retry(self) -> bool:
        """Whether the host's retry budget allows one more."""
        return may_retry(*self.load.requests_and_retries(time.monotonic_ns()), window_s=WINDOW_S)

    @staticmethod
    def chance() -> float:
        return random.random()

    def new_request_id(self) -> str:
        """A UUID that is unique: its first part is random per process, its last part counts."""
        return f"{self._id_prefix}{next(self._ids):012x}"


def _id_prefix() -> str:
    """The first four groups of a version 4 UUID (RFC 9562), which some servers require."""
    return str(uuid.uuid4())[:24]
