"""Routing decisions, from tables and from hypothesis."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.config import BackendConfig, Config
from nexus.config.records import Routing
from nexus.errors import RequestFailed
from nexus.fleet.records import Backend, Model, Snapshot
from nexus.routing.requirements import Requirements
from nexus.routing.router import choose
from nexus.routing.table import RouteTable

ANY = Requirements()


def backend(
    name: str, *models: str, column: int = 0, status: str = "healthy", latency_ms: float = 0, **config
) -> Backend:
    return Backend(
        config=BackendConfig(name=name, url="http://x", **config), label=name, column=column, status=status,
        latency_ms=latency_ms, models=tuple(Model(name=model, tools=model.endswith("tools")) for model in models),
    )  # fmt: skip


def table(*backends: Backend, **routing) -> RouteTable:
    return RouteTable(Snapshot(number=1, published_at=0, config=Config(routing=Routing(**routing)), backends=backends))


def pick(routes: RouteTable, model: str, *, needs=ANY, tried=frozenset(), load=lambda _: 0, turn=0, chance=0.0):
    return choose(routes, model=model, needs=needs, tried=tried, load=load, turn=turn, chance=chance)


def refused(*args, **kwargs) -> str:
    with pytest.raises(RequestFailed) as failed:
        pick(*args, **kwargs)
    return failed.value.fault.name


@pytest.mark.parametrize(
    ("first", "second", "loads", "wins"),
    [
        ({"priority": 1}, {"priority": 2}, (0, 0), "a"),
        ({"priority": 1}, {"priority": 2}, (2, 0), "b"),  # 50 points of priority against 60 of load
        ({"priority": 1}, {"priority": 2}, (1, 0), "a"),  # 50 against 30
        ({"latency_ms": 100}, {"latency_ms": 90}, (0, 0), "b"),
        ({"latency_ms": 5000}, {"latency_ms": 1000}, (1, 0), "b"),
        ({"latency_ms": 5000}, {"latency_ms": 1000}, (0, 1), "a"),  # both at the cap: load decides
    ],
)
def test_smart_score(first, second, loads, wins):
    routes = table(backend("a", "m", column=0, **first), backend("b", "m", column=1, **second))
    assert pick(routes, "m", load=lambda column: loads[column]).backend.name == wins


def test_strategies():
    backends = (backend("a", "m", priority=9), backend("b", "m", priority=1), backend("c", "m", priority=9))
    assert [pick(table(*backends, strategy="round_robin"), "m", turn=n).backend.name for n in range(4)] == list("abca")
    assert pick(table(*backends, strategy="priority_only"), "m", chance=0.9).backend.name == "b"
    assert [pick(table(*backends, strategy="random"), "m", chance=c).backend.name for c in (0, 0.4, 0.99)] == list(
        "abc"
    )


def test_equal_scores_share_by_chance():
    routes = table(backend("a", "m"), backend("b", "m"))
    assert [pick(routes, "m", chance=c).backend.name for c in (0.1, 0.6)] == ["a", "b"]


def test_aliases_resolve_three_deep():
    routes = table(backend("a", "m"), aliases={"x": "y", "y": "z", "z": "m"})
    assert routes.resolve("x") == "m"
    assert routes.resolve("none") == "none"


def test_tried_backends_come_last():
    """First another backend, then the fallback on another one, then the failed one with the fallback's model."""
    routes = table(backend("a", "m", "f"), backend("b", "m"), backend("c", "f"), fallbacks={"m": ["f"]})
    tried: set[tuple[str, str]] = set()
    order = []
    for _ in range(4):
        choice = pick(routes, "m", tried=tried)
        tried.add((choice.backend.name, choice.model))
        order.append((choice.backend.name, choice.model, choice.reason))
    assert order == [
        ("a", "m", "capability-match"),
        ("b", "m", "failover"),
        ("c", "f", "failover"),
        ("a", "f", "failover"),
    ]
    assert refused(routes, "m", tried=tried) == "at_capacity"


