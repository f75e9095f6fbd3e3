"""Affinity: which backend is a session's home, and when another one serves it."""

from collections import Counter

import pytest

from nexus.config.routing_records import Affinity, Routing
from nexus.dialects import openai
from nexus.dialects.base import PromptField, RequestForm
from nexus.errors import RequestFailed
from nexus.fleet.prefix_table import PrefixTable
from nexus.fleet.status import EndpointStatus
from nexus.http.headers import RequestHeaders
from nexus.proxy.session import SessionReader
from nexus.routing.affinity import Session, starts_of
from nexus.routing.context import Conditions, RouteQuery
from nexus.routing.router import choose
from tests.routing.test_router import OPEN, backend, table

IDS = [f"session-{n}" for n in range(1000)]


def session(name: str, scope: str = "", source: str = "header"):
    found = Session(source, name.encode(), scope)
    return lambda: found


def fleet(names: str, *, kind: str = "vllm", **fields):
    return [
        backend(name, "m", column=column, type=kind, **fields) for column, name in enumerate(names)
    ]


def pick(routes, name: str, *, scope: str = "", tried=frozenset(), **now):
    query = RouteQuery("m", session=session(name, scope))
    return choose(
        routes, query, tried=tried, now=Conditions(**{"load": lambda _: 0, "chance": 0.5, **now})
    )


def homes(routes, **given) -> dict[str, str]:
    return {name: pick(routes, name, **given).backend.name for name in IDS}


def test_gateways_that_share_nothing_agree():
    one = table(*fleet("abcd"))
    other = table(*reversed(fleet("dbca")))
    assert homes(one) == homes(other)
    assert {pick(one, name).affinity for name in IDS} == {("header", "hit")}


def test_eight_requests_as_even_as_they_can_be_cause_no_spills():
    """Eight workers with one request each: the last one comes when seven are in flight."""
    routes = table(*fleet("abc"))
    for loads in ((3, 2, 2), (2, 3, 2), (2, 2, 3)):
        found = {pick(routes, name, load=loads.__getitem__).affinity for name in IDS}
        assert found == {("header", "hit")}


def test_only_the_sessions_of_a_lost_backend_move_and_they_come_back():
    before, without = homes(table(*fleet("abcd"))), homes(table(*fleet("abd")))
    moved = {name for name in IDS if before[name] != without[name]}
    assert moved == {name for name in IDS if before[name] == "c"}
    assert set(Counter(without[name] for name in moved)) == {"a", "b", "d"}, "to all others"
    assert homes(table(*fleet("abcd"))) == before


def test_sessions_are_spread_by_what_backends_take():
    small = [backend("small", "m", column=0, type="vllm", max_concurrent=10)]
    large = [backend("large", "m", column=1, type="vllm", max_concurrent=30)]
    shares = Counter(homes(table(*small, *large)).values())
    assert 650 < shares["large"] < 850
    equal = Counter(homes(table(*fleet("abcd"))).values())
    assert all(190 < count < 310 for count in equal.values())


def test_scopes_never_meet():
    routes = table(*fleet("abcd"))
    one, other = homes(routes, scope="A"), homes(routes, scope="B")
    assert 600 < sum(one[name] != other[name] for name in IDS) < 900


@pytest.mark.parametrize(
    ("loads", "stays"),
    [
        ((0, 0, 0), True),
        ((2, 0, 0), True),  # the margin
        ((3, 0, 0), False),
        ((3, 3, 2), True),  # eight requests, as even as they can be
        ((4, 2, 2), True),
        ((5, 2, 1), False),
        ((40, 30, 30), True),  # 1.25 times 33.3 is 41.7
        ((42, 29, 29), False),
    ],
)
def test_load_guard(loads, stays):
    """The loads are those of the home and of the others in the session's order."""
    routes = table(*fleet("abc"))
    order = routes.suitable("m", RouteQuery("m").needs, RouteQuery("m").constraints).order(
        session("s")(), "m"
    )
    by_column = {one.backend.column: load for one, load in zip(order, loads, strict=True)}
    choice = pick(routes, "s", load=by_column.__getitem__)
    home = order[0].backend.name
    assert (choice.backend.name == home) is stays
    assert choice.affinity == ("header", "hit" if stays else "spill")
    if not stays:
        assert choice.backend.name == order[1].backend.name, "the next in the order"


