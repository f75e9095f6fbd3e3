"""The bound that a limit promises, over several processes that use it at random."""

import contextlib
import json
import subprocess
import sys
import threading

import pytest

from nexus.access.limits import Limits
from nexus.config.limit_records import Limit
from nexus.fleet.limit_table import LimitTable
from nexus.fleet.slot_lease import SlotLease
from nexus.metrics.recorder import Recorder
from nexus.metrics.store import Store
from nexus.proxy.limits import Limiter, Refused
from tests.support.polling import until

CAPACITY, PERIOD_NS = 40, 10**9
USER = """
import json, random, sys, time
from pathlib import Path
from nexus.access.limits import Limits
from nexus.config.limit_records import Limit
from nexus.fleet.limit_table import LimitTable
from nexus.proxy.limits import Limiter, Refused

class Uncounted:
    def __getattr__(self, name):
        return lambda *_, **__: None

path, slot, operations = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(slot)
table = LimitTable(path, slot=slot, slots=lambda: 4)
limiter = Limiter(lambda: table, Uncounted())
counters = Limits([Limit(name="a", tokens="40/s")]).counters(None, "m", "e")
admitted, open_ = [], []
for _ in range(operations):
    if open_ and rng.random() < 0.4:
        reserve, used = open_.pop(rng.randrange(len(open_)))
        limiter.settle([(reserve, used)])
    else:
        units = rng.randint(1, 9)
        try:
            reserves = limiter.reserve(counters, [units])
        except Refused:
            if rng.random() < 0.1:
                time.sleep(rng.random() / 50)
        else:
            for reserve in reserves:  # none if the lock was not free in time
                used = rng.randint(0, units)
                admitted.append((reserve.at_ns, used))
                open_.append((reserve, used))
for reserve, used in open_:
    limiter.settle([(reserve, used)])
print(json.dumps(admitted))
"""


@pytest.mark.e2e
@pytest.mark.parametrize(
    "operations", [2_500, pytest.param(25_000, marks=pytest.mark.long, id="25000 operations")]
)
def test_no_interval_has_more_than_the_limit(tmp_path, operations):
    """C + C * T / period, of what was used in the end, for every interval of length T."""
    users = [
        subprocess.Popen(
            [sys.executable, "-c", USER, str(tmp_path / "l"), str(slot), str(operations)],
            stdout=subprocess.PIPE,
        )
        for slot in range(4)
    ]
    outputs = [user.communicate(timeout=300)[0] for user in users]
    admitted = sorted((at, used) for output in outputs for at, used in json.loads(output))
    assert len({at for at, _ in admitted}) > CAPACITY
    total = lowest = 0.0
    for at, used in admitted:
        # Both are sums since the start, less what was refilled since; a window is a difference.
        refilled = CAPACITY * (at - admitted[0][0]) / PERIOD_NS
        lowest = min(lowest, total - refilled)
        total += used
        assert total - refilled - lowest <= CAPACITY


def test_the_limit_of_the_test_is_what_its_bound_says():
    [counter] = Limits([Limit(name="a", tokens="40/s")]).counters(None, "m", "e")
    assert (counter.burst, counter.unit_ns) == (CAPACITY, PERIOD_NS // CAPACITY)


def test_requests_that_come_while_the_table_is_opened_all_count(tmp_path):
    """The first requests of a process come at once, while another process holds the lock."""
    path, opened = tmp_path / "limits.db", []

    def open_table() -> LimitTable:
        opened.append(LimitTable(path))
        return opened[-1]

    limiter = Limiter(open_table, Recorder(Store(SlotLease.private()), SlotLease.private()))
    [counter] = Limits([Limit(name="a", parallel=2)]).counters(None, "m", "e")
    other, admitted = LimitTable(path, slot=1), []

    def reserve() -> None:
        with contextlib.suppress(Refused):
            limiter.reserve([counter], [1])
            admitted.append(1)

    assert other.acquire()
    threads = [threading.Thread(target=reserve) for _ in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: opened)
    other.release()
    for thread in threads:
        thread.join()
    assert (len(opened), len(admitted)) == (1, 2)


def test_numbers_beyond_all_bounds_leave_no_reservation(tmp_path):
    """A client may state any `max_tokens`, and a backend may report any usage."""
    table = LimitTable(tmp_path / "limits.db")
    limiter = Limiter(lambda: table, Recorder(Store(SlotLease.private()), SlotLease.private()))
    counters, fast = (
        Limits([Limit(name="a", tokens=rate, parallel=1)]).counters(None, "m", "e")
        for rate in ("1/d", "1M/s")
    )
    stated, place = limiter.reserve(counters, [10**18, 1])
    limiter.settle([(stated, 0), (place, 0)])  # all is returned
    small, place = limiter.reserve(counters, [1, 1])
    limiter.settle([(small, 10**9), (place, 0)])
    with pytest.raises(Refused):
        limiter.reserve(counters, [1, 1])
    assert table.in_progress(place.counter.digest) == 0
    # A reload to another rate keeps what was used, as far as a date can tell it.
    large, place = limiter.reserve(fast, [1, 1])
    limiter.settle([(large, 10**15), (place, 0)])
    with pytest.raises(Refused) as refused:
        limiter.reserve(counters, [1, 1])
    assert refused.value.levels[0].full_in_ns <= 1 << 61
