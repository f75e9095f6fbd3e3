"""Routing decisions, from tables and from hypothesis."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.config import BackendConfig, Config
from nexus.config.records import Routing
from nexus.errors import RequestFailed
from nexus.fleet.records import Backend, Model, Snapshot
from nexus.routing.policies import NOTHING, Demands
from nexus.routing.requirements import Requirements
from nexus.routing.router import CLEAR, Asked, Choice, NoRoom, Standing, Supposed, choose
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


def pick(
    routes: RouteTable, model: str, *, needs=ANY, demands=NOTHING, flexible=False, tried=frozenset(), **now
) -> Choice:
    asked = Asked(model=model, needs=needs, demands=demands, flexible=flexible)
    return choose(routes, asked, tried=tried, now=Supposed(**{"load": lambda _: 0, **now}))


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


def test_near_equals_are_spread_and_better_ones_win():
    """Those within one request of the best count as equal; of two at random, the better one."""
    routes = table(*(backend(name, "m", column=column) for column, name in enumerate("abcd")))
    loads = (0, 1, 1, 9)
    picks = Counter(pick(routes, "m", load=lambda c: loads[c], chance=n / 1000).backend.name for n in range(1000))
    assert set(picks) == {"a", "b", "c"}
    assert picks["a"] > picks["b"] + picks["c"], "it wins each pair that it is in"


@pytest.mark.parametrize(
    ("standing", "fault", "retry_after"),
    [
        (Standing(state="open", ready_in_s=3.2), "no_healthy_backend", "4"),
        (Standing(busy_s=2.0), "at_capacity", "2"),
    ],
)
def test_taken_out_by_what_requests_saw(standing, fault, retry_after):
    routes = table(backend("a", "m", column=0), backend("b", "m", column=1))
    assert pick(routes, "m", standing=lambda c, _: (standing, CLEAR)[c]).backend.name == "b"
    with pytest.raises(RequestFailed) as failed:
        pick(routes, "m", standing=lambda *_: standing, tried={("x", "m")})
    assert failed.value.fault.name == fault
    assert failed.value.headers["retry-after"] == retry_after
    assert isinstance(failed.value, NoRoom) is (fault == "at_capacity")


OPEN = Standing(state="open", ready_in_s=3.2)


@pytest.mark.parametrize(
    ("a", "b", "picked"),
    [
        (OPEN, OPEN, "a"),  # the best one is tried all the same
        (OPEN, Standing(state="open", failures=9), "a"),
        (Standing(state="open", busy_s=2.0), OPEN, "b"),
        (OPEN, Standing(busy_s=2.0), None),  # one that only is busy is waited for
        (Standing(state="open", busy_s=2.0), Standing(state="open", busy_s=1.0), None),
    ],
)
def test_open_circuits_never_keep_all_backends_out(a, b, picked):
    routes = table(backend("a", "m", column=0, priority=1), backend("b", "m", column=1))
    standing = lambda c, _: (a, b)[c]  # noqa: E731
    if picked is not None:
        choice = pick(routes, "m", standing=standing)
        assert (choice.backend.name, choice.trial) == (picked, False)
    else:
        with pytest.raises(NoRoom):
            pick(routes, "m", standing=standing)
    with pytest.raises(RequestFailed):
        pick(routes, "m", standing=standing, tried={("x", "m")})


def test_open_circuits_give_way_to_a_fallback_first():
    routes = table(backend("a", "m", column=0), backend("b", "n", column=1), fallbacks={"m": ["n"]})
    assert pick(routes, "m", standing=lambda c, _: (OPEN, CLEAR)[c]).backend.name == "b"


def test_open_circuits_let_nobody_past_a_limit():
    routes = table(backend("a", "m", column=0, max_concurrent=2))
    with pytest.raises(NoRoom):
        pick(routes, "m", standing=lambda *_: OPEN, load=lambda _: 2)


def test_busy_holds_for_the_model_that_it_was_said_of():
    routes = table(backend("a", "m", "n", column=0))
    standing = lambda _, model: Standing(busy_s=9.0) if model == "m" else CLEAR  # noqa: E731
    assert pick(routes, "n", standing=standing).model == "n"
    with pytest.raises(NoRoom):
        pick(routes, "m", standing=standing)


def test_half_open_is_tried_first_but_not_by_a_retry():
    routes = table(
        backend("a", "m", column=0, priority=1), backend("b", "m", column=1), backend("c", "x", "m", column=2)
    )
    standing = lambda c, _: (CLEAR, Standing(state="half_open"), CLEAR)[c]  # noqa: E731
    choice = pick(routes, "m", standing=standing)
    assert (choice.backend.name, choice.trial) == ("b", True)
    assert pick(routes, "m", standing=standing, tried={("c", "m")}).backend.name == "a"


def test_slow_start_gives_a_share():
    routes = table(backend("a", "m", column=0), backend("b", "m", column=1, priority=99), strategy="priority_only")
    standing = lambda c, _: (Standing(share=0.25), CLEAR)[c]  # noqa: E731
    picks = Counter(pick(routes, "m", standing=standing, chance=n / 4000).backend.name for n in range(4000))
    assert 900 < picks["a"] < 1100
    assert pick(table(backend("a", "m", column=0)), "m", standing=standing, chance=0.99).backend.name == "a", (
        "it is alone"
    )


def test_failing_fast_is_no_attraction():
    routes = table(backend("a", "m", column=0), backend("b", "m", column=1))
    standing = lambda c, _: (Standing(failures=4), CLEAR)[c]  # noqa: E731
    assert pick(routes, "m", standing=standing, load=lambda c: (0, 3)[c], chance=0.5).backend.name == "b"


def test_a_full_backend_that_others_wait_for():
    routes = table(backend("a", "m", column=0, max_concurrent=9), backend("b", "m", column=1, max_concurrent=9))
    assert pick(routes, "m", waited_for=lambda c: c == 0).backend.name == "b"
    with pytest.raises(NoRoom) as none:
        pick(routes, "m", waited_for=lambda _: True)
    assert [backend.name for backend in none.value.backends] == ["a", "b"]
    routes = table(backend("a", "m", column=0, max_concurrent=9), backend("b", "m", column=1))
    assert pick(routes, "m", waited_for=lambda _: True).backend.name == "b", "without a limit nobody waits"


fleets = st.lists(
    st.tuples(
        st.sampled_from("abcdef"),
        st.sets(st.sampled_from(["m", "f", "g"])),
        st.sampled_from(["healthy", "unhealthy", "unknown"]),
        st.integers(0, 100),
        st.none() | st.integers(1, 3),
        st.sampled_from(["open", "restricted"]),
        st.integers(1, 5),
        st.sampled_from(
            [CLEAR, Standing(state="open", ready_in_s=1), Standing(state="half_open"), Standing(busy_s=1),
             Standing(share=0.3, failures=2)]
        ),
    ),
    max_size=6,
    unique_by=lambda b: b[0],
)  # fmt: skip


@given(
    fleets,
    st.sampled_from(["smart", "round_robin", "priority_only", "random"]),
    st.lists(st.integers(0, 4), min_size=6, max_size=6),
    st.integers(0, 100),
    st.floats(0, 1, exclude_max=True),
    st.booleans(),
    st.integers(0, 5),
    st.booleans(),
)
def test_never_one_that_is_excluded(fleet, strategy, loads, turn, chance, restricted, min_tier, flexible):
    backends = [
        backend(
            name,
            *sorted(models),
            status=status,
            priority=priority,
            max_concurrent=limit,
            column=column,
            zone=zone,
            tier=tier,
        )
        for column, (name, models, status, priority, limit, zone, tier, _) in enumerate(fleet)
    ]
    routes = table(*backends, strategy=strategy, fallbacks={"m": ["f"]})
    standings = [entry[-1] for entry in fleet]
    tried: set[tuple[str, str]] = set()
    for _ in range(13):
        given_ = {
            "tried": frozenset(tried), "load": lambda c: loads[c], "turn": turn, "chance": chance,
            "standing": lambda c, _: standings[c], "demands": Demands(restricted, min_tier), "flexible": flexible,
        }  # fmt: skip
        try:
            choice = pick(routes, "m", **given_)
        except RequestFailed:
            break
        assert pick(routes, "m", **given_) == choice
        found, standing = choice.backend, standings[choice.backend.column]
        assert found.status == "healthy"
        assert choice.model in {model.name for model in found.models} & {"m", "f"}
        assert found.limit is None or loads[found.column] < found.limit
        assert standing.state != "open" or not tried, "open circuits yield to a first attempt only"
        assert not standing.busy_s
        assert found.restricted or not restricted
        assert found.config.tier >= min_tier or flexible
        assert (found.name, choice.model) not in tried
        tried.add((found.name, choice.model))
    else:
        pytest.fail("it never ran out of backends")
