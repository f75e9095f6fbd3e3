"""The circuit breaker's transitions, from a table; how long circuits stay open; and the shared
record."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.config import Config
from nexus.config.routing_records import CircuitBreaker as Settings
from nexus.fleet.circuit_breaker import CircuitBreaker, Event, open_for_s, report
from nexus.fleet.circuits import Circuit, CircuitTable
from nexus.fleet.load_table import LoadTable

SECOND = 1_000_000_000
NOW = 1000
SETTINGS = Settings(failures=5, open_seconds=5, max_open_seconds=60)
CLOSED, FAILING = Circuit(), Circuit(failures_in_a_row=5)
RELAPSED = Circuit(failures_in_a_row=5, recovered=(NOW - 59) * SECOND, consecutive_opens=2)
STEADY = Circuit(failures_in_a_row=5, recovered=(NOW - 60) * SECOND, consecutive_opens=2)
OPEN = Circuit(open_until=(NOW + 3) * SECOND, consecutive_opens=2)
HALF_OPEN = Circuit(open_until=(NOW - 4) * SECOND, consecutive_opens=2)
UNPROBED = Circuit(open_until=(NOW - 5) * SECOND, consecutive_opens=2)
PROBED = Circuit(open_until=(NOW - 5) * SECOND, consecutive_opens=2, probe_lease=1)

CHANGES = {
    # (record, event): (effect, the state that follows, seconds open, consecutive opens)
    ("FAILING", "FAILURE"): ("opened", "open", 5, 1),
    ("RELAPSED", "FAILURE"): ("opened", "open", 20, 3),
    ("STEADY", "FAILURE"): ("opened", "open", 5, 1),
    ("OPEN", "PROBE_CONFIRMED"): ("closed", "closed", 0, 2),
    ("OPEN", "PROBE_FAILED"): ("reopened", "open", 20, 3),
    ("OPEN", "HEALTH_RECOVERED"): ("half_opened", "half_open", 0, 2),
    ("HALF_OPEN", "PROBE_CONFIRMED"): ("closed", "closed", 0, 2),
    ("HALF_OPEN", "PROBE_FAILED"): ("reopened", "open", 20, 3),
    ("UNPROBED", "PROBE_CONFIRMED"): ("closed", "closed", 0, 2),
    ("UNPROBED", "PROBE_FAILED"): ("reopened", "open", 20, 3),
    ("UNPROBED", "HEALTH_PASSED"): ("closed", "closed", 0, 2),
    ("PROBED", "PROBE_CONFIRMED"): ("closed", "closed", 0, 2),
    ("PROBED", "PROBE_FAILED"): ("reopened", "open", 20, 3),
}
"""Every other pair changes nothing."""
RECORDS = [
    "CLOSED", "FAILING", "RELAPSED", "STEADY", "OPEN", "HALF_OPEN", "UNPROBED", "PROBED",
]  # fmt: skip


@pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
@pytest.mark.parametrize("record", RECORDS)
def test_transitions(record, event):
    breaker = CircuitBreaker(circuit=globals()[record], settings=SETTINGS, now_ns=NOW * SECOND)
    transition = breaker.handle(event)
    change = transition and (
        transition.effect,
        transition.circuit.state(NOW * SECOND),
        transition.open_s,
        transition.circuit.consecutive_opens,
    )
    assert change == CHANGES.get((record, event.name))
    if transition and transition.effect == "closed":
        assert transition.circuit == Circuit(recovered=NOW * SECOND, consecutive_opens=2)


def test_a_circuit_breaker_that_is_disabled_opens_nothing():
    settings = Settings(failures=5, enabled=False)
    breaker = CircuitBreaker(circuit=FAILING, settings=settings, now_ns=NOW * SECOND)
    assert breaker.handle(Event.FAILURE) is None


@pytest.mark.parametrize(
    ("successes", "failures", "in_a_row", "opens"),
    [
        (0, 4, 1, False),  # too few to tell
        (0, 5, 1, True),
        (5, 5, 1, True),  # half of all
        (6, 5, 1, False),
        (1000, 400, 1, False),
        (100_000, 5, 5, True),  # enough in a row, whatever went before
        (100_000, 5, 4, False),
    ],
)
def test_how_many_failures_open_it(successes, failures, in_a_row, opens):
    breaker = CircuitBreaker(
        circuit=Circuit(failures_in_a_row=in_a_row),
        settings=SETTINGS,
        now_ns=NOW * SECOND,
        successes=successes,
        failures=failures,
    )
    assert (breaker.handle(Event.FAILURE) is not None) is opens


@pytest.mark.parametrize(
    ("consecutive_opens", "seconds"), [(1, 5), (2, 10), (3, 20), (4, 40), (5, 60), (500, 60)]
)
def test_open_for_longer_each_time(consecutive_opens, seconds):
    assert open_for_s(consecutive_opens, SETTINGS, chance=0.5) == seconds


@given(st.integers(1, 100), st.floats(0, 1, exclude_max=True))
def test_the_jitter_is_small(consecutive_opens, chance):
    middle = open_for_s(consecutive_opens, SETTINGS, chance=0.5)
    assert 0.9 <= open_for_s(consecutive_opens, SETTINGS, chance=chance) / middle <= 1.1


def test_a_circuit_opens_and_closes_in_the_shared_record():
    circuits, load, config = CircuitTable(None), LoadTable(None), Config(circuit_breaker=SETTINGS)

    def after(event: Event, now_s: int) -> str | None:
        now_ns = now_s * SECOND
        transition = report(event, 3, circuits, load, config=config, now_ns=now_ns)
        return transition and transition.effect

    for _ in range(4):
        circuits.record_failure(3, 100 * SECOND)
        assert after(Event.FAILURE, 100) is None
    circuits.record_failure(3, 100 * SECOND)
    assert after(Event.FAILURE, 100) == "opened"
    assert after(Event.FAILURE, 101) is None
    assert circuits.state(3, 104 * SECOND) == "open"
    assert circuits.acquire_probe_lease(3, 105 * SECOND, 110 * SECOND)
    assert after(Event.HEALTH_PASSED, 111) is None, "a request has been probing it"
    assert after(Event.PROBE_FAILED, 111) == "reopened"
    assert after(Event.HEALTH_RECOVERED, 112) == "half_opened"
    assert after(Event.PROBE_CONFIRMED, 113) == "closed"
    assert circuits.read(3) == Circuit(
        consecutive_opens=2, recovered=113 * SECOND, failed=100 * SECOND
    )
