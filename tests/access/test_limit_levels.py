"""The levels of limits, as clients and operators see them."""

import pytest

from nexus.access.callers import Caller
from nexus.access.limit_levels import all_levels, levels_of
from nexus.access.limits import Limits
from nexus.config.access_records import Key, Team
from nexus.config.limit_records import Limit, Match, OwnLimits
from nexus.config.records import Config

CONFIG = Config(
    limits=[
        Limit(name="each key", each=["key"], requests="10/s"),
        Limit(name="by model", match=Match(team="a*"), each=["model", "key"], tokens="100/s"),
        Limit(name="others", match=Match(team="b"), parallel=4),
    ],
    keys=[Key(id="k1", sha256=["0" * 64], limits=OwnLimits(parallel=4))],
    teams=[Team(name="a", limits=OwnLimits(requests="2/s"))],
)
NOW = 10**12
SECOND = 10**9


@pytest.fixture
def limits():
    found = Limits.of(CONFIG)
    assert found is not None
    return found


def stored_for(limits, caller, model, levels):
    """What a table stores of a request's counters."""
    return {
        counter.name: levels.get((counter.limit.name, counter.dimension), (NOW, counter.unit_ns))
        for counter in limits.counters(caller, model, "e")
    }


def test_a_caller_sees_every_limit_that_may_hold_for_it(limits):
    caller = Caller(key="k1", team="a")
    stored = stored_for(
        limits,
        caller,
        "m",
        {
            ("each key", "requests"): (NOW + SECOND // 2, SECOND // 10),
            ("by model", "tokens"): (NOW + 2 * SECOND, SECOND // 100),
            ("[[keys]]", "parallel"): (3, 0),
        },
    )
    stored |= stored_for(limits, Caller(key="k2", team="a"), "n", {})
    shown = [
        (level.counter.limit.name, level.counter.subject, level.used, level.left, level.full_in_s)
        for level in levels_of(caller, limits, stored, NOW)
    ]
    assert shown == [
        ("each key", "key k1", 5, 5, 0.5),
        ("[[keys]]", "key k1", 3, 1, 0.0),
        ("[[teams]]", "team a", 0, 2, 0.0),
        ("by model", "model m, key k1", 200, 0, 2.0),
    ]


def test_a_caller_sees_limits_that_nothing_has_used(limits):
    found = levels_of(Caller(key="k9", team="b"), limits, {}, NOW)
    assert [(level.counter.limit.name, level.share) for level in found] == [
        ("each key", 1.0),
        ("others", 1.0),
    ]


def test_levels_are_shown_while_their_limit_exists(limits):
    caller = Caller(key="k1", team="a")
    stored = stored_for(limits, caller, "m", {("[[keys]]", "parallel"): (3, 0)})
    stored["tokens\nremoved\nkey k1"] = (NOW, 7)
    stored["requests\n[[keys]]\nkey gone"] = (NOW, 7)
    stored["requests\nothers\n"] = (NOW, 7)
    shares = {level.counter.name: level.share for level in all_levels(limits, stored, NOW)}
    assert shares == {
        "requests\neach key\nkey k1": 1.0,
        "tokens\nby model\nmodel m, key k1": 1.0,
        "parallel\n[[keys]]\nkey k1": 0.25,
        "requests\n[[teams]]\nteam a": 1.0,
    }


def test_what_is_used_stays_when_a_rate_changes(limits):
    """The table has the rate of the last request; the new one holds from the next request on."""
    stored = {"requests\neach key\nkey k1": (NOW + 2 * SECOND, SECOND // 2)}
    [level] = all_levels(limits, stored, NOW)
    assert (level.used, level.left, level.full_in_s) == (4, 6, 0.4)
