"""The fleet as the health process holds it."""

from nexus.config import BackendConfig, Config
from nexus.config.overlay import Overlay
from nexus.config.records import HealthCheck, Metrics
from nexus.config.routing_records import Routing
from nexus.fleet.records import Model
from nexus.health.fleet import Fleet
from nexus.health.prober import ProbeOutcome

GOOD = ProbeOutcome((Model(name="m"), Model(name="n")), 0.0123)
BAD = ProbeOutcome(None, None, "refused")


def config(*names: str, **more) -> Config:
    return Config(
        backends=[BackendConfig(name=name, url=f"http://{name}") for name in names], **more
    )


def fleet(*names: str, before=None, idle=lambda columns: columns, **more) -> Fleet:
    made = Fleet(Overlay(file=config(*names, **more)), now=1.0, before=before)
    made.assign_columns(idle)
    return made


def test_findings_reach_the_snapshot():
    watched = fleet("a", "b")
    assert watched.apply_result("a", GOOD, now=2.0) == ("unknown", "healthy")
    assert watched.apply_result("b", BAD, now=3.0) == ("unknown", "unhealthy")
    a, b = watched.snapshot(revision=4, now=5.0).backends
    assert (a.status, a.since, a.latency_ms, [m.name for m in a.models]) == (
        "healthy",
        2.0,
        12.3,
        ["m", "n"],
    )
    assert (b.status, b.last_error, b.models) == ("unhealthy", "refused", ())


def test_models_of_a_backend_that_fails_are_kept():
    watched = fleet("a")
    watched.apply_result("a", GOOD, now=2.0)
    watched.apply_result("a", BAD, now=3.0)
    assert [m.name for m in watched.snapshot(revision=1, now=4.0).backends[0].models] == ["m", "n"]


def test_a_new_health_process_takes_up_what_was_known():
    first = fleet("a", "b")
    first.apply_result("a", GOOD, now=2.0)
    before = first.snapshot(revision=1, now=3.0)
    second = fleet("b", "a", "c", before=before)
    after = {b.name: b for b in second.snapshot(revision=2, now=4.0).backends}
    assert after["a"].status == "healthy"
    assert after["a"].column == before.backends[0].column
    assert after["c"].status == "unknown"
    assert len({b.column for b in after.values()}) == 3


def test_results_in_a_row_count_over_changes_of_the_configuration():
    """Keys may be made more often than backends are probed."""
    before, changes = None, []
    for result in (GOOD, BAD, BAD, BAD, GOOD, GOOD):
        watched = fleet("a", before=before)
        changes.append(watched.apply_result("a", result, now=2.0))
        before = watched.snapshot(revision=1, now=3.0)
    assert changes == [
        ("unknown", "healthy"), None, None, ("healthy", "unhealthy"),
        None, ("unhealthy", "healthy"),
    ]  # fmt: skip


def test_backend_at_another_address_is_another():
    first = fleet("a")
    first.apply_result("a", GOOD, now=2.0)
    before = first.snapshot(revision=1, now=3.0)
    moved = Config(backends=[BackendConfig(name="a", url="http://elsewhere")])
    after = Fleet(Overlay(file=moved), now=4.0, before=before)
    assert after.backends["a"].status == "unknown"


def test_columns_in_use_are_not_given_away():
    watched = fleet("a", "b", idle=lambda columns: [c for c in columns if c not in (0, 2)])
    assert [w.column for w in watched.backends.values()] == [1, 3]


def test_labels():
    watched = fleet(
        "x-1", "x_1", routing=Routing(aliases={"gpt-4": "m"}), metrics=Metrics(max_models=6)
    )
    watched.apply_result("x-1", GOOD, now=2.0)
    labels = watched.snapshot(revision=1, now=3.0).labels
    assert labels.models == {"gpt-4": "gpt_4", "m": "m", "n": "n"}
    assert labels.backends["x-1"] == "x_1"
    assert labels.backends["x_1"].startswith("x_1_")


def test_models_get_half_of_the_labels_when_discovered_and_the_rest_when_requested():
    watched = fleet("a", routing=Routing(aliases={"alias": "m1"}), metrics=Metrics(max_models=6))
    watched.apply_result(
        "a", ProbeOutcome(tuple(Model(name=f"m{n}") for n in range(1, 10)), 0.01), now=2.0
    )
    assert set(watched.snapshot(revision=1, now=3.0).labels.models) == {"alias", "m1", "m2"}
    assert watched.label_models(["m9", "m9", "made-up", "m1"])
    assert not watched.label_models(["m9"])
    assert watched.label_models(["m8", "m7", "m6"])
    labels = watched.snapshot(revision=2, now=3.0).labels
    assert set(labels.models) == {"alias", "m1", "m2", "m9", "m8", "m7"}
    assert labels.models_over == ("m6",)
    watched.apply_result("a", ProbeOutcome((Model(name="m6"), Model(name="m9")), 0.01), now=4.0)
    watched.retire_labels(monotonic=0.0)
    watched.retire_labels(monotonic=24 * 3600.0)
    labels = watched.snapshot(revision=3, now=5.0).labels
    assert set(labels.models) == {"alias", "m1", "m9", "m6"}, (
        "a free label goes to whoever was asked for earlier"
    )
    assert (labels.retired_models, labels.models_over) == (("m2", "m8", "m7"), ())


def test_a_name_that_returns_gets_a_label_never_used_before():
    watched = fleet("a")
    one, none = ProbeOutcome((Model(name="m"),), 0.01), ProbeOutcome((), 0.01)
    seen = []
    for day in range(4):
        watched.apply_result("a", one, now=2.0)
        watched.retire_labels(monotonic=day * 90_000.0)
        seen.append(watched.snapshot(revision=1, now=3.0).labels.models["m"])
        watched.apply_result("a", none, now=2.0)
        watched.retire_labels(monotonic=day * 90_000.0 + 1)
        watched.retire_labels(monotonic=day * 90_000.0 + 86_401)
    assert len(set(seen)) == 4
    assert seen[0] == "m"
    assert watched.snapshot(revision=1, now=3.0).labels.retired_models == tuple(seen)


def test_a_name_that_returns_in_time_keeps_its_label():
    watched = fleet("a")
    watched.apply_result("a", GOOD, now=2.0)
    watched.snapshot(revision=1, now=3.0)
    for monotonic, result in (
        (0.0, ProbeOutcome((), 0.01)),
        (80_000.0, GOOD),
        (90_000.0, ProbeOutcome((), 0.01)),
        (99_000.0, GOOD),
    ):
        watched.apply_result("a", result, now=2.0)
        watched.retire_labels(monotonic=monotonic)
    assert watched.snapshot(revision=2, now=3.0).labels.models == {"m": "m", "n": "n"}


def test_labels_of_the_absent_are_forgotten_at_a_new_start_only():
    first = fleet("a")
    first.apply_result("a", GOOD, now=2.0)
    second = fleet("b", before=first.snapshot(revision=1, now=3.0))
    assert set(second.snapshot(revision=2, now=4.0).labels.models) == {"m", "n"}
    second.forget_absent_labels()
    labels = second.snapshot(revision=3, now=5.0).labels
    assert (labels.models, set(labels.backends)) == ({}, {"b"})


def test_without_health_checks_every_backend_counts_as_healthy():
    watched = fleet("a", health_check=HealthCheck(enabled=False))
    assert watched.apply_result("a", BAD, now=2.0) is None
    assert watched.snapshot(revision=1, now=3.0).backends[0].status == "healthy"