def test_retries_and_failover_go_down_the_same_order():
    routes = table(*fleet("abcd"))
    tried: set[tuple[str, str]] = set()
    walked = []
    for _ in range(4):
        choice = pick(routes, "s", tried=tried)
        walked.append((choice.backend.name, choice.affinity))
        tried.add((choice.backend.name, "m"))
    order = routes.suitable("m", RouteQuery("m").needs, RouteQuery("m").constraints).order(
        session("s")(), "m"
    )
    assert [name for name, _ in walked] == [one.backend.name for one in order]
    assert [affinity for _, affinity in walked] == [("header", "hit")] + [("header", "spill")] * 3
    home = order[0].backend
    status = lambda column, _: OPEN if column == home.column else EndpointStatus()  # noqa: E731
    assert pick(routes, "s", status=status).backend.name == order[1].backend.name
    with pytest.raises(RequestFailed):
        pick(routes, "s", status=lambda *_: OPEN, tried={("x", "m")})


def test_a_recovered_backend_gets_whole_sessions_back():
    routes = table(*fleet("ab"))
    share = lambda column, _: EndpointStatus(share=(0.4, 1.0)[column])  # noqa: E731
    well = homes(routes)
    first, again = homes(routes, status=share, chance=0.1), homes(routes, status=share, chance=0.9)
    assert first == again, "not by chance"
    own = [name for name in IDS if well[name] == "a"]
    assert 0.3 < sum(first[name] == "a" for name in own) / len(own) < 0.5


def test_priorities_come_first():
    later = [
        backend(name, "m", column=column, type="vllm", priority=90)
        for column, name in enumerate("cd", 2)
    ]
    routes = table(*fleet("ab"), *later)
    assert set(homes(routes).values()) == {"a", "b"}
    busy = homes(routes, load=lambda column: (90, 90, 0, 0)[column])
    assert set(busy.values()) == {"c", "d"}, "as the smart strategy says"


@pytest.mark.parametrize(
    ("backends", "routing"),
    [
        (fleet("ab", kind="generic"), {}),
        ([*fleet("a"), *[backend("b", "m", column=1, type="openai")]], {}),
        (fleet("ab"), {"strategy": "round_robin"}),
        (fleet("ab"), {"affinity": Affinity(enabled=False)}),
        (fleet("a"), {}),
    ],
)
def test_where_it_does_not_matter_the_request_is_not_read(backends, routing):
    def unread():
        raise AssertionError("the session was read")

    routes = table(*backends, **routing)
    query = RouteQuery("m", session=unread)
    choice = choose(routes, query, tried=frozenset(), now=Conditions(load=lambda _: 0))
    assert choice.affinity is None


def test_defaults():
    affinity = Routing().affinity
    assert affinity.enabled
    assert affinity.kinds == ["vllm", "sglang", "llamacpp", "ollama", "lmstudio"]


def prompt(text: str):
    """A session without an id."""
    keys, ends = starts_of(memoryview(text.encode()), "", "m", 1)
    found = Session("prefix", text.encode()[:300], "", keys, ends)
    return lambda: found


def test_prefix_keys_are_those_of_equal_starts():
    def starts(text: str, scope: str = "k", model: str = "m", seed: int = 7):
        keys, ends = starts_of(memoryview(text.encode()), scope, model, seed)
        return dict(zip(ends, keys, strict=True))

    system, other = "s" * 9000, "t" * 9000
    one, longer = starts(system), starts(system + other)
    assert list(one) == [8192, 4096]
    assert list(longer) == [16384, 8192]
    assert one[8192] == longer[8192]
    for ends, size in (([], 511), ([512], 512), ([768, 512], 1023), ([1536, 1024, 512], 1536)):
        assert list(starts("s" * size)) == ends
    for different in (
        starts(other),
        starts(system, scope="other"),
        starts(system, model="other"),
        starts(system, seed=8),
    ):
        assert not set(one.values()) & set(different.values())


def test_the_backend_with_the_longest_known_start_is_home():
    routes = table(*fleet("abcd"))
    session = prompt("x" * 28_000)
    keys = session().keys
    assert session().ends == (24576, 16384, 8192)

    def choice(known: dict[int, tuple[int, ...]], loads=(0, 0, 0, 0)):
        now = Conditions(load=loads.__getitem__, holders=lambda key: known.get(key, ()))
        return choose(routes, RouteQuery("m", session=session), tried=frozenset(), now=now)

    by_hash = choice({})
    assert by_hash.prefixes == keys
    others = [column for column in range(4) if column != by_hash.backend.column]
    short, long = others[0], others[1]
    assert choice({keys[2]: (short,)}).backend.column == short
    known = choice({keys[2]: (short,), keys[1]: (long,)})
    assert known.backend.column == long
    assert known.affinity == ("prefix", "hit")
    assert known.prefixes == keys[:2], "it has the shorter one"
    assert choice({keys[0]: (77,), keys[1]: (short,)}).backend.column == short, "77 is no candidate"
    # Of several that have it, the least loaded one.
    loads = [0, 0, 0, 0]
    loads[short], loads[long] = 3, 1
    assert choice({keys[0]: (short, long)}, tuple(loads)).backend.column == long
    # To wait behind eight requests costs less than to compute 24 KiB again.
    loads = [2, 2, 2, 2]
    loads[short] = 10
    assert choice({keys[0]: (short,)}, tuple(loads)).affinity == ("prefix", "hit")
    loads[short], loads[long] = 10, 1
    spilled = choice({keys[0]: (short,)}, tuple(loads))
    assert spilled.affinity == ("prefix", "spill")
    assert spilled.backend.column == long, "the least loaded one"
    assert spilled.prefixes == keys, "it has none of them"


