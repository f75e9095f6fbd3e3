"""What the end of a trial says of its backend, for every row of the table of faults."""

import pytest

from nexus.config import BackendConfig, Config
from nexus.errors import FAULTS, Blame
from nexus.fleet.records import Backend
from nexus.fleet.seat import Seat
from nexus.metrics.recorder import Recorder
from nexus.metrics.store import Store
from nexus.proxy.breakers import Breakers

SECOND = 1_000_000_000
SAYS_NOTHING = {"client_gone", "shutdown", "stopping", "out_of_time", "internal"}


@pytest.mark.parametrize("name", [None, *FAULTS])
def test_trial(name):
    seat, now_ns = Seat.alone(), 100 * SECOND
    recorder = Recorder(Store(seat), seat)
    breakers = Breakers(seat.circuits, seat.table, recorder, clock_ns=lambda: now_ns, chance=lambda: 0.5)
    backend = Backend(config=BackendConfig(name="b", url="http://b"), label="b", column=3)
    seat.circuits.open(3, until_ns=99 * SECOND, trips=1)
    assert breakers.begin_trial(backend)
    fault = FAULTS[name] if name else None
    breakers.judge(backend, fault, config=Config(), trial=True, retry_after_s=None)
    expected = "half_open" if name in SAYS_NOTHING else "open" if fault and fault.blame is Blame.BACKEND else "closed"
    assert seat.circuits.state(3, now_ns) == expected
    assert seat.circuits.begin_trial(3), "the right to try was given back"
