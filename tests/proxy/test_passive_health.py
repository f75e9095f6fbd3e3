"""What the ends of attempts say about backends: for every row of the table of faults, and for
whole requests."""

import time

import msgspec
import pytest

from nexus.config import BackendConfig, Config
from nexus.config.routing_records import CircuitBreaker
from nexus.errors import FAULTS, Blame
from nexus.fleet.circuits import Circuit
from nexus.fleet.records import Backend
from nexus.fleet.slot_lease import SlotLease
from nexus.metrics.recorder import Recorder
from nexus.metrics.store import Store
from nexus.proxy.passive_health import REFUSED, Evidence, PassiveHealth
from nexus.routing.router import Choice

SECOND = 1_000_000_000
CONFIG = Config(circuit_breaker=CircuitBreaker(failures=3))
SAYS_NOTHING = {
    "client_gone",
    "shutdown",
    "stopping",
    "out_of_time",
    "internal",
    "at_capacity",
    "backend_key_unusable",
}


class Attempt(msgspec.Struct):
    choice: Choice
    config: Config = CONFIG
    probe_lease_ns: int = 0


class Host:
    """The shared tables of a host, at a time that the test sets."""

    def __init__(self) -> None:
        self.slot_lease, self.now_ns = SlotLease.private(), 100 * SECOND
        recorder = Recorder(Store(self.slot_lease), self.slot_lease)
        self.health = PassiveHealth(
            self.slot_lease.circuits,
            self.slot_lease.table,
            recorder,
            clock_ns=lambda: self.now_ns,
            chance=lambda: 0.5,
        )

    def attempt(self, column: int, *, lease: bool = False, model: str = "m") -> Attempt:
        backend = Backend(
            config=BackendConfig(name=f"b{column}", url="http://b"),
            label=f"b{column}",
            column=column,
        )
        attempt = Attempt(Choice(backend, model, "capability-match"))
        if lease:
            attempt.probe_lease_ns = self.health.acquire_probe_lease(backend, CONFIG)
        return attempt

    def end(
        self, attempt: Attempt, name: str | None, *, retry_after_s: float | None = None
    ) -> None:
        """An attempt that was the only one of its request."""
        evidence = Evidence(self.health)
        fault = FAULTS[name] if name else None
        if fault is None:
            self.health.served(attempt)
        elif fault.blame is Blame.BACKEND:
            evidence.failed(attempt, fault, served=False)
        else:
            self.health.blameless(attempt, fault, retry_after_s)
        evidence.close()

    def open(self, column: int) -> None:
        """Open a circuit that is half open by now."""
        opened = Circuit(open_until=99 * SECOND, consecutive_opens=1)
        assert self.slot_lease.circuits.store(column, Circuit(), opened)

    def state(self, column: int) -> str:
        return self.slot_lease.circuits.state(column, self.now_ns)

    def status(self, column: int, model: str = "m"):
        return self.health.status(column, model, CONFIG)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.mark.parametrize("name", [None, *FAULTS])
def test_half_open_probe(host, name):
    host.open(3)
    attempt = host.attempt(3, lease=True)
    assert attempt.probe_lease_ns == host.now_ns + 5 * SECOND
    assert not host.attempt(3, lease=True).probe_lease_ns, "another has the right"
    host.end(attempt, name)
    fault = FAULTS[name] if name else None
    expected = (
        "half_open"
        if name in SAYS_NOTHING
        else "open"
        if fault and fault.blame is Blame.BACKEND
        else "closed"
    )
    assert host.state(3) == expected
    assert bool(host.attempt(3, lease=True).probe_lease_ns) is (expected == "half_open"), (
        "the right to try was given back"
    )


def test_half_open_probe_that_takes_long_keeps_nobody_out(host):
    host.open(3)
    slow = host.attempt(3, lease=True)
    host.now_ns += 5 * SECOND
    quick = host.attempt(3, lease=True)
    assert quick.probe_lease_ns
    host.end(quick, None)
    assert host.state(3) == "closed"
    host.end(slow, "backend_5xx")
    assert host.state(3) == "closed", "it is one failure like any other by then"