def test_a_session_with_an_id_goes_where_its_prompt_is_known():
    routes = table(*fleet("abcd"))
    keys, ends = starts_of(memoryview(b"x" * 28_000), "", "m", 1)
    found = Session("header", b"s", "", keys, ends)
    order = [one.backend.column for one in routes.suitable(
        "m", RouteQuery("m").needs, RouteQuery("m").constraints
    ).order(found, "m")]  # fmt: skip

    def choice(known: dict[int, tuple[int, ...]], loads=(0, 0, 0, 0), tried=frozenset()):
        now = Conditions(load=loads.__getitem__, holders=lambda key: known.get(key, ()), chance=0.5)
        return choose(routes, RouteQuery("m", session=lambda: found), tried=tried, now=now)

    def at(column: int, count: int) -> tuple[int, ...]:
        return tuple(count if one == column else 0 for one in range(4))

    first = choice({})
    assert (first.backend.column, first.affinity) == (order[0], ("header", "hit"))
    assert first.prefixes == keys, "so that other sessions with this start find it"
    # The guard of an id, as its prompt is not known.
    assert choice({}, at(order[0], 3)).backend.column == order[1]
    known = choice({keys[1]: (order[3],)})
    assert (known.backend.column, known.affinity) == (order[3], ("header", "hit"))
    assert known.prefixes == keys[:2]
    # Of several that have it, the first in the session's order, which need not be the idle one.
    several = {keys[0]: (order[3], order[1])}
    assert choice(several, at(order[1], 3)).backend.column == order[1]
    assert choice(several, at(order[1], 9)).backend.column == order[3]
    name = next(one.backend.name for one in routes.healthy["m"] if one.backend.column == order[3])
    failed = choice({keys[0]: (order[3],)}, tried={(name, "m")})
    assert (failed.backend.column, failed.affinity) == (order[0], ("header", "spill"))


def test_after_a_failure_of_its_home_the_least_loaded_backend_gets_a_prompt():
    routes = table(*fleet("abc"))
    session = prompt("x" * 5000)
    query = RouteQuery("m", session=session)
    now = Conditions(load=(1, 3, 2).__getitem__, holders=lambda _: (0,))
    choice = choose(routes, query, tried={("a", "m")}, now=now)
    assert (choice.backend.name, choice.affinity) == ("c", ("prefix", "spill"))
    assert choice.prefixes == session().keys


def test_gateways_with_different_seeds_place_an_unknown_prompt_alike():
    form = RequestForm(prompts=(PromptField(name="messages", messages=True),), task="chat")
    one, other = table(*fleet("abc")), table(*fleet("abc"))
    homes = Counter()
    for n in range(60):
        body = b'{"model":"m","messages":[{"role":"user","content":"%d %b"}]}' % (n, b"x" * 700)
        parsed = openai.parse_request(body, form)
        found = set()
        for seed, routes in enumerate((one, other), 1):
            headers = RequestHeaders.of([])
            session = SessionReader(headers, parsed, routes.affinity, "m", seed=seed)
            query = RouteQuery("m", session=session)
            now = Conditions(load=lambda _: 0)
            choice = choose(routes, query, tried=frozenset(), now=now)
            assert choice.affinity == ("prefix", "hit")
            found.add(choice.backend.name)
        assert len(found) == 1
        homes.update(found)
    assert set(homes) == {"a", "b", "c"}


def test_a_prompt_of_less_than_512_bytes_has_no_session():
    form = RequestForm(prompts=(PromptField(name="messages", messages=True),), task="chat")
    for size, known in ((500, True), (400, False)):
        body = b'{"model":"m","messages":[{"role":"user","content":"%b"}]}' % (b"x" * size)
        parsed = openai.parse_request(body, form)
        session = SessionReader(RequestHeaders.of([]), parsed, Affinity(), "m")()
        assert (session is not None) is known


