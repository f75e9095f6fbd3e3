"""The fleet as the health process holds it."""

import pytest

from nexus.config import BackendConfig, Config
from nexus.config.changes import Layered
from nexus.config.records import HealthCheck, Metrics, Routing
from nexus.fleet.records import Model
from nexus.health.fleet import Fleet
from nexus.health.prober import Result

GOOD = Result((Model(name="m"), Model(name="n")), 0.0123)
BAD = Result(None, None, "refused")


def config(*names: str, **more) -> Config:
    return Config(backends=[BackendConfig(name=name, url=f"http://{name}") for name in names], **more)


def fleet(*names: str, before=None, idle=lambda columns: columns, **more) -> Fleet:
    made = Fleet(Layered(file=config(*names, **more)), now=1.0, before=before)
    made.give_columns(idle)
    return made


def test_findings_reach_the_snapshot():
    watched = fleet("a", "b")
    assert watched.take("a", GOOD, now=2.0) == ("unknown", "healthy")
    assert watched.take("b", BAD, now=3.0) == ("unknown", "unhealthy")
    a, b = watched.snapshot(number=4, now=5.0).backends
    assert (a.status, a.since, a.latency_ms, [m.name for m in a.models]) == ("healthy", 2.0, 12.3, ["m", "n"])
    assert (b.status, b.last_error, b.models) == ("unhealthy", "refused", ())


def test_models_of_a_backend_that_fails_are_kept():
    watched = fleet("a")
    watched.take("a", GOOD, now=2.0)
    watched.take("a", BAD, now=3.0)
    assert [m.name for m in watched.snapshot(number=1, now=4.0).backends[0].models] == ["m", "n"]


def test_a_new_health_process_takes_up_what_was_known():
    first = fleet("a", "b")
    first.take("a", GOOD, now=2.0)
    before = first.snapshot(number=1, now=3.0)
    second = fleet("b", "a", "c", before=before)
    after = {b.name: b for b in second.snapshot(number=2, now=4.0).backends}
    assert after["a"].status == "healthy"
    assert after["a"].column == before.backends[0].column
    assert after["c"].status == "unknown"
    assert len({b.column for b in after.values()}) == 3


def test_backend_at_another_address_is_another():
    first = fleet("a")
    first.take("a", GOOD, now=2.0)
    before = first.snapshot(number=1, now=3.0)
    moved = Config(backends=[BackendConfig(name="a", url="http://elsewhere")])
    assert Fleet(Layered(file=moved), now=4.0, before=before).backends["a"].standing.status == "unknown"


def test_columns_in_use_are_not_given_away():
    watched = fleet("a", "b", idle=lambda columns: [c for c in columns if c not in (0, 2)])
    assert [w.column for w in watched.backends.values()] == [1, 3]


def test_labels():
    watched = fleet("x-1", "x_1", routing=Routing(aliases={"gpt-4": "m"}), metrics=Metrics(max_models=3))
    watched.take("x-1", GOOD, now=2.0)
    labels = watched.snapshot(number=1, now=3.0).labels
    assert labels.models == {"gpt-4": "gpt_4", "m": "m", "n": "n"}
    assert labels.backends["x-1"] == "x_1"
    assert labels.backends["x_1"].startswith("x_1_")


def test_labels_of_the_absent_are_forgotten_at_a_new_start_only():
    first = fleet("a")
    first.take("a", GOOD, now=2.0)
    second = fleet("b", before=first.snapshot(number=1, now=3.0))
    assert set(second.snapshot(number=2, now=4.0).labels.models) == {"m", "n"}
    second.forget_absent_labels()
    labels = second.snapshot(number=3, now=5.0).labels
    assert (labels.models, set(labels.backends)) == ({}, {"b"})


def test_without_health_checks_every_backend_counts_as_healthy():
    watched = fleet("a", health_check=HealthCheck(enabled=False))
    assert watched.take("a", BAD, now=2.0) is None
    assert watched.snapshot(number=1, now=3.0).backends[0].status == "healthy"


@pytest.mark.parametrize("kind", ["anthropic", "google"])
def test_kinds_that_are_not_spoken_are_left_out(kind):
    wanted = Config(backends=[BackendConfig(name="c", url="https://c", type=kind)])
    assert Fleet(Layered(file=wanted), now=1.0, before=None).backends == {}