@pytest.mark.parametrize("name", FAULTS)
def test_who_is_counted(host, name):
    """Three requests fail, each once: circuits open for what is the backend's fault, and for
    nothing else."""
    for _ in range(3):
        host.end(host.attempt(3), name)
    assert host.state(3) == ("open" if FAULTS[name].blame is Blame.BACKEND else "closed")


def of_request(host: Host, *attempts: tuple[int, str | None]) -> None:
    """A request that tried these backends, with what came of it at each."""
    evidence = Evidence(host.health)
    for column, name in attempts:
        if name is None:
            evidence.served()
            host.health.served(host.attempt(column))
        else:
            evidence.failed(host.attempt(column), FAULTS[name], served=name.startswith("stream"))
    evidence.close()


@pytest.mark.parametrize(
    ("attempts", "counted"),
    [
        ([(1, "backend_5xx")], {1}),
        ([(1, "backend_5xx")] * 3, {1}),  # its retries at the same backend
        ([(1, "backend_5xx"), (1, None)], {1}),
        ([(1, "backend_5xx"), (2, "backend_5xx")], set()),  # it is the request that fails
        ([(1, "backend_5xx"), (2, "connection_lost"), (1, "backend_5xx")], set()),
        ([(1, "first_byte_timeout"), (2, "first_byte_timeout")], set()),
        ([(1, "backend_5xx"), (2, "error_event"), (3, None)], {1, 2}),  # it was good after all
        ([(1, "connect_failed"), (2, "connect_failed")], {1, 2}),  # no request can cause that
        ([(1, "connect_failed"), (2, "backend_5xx")], {1, 2}),
        ([(1, "backend_5xx"), (2, "stream_reset")], {1, 2}),  # a stream had come to its content
    ],
)
def test_one_request_counts_once_for_a_backend(host, attempts, counted):
    for _ in range(2):
        of_request(host, *attempts)
    found = {
        column: host.slot_lease.table.outcomes(column, time.monotonic_ns())[1]
        for column in (1, 2, 3)
    }
    assert found == {column: 2 if column in counted else 0 for column in (1, 2, 3)}
    assert {host.state(column) for column in (1, 2, 3)} == {"closed"}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refusal_elsewhere_shows_that_the_request_was_at_fault(host, name):
    for _ in range(10):
        evidence = Evidence(host.health)
        evidence.failed(host.attempt(1), FAULTS["backend_5xx"], served=False)
        evidence.refused()
        host.health.blameless(host.attempt(2), FAULTS[name], None)
        evidence.close()
    assert (host.state(1), host.state(2)) == ("closed", "closed")
    assert host.slot_lease.table.outcomes(1, time.monotonic_ns())[1] == 0


def test_refusal_elsewhere_gives_the_half_open_probe_back(host):
    host.open(1)
    evidence = Evidence(host.health)
    evidence.failed(host.attempt(1, lease=True), FAULTS["backend_5xx"], served=False)
    evidence.refused()
    assert host.state(1) == "half_open"
    assert host.attempt(1, lease=True).probe_lease_ns


def test_poisoned_requests_open_no_circuit(host):
    for _ in range(50):
        of_request(host, (1, "backend_5xx"), (2, "backend_5xx"))
    assert (host.state(1), host.state(2)) == ("closed", "closed")


def test_busy_holds_for_a_model_or_for_the_whole_backend(host):
    host.end(host.attempt(1, model="m"), "backend_rate_limited", retry_after_s=30)
    assert (host.status(1, "m").busy_s, host.status(1, "n").busy_s) == (30, 0)
    host.end(host.attempt(1, model="m"), "backend_busy")
    assert (host.status(1, "m").busy_s, host.status(1, "n").busy_s) == (30, 1)
    host.end(host.attempt(2), "backend_busy", retry_after_s=10**9)
    assert host.status(2).busy_s == 60, "a minute at most"
    host.end(host.attempt(4), "backend_limits_client", retry_after_s=30)
    assert host.status(4).busy_s == 0, "that is between the client and the backend"


def test_missing_model_has_the_backend_probed(host):
    host.end(host.attempt(1), "backend_lacks_model")
    assert host.slot_lease.circuits.pop_probe_request(1)
    host.end(host.attempt(1), "backend_4xx")
    assert not host.slot_lease.circuits.pop_probe_request(1)