@pytest.mark.parametrize(
    ("size", "repeated", "alone"),
    [(512, 2, 2), (1000, 2, 2), (2500, 4, 4), (9000, 4, 4), (13_000, 4, 6), (28_000, 4, 8)],
)
def test_requests_wait_longer_for_a_long_start_that_is_not_everybodys(size, repeated, alone):
    """So many requests more than the other backend its home may have, and no more."""
    routes = table(*fleet("ab"))
    session = prompt("x" * size)

    def most(*, repeats: bool) -> int:
        def hit(load: int) -> bool:
            now = Conditions(
                load=(3 + load, 3).__getitem__,
                holders=lambda _: (0,),
                repeats=lambda key: repeats and key in session().keys,
            )
            query = RouteQuery("m", session=session)
            choice = choose(routes, query, tried=frozenset(), now=now)
            assert choice.affinity == ("prefix", "hit" if choice.backend.column == 0 else "spill")
            return choice.backend.column == 0

        return next(load for load in range(99) if not hit(load + 1))

    assert (most(repeats=True), most(repeats=False)) == (repeated, alone)


def test_a_burst_of_one_start_spreads_and_bursts_of_several_do_not():
    """Twelve requests at once, all with one start or three with each of four."""

    def copies(starts: int) -> list[int]:
        routes, prefixes, loads = table(*fleet("abc")), PrefixTable(None), [0, 0, 0]
        sessions = [prompt(f"{n}" * 28_000) for n in range(starts)]
        for n in range(12):
            now = Conditions(
                load=loads.__getitem__, holders=prefixes.holders, repeats=prefixes.repeats
            )
            query = RouteQuery("m", session=sessions[n % starts])
            choice = choose(routes, query, tried=frozenset(), now=now)
            prefixes.add(choice.prefixes, choice.backend.column)
            loads[choice.backend.column] += 1
        return [len(prefixes.holders(session().keys[0])) for session in sessions]

    assert copies(1) == [3]
    assert copies(4) == [1, 1, 1, 1]


def test_equal_prompts_without_an_id_at_100_at_once_are_spread():
    """Each becomes a home; none exceeds the load guard's bound."""
    routes = table(*fleet("abc"))
    session, prefixes = prompt("x" * 28_000), PrefixTable(None)
    loads = [0, 0, 0]
    for _ in range(100):
        now = Conditions(load=loads.__getitem__, holders=prefixes.holders, repeats=prefixes.repeats)
        choice = choose(routes, RouteQuery("m", session=session), tried=frozenset(), now=now)
        prefixes.add(choice.prefixes, choice.backend.column)
        loads[choice.backend.column] += 1
        assert max(loads) <= max(1.25 * sum(loads) / 3, min(loads) + 4 * 2) + 1
    assert set(prefixes.holders(session().keys[0])) == {0, 1, 2}
    assert max(loads) - min(loads) <= 1, "then the least loaded home takes each"


def test_for_a_short_start_there_is_less_to_wait_for():
    routes = table(*fleet("ab"))
    session = prompt("x" * 1000)

    def choice(load: int):
        now = Conditions(load=(load, 1).__getitem__, holders=lambda _: (0,))
        return choose(routes, RouteQuery("m", session=session), tried=frozenset(), now=now)

    assert [choice(load).affinity[1] for load in (3, 4)] == ["hit", "spill"]


def test_spills_of_a_start_go_to_one_backend_and_those_of_others_to_others():
    routes = table(*fleet("abcd"))
    now = Conditions(load=(9, 0, 0, 0).__getitem__, holders=lambda _: (0,))
    spills = Counter()
    for n in range(40):
        session = prompt(f"{n} " * 1000)
        query = RouteQuery("m", session=session)
        took = {choose(routes, query, tried=frozenset(), now=now).backend.name for _ in range(3)}
        assert len(took) == 1
        spills.update(took)
    assert set(spills) == {"b", "c", "d"}


def test_a_prompt_that_nobody_knows_goes_where_there_is_little_to_do():
    routes = table(*fleet("ab"))
    session = prompt("y" * 5000)
    home = choose(
        routes,
        RouteQuery("m", session=session),
        tried=frozenset(),
        now=Conditions(load=lambda _: 5),
    ).backend.column
    now = Conditions(load=lambda column: 6 if column == home else 5)
    choice = choose(routes, RouteQuery("m", session=session), tried=frozenset(), now=now)
    assert choice.backend.column != home