def test_overflow_is_told():
    routes = table(backend("a", "m", column=0, priority=1), backend("b", "m", column=1, priority=2))
    assert pick(routes, "m", load=lambda column: (9, 0)[column]).reason == "capacity-overflow"


def test_full_backends_are_left_out():
    routes = table(backend("a", "m", column=0, priority=1, max_concurrent=2), backend("b", "m", column=1, priority=99))
    assert pick(routes, "m", load=lambda column: (1, 0)[column]).backend.name == "a"
    assert pick(routes, "m", load=lambda column: (2, 50)[column]).backend.name == "b"


@pytest.mark.parametrize(
    ("backends", "routing", "needs", "fault"),
    [
        ([], {}, ANY, "no_backend"),
        ([backend("a", "other-model")], {}, ANY, "model_not_found"),
        ([backend("a", "m", status="unhealthy")], {}, ANY, "no_healthy_backend"),
        ([backend("a", status="unknown")], {}, ANY, "no_healthy_backend"),
        ([backend("a", "m", status="unhealthy")], {"fallbacks": {"m": ["f"]}}, ANY, "fallback_exhausted"),
        ([backend("a", "m")], {}, Requirements(tools=True), "capability_mismatch"),
        ([backend("a", "m")], {}, Requirements(vision=True), "capability_mismatch"),
    ],
)
def test_why_none_can_serve(backends, routing, needs, fault):
    assert refused(table(*backends, **routing), "m", needs=needs) == fault


def test_only_a_known_context_refuses():
    known = Backend(
        config=BackendConfig(name="k", url="http://x"), label="k", column=0, status="healthy",
        models=(Model(name="m", context_length=1000, context_known=True),),
    )  # fmt: skip
    assert refused(table(known), "m", needs=Requirements(context=1001)) == "capability_mismatch"
    assert pick(table(backend("guess", "m")), "m", needs=Requirements(context=9999)).backend.name == "guess"


def test_not_found_lists_what_there_is():
    with pytest.raises(RequestFailed, match=r"Available: a, b\."):
        pick(table(backend("x", "b", "a"), backend("y", "c", status="unhealthy")), "nope")


fleets = st.lists(
    st.builds(
        lambda n, models, status, priority, limit: (n, models, status, priority, limit),
        st.sampled_from("abcdef"),
        st.sets(st.sampled_from(["m", "f", "g"])),
        st.sampled_from(["healthy", "unhealthy", "unknown"]),
        st.integers(0, 100),
        st.none() | st.integers(1, 3),
    ),
    max_size=6,
    unique_by=lambda b: b[0],
)


@given(
    fleets,
    st.sampled_from(["smart", "round_robin", "priority_only", "random"]),
    st.lists(st.integers(0, 4), min_size=6, max_size=6),
    st.integers(0, 100),
    st.floats(0, 1, exclude_max=True),
)
def test_never_one_that_is_excluded(fleet, strategy, loads, turn, chance):
    backends = [
        backend(name, *sorted(models), status=status, priority=priority, max_concurrent=limit, column=column)
        for column, (name, models, status, priority, limit) in enumerate(fleet)
    ]
    routes = table(*backends, strategy=strategy, fallbacks={"m": ["f"]})
    tried: set[tuple[str, str]] = set()
    for _ in range(12):
        given_ = {"tried": frozenset(tried), "load": lambda c: loads[c], "turn": turn, "chance": chance}
        try:
            choice = pick(routes, "m", **given_)
        except RequestFailed:
            break
        assert pick(routes, "m", **given_) == choice
        assert choice.backend.status == "healthy"
        assert choice.model in {model.name for model in choice.backend.models} & {"m", "f"}
        assert (
            choice.backend.config.max_concurrent is None
            or loads[choice.backend.column] < choice.backend.config.max_concurrent
        )
        assert (choice.backend.name, choice.model) not in tried
        tried.add((choice.backend.name, choice.model))
    else:
        pytest.fail("it never ran out of backends")
