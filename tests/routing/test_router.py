"""Routing decisions, from tables and from hypothesis."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nexus.config import BackendConfig, Config
from nexus.config.routing_records import Policy, Routing
from nexus.errors import RequestFailed
from nexus.fleet.records import Backend, Model, Snapshot
from nexus.fleet.status import CLEAR, EndpointStatus
from nexus.routing.context import Conditions, RouteQuery
from nexus.routing.needs import Requirements
from nexus.routing.policies import NOTHING, Constraints
from nexus.routing.router import AtCapacity, Choice, choose
from nexus.routing.table import RouteTable

ANY = Requirements()


def backend(
    name: str,
    *models: str | Model,
    column: int = 0,
    status: str = "healthy",
    latency_ms: float = 0,
    **config,
) -> Backend:
    return Backend(
        config=BackendConfig(name=name, url="http://x", **config),
        label=name,
        column=column,
        status=status,
        latency_ms=latency_ms,
        models=tuple(Model(name=model) if isinstance(model, str) else model for model in models),
    )


def table(*backends: Backend, **routing) -> RouteTable:
    return RouteTable(
        Snapshot(
            revision=1, published_at=0, config=Config(routing=Routing(**routing)), backends=backends
        )
    )


def pick(
    routes: RouteTable,
    model: str,
    *,
    needs=ANY,
    constraints=NOTHING,
    flexible=False,
    tried=frozenset(),
    **now,
) -> Choice:
    asked = RouteQuery(model=model, needs=needs, constraints=constraints, flexible=flexible)
    return choose(routes, asked, tried=tried, now=Conditions(**{"load": lambda _: 0, **now}))


def refused(*args, **kwargs) -> str:
    with pytest.raises(RequestFailed) as failed:
        pick(*args, **kwargs)
    return failed.value.fault.code


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
    backends = (
        backend("a", "m", priority=9),
        backend("b", "m", priority=1),
        backend("c", "m", priority=9),
    )
    assert [
        pick(table(*backends, strategy="round_robin"), "m", cursor=n).backend.name for n in range(4)
    ] == list("abca")
    assert pick(table(*backends, strategy="priority_only"), "m", chance=0.9).backend.name == "b"
    assert [
        pick(table(*backends, strategy="random"), "m", chance=c).backend.name
        for c in (0, 0.4, 0.99)
    ] == list("abc")


def test_equal_scores_share_by_chance():
    routes = table(backend("a", "m"), backend("b", "m"))
    assert [pick(routes, "m", chance=c).backend.name for c in (0.1, 0.6)] == ["a", "b"]


def test_aliases_resolve_three_deep():
    routes = table(backend("a", "m"), aliases={"x": "y", "y": "z", "z": "m"})
    assert routes.resolve("x") == "m"
    assert routes.resolve("none") == "none"


def test_tried_backends_come_last():
    """First another backend, then the fallback on another one, then the failed one with the
    fallback's model."""
    routes = table(
        backend("a", "m", "f"), backend("b", "m"), backend("c", "f"), fallbacks={"m": ["f"]}
    )
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


def test_overflow_is_reported():
    routes = table(backend("a", "m", column=0, priority=1), backend("b", "m", column=1, priority=2))
    assert pick(routes, "m", load=lambda column: (9, 0)[column]).reason == "capacity-overflow"


def test_full_backends_are_left_out():
    routes = table(
        backend("a", "m", column=0, priority=1, max_concurrent=2),
        backend("b", "m", column=1, priority=99),
    )
    assert pick(routes, "m", load=lambda column: (1, 0)[column]).backend.name == "a"
    assert pick(routes, "m", load=lambda column: (2, 50)[column]).backend.name == "b"


@pytest.mark.parametrize(
    ("backends", "routing", "needs", "fault"),
    [
        ([], {}, ANY, "no_backend"),
        ([backend("a", "other-model")], {}, ANY, "model_not_found"),
        ([backend("a", "m", status="unhealthy")], {}, ANY, "no_healthy_backend"),
        ([backend("a", status="unknown")], {}, ANY, "no_healthy_backend"),
        (
            [backend("a", "m", status="unhealthy")],
            {"fallbacks": {"m": ["f"]}},
            ANY,
            "fallback_exhausted",
        ),
        (
            [backend("a", Model(name="m", tools=False))],
            {},
            Requirements(tools=True),
            "capability_mismatch",
        ),
        (
            [backend("a", Model(name="m", vision=False))],
            {},
            Requirements(vision=True),
            "capability_mismatch",
        ),
        (
            [backend("a", Model(name="m", json_mode=False))],
            {},
            Requirements(json_mode=True),
            "capability_mismatch",
        ),
        (
            [backend("a", Model(name="m", tasks=("rerank",)))],
            {},
            Requirements(task="chat"),
            "capability_mismatch",
        ),
        (
            [backend("a", Model(name="m", tools=False)), backend("b", "m", status="unhealthy")],
            {},
            Requirements(tools=True),
            "no_healthy_backend",
        ),
        (
            [
                backend("a", Model(name="m", tools=False), zone="restricted"),
                backend("b", "m", status="unhealthy", zone="open"),
            ],
            {"policies": [Policy(model_pattern="*", privacy="restricted")]},
            Requirements(tools=True),
            "capability_mismatch",
        ),
        (
            [backend("a", "m", type="generic"), backend("b", "m", type="vllm", status="unhealthy")],
            {},
            Requirements(dialect="anthropic"),
            "no_healthy_backend",
        ),
    ],
)
def test_why_none_can_serve(backends, routing, needs, fault):
    assert refused(table(*backends, **routing), "m", needs=needs) == fault


EVERYTHING = Requirements(task="chat", vision=True, tools=True, json_mode=True, context=10**9)


@pytest.mark.parametrize("name", ["gpt-oss-120b", "prod-llm", "gemma-4-31b-it", "m"])
def test_what_is_not_known_refuses_nobody(name):
    """Nor does it take the request to another model."""
    routes = table(
        backend("a", name),
        backend("b", Model(name="other", vision=True, tools=True)),
        fallbacks={name: ["other"]},
    )
    for needs in (Requirements(tools=True), Requirements(vision=True), EVERYTHING):
        choice = pick(routes, name, needs=needs)
        assert (choice.backend.name, choice.model, choice.reason) == ("a", name, "capability-match")


def test_a_known_lack_leaves_a_backend_out():
    routes = table(backend("a", Model(name="m", tools=False), priority=1), backend("b", "m"))
    assert pick(routes, "m").backend.name == "a"
    assert pick(routes, "m", needs=Requirements(tools=True)).backend.name == "b"
    assert pick(routes, "m", needs=Requirements(vision=True)).backend.name == "a"


def test_a_fallback_serves_what_the_model_is_known_not_to_do():
    routes = table(
        backend("a", Model(name="m", tools=False)), backend("b", "f"), fallbacks={"m": ["f"]}
    )
    choice = pick(routes, "m", needs=Requirements(tools=True))
    assert (choice.backend.name, choice.model, choice.reason) == ("b", "f", "failover")


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        (Requirements(task="chat", vision=True, context=9), "images"),
        (Requirements(task="chat", vision=True, tools=True, json_mode=True), "images, tools"),
        (Requirements(task="embeddings", tools=True, context=50_000), "tools, embeddings"),
    ],
)
def test_a_refusal_names_what_was_requested_and_is_lacking(needs, words):
    routes = table(
        backend("a", Model(name="m", vision=False, tools=False, tasks=("chat",), context_length=10))
    )
    with pytest.raises(RequestFailed) as failed:
        pick(routes, "m", needs=needs)
    assert (
        failed.value.message
        == f"No backend that has 'm' can do what the request asks for: {words}."
    )


def sized(**lengths: int | None) -> RouteTable:
    return table(*(backend(name, Model(name="m", context_length=length), column=column)
                   for column, (name, length) in enumerate(lengths.items())))  # fmt: skip


@pytest.mark.parametrize(
    ("lengths", "context", "may"),
    [
        ({"a": 1000}, 5000, "a"),  # the only one gets its own response
        ({"a": 1000, "b": 1000}, 5000, "ab"),
        ({"a": 1000, "b": 4000}, 900, "ab"),
        ({"a": 1000, "b": 4000}, 1001, "b"),
        ({"a": 1000, "b": 4000, "c": 8000}, 3000, "bc"),
        ({"a": 1000, "b": 4000}, 99_000, "b"),  # too long for all: the largest
        ({"a": 1000, "b": None}, 5000, "ab"),  # what is not known is a candidate like any other
        ({"a": 1000, "b": None, "c": 4000}, 5000, "bc"),
    ],
)
def test_a_context_decides_between_known_lengths(lengths, context, may):
    routes = sized(**lengths)
    needs = Requirements(context=context)
    picked = {pick(routes, "m", needs=needs, chance=n / 10).backend.name for n in range(10)}
    assert picked == set(may)
    assert pick(routes, "m", needs=needs).reason == "capability-match"


def test_an_estimate_gives_way_to_an_open_circuit():
    routes = sized(a=1000, b=4000)
    status = lambda c, _: (CLEAR, EndpointStatus(state="open", ready_in_s=1))[c]  # noqa: E731
    assert pick(routes, "m", needs=Requirements(context=2000), status=status).backend.name == "a"


def test_beyond_a_context_only_longer_ones_that_are_known():
    routes = table(
        backend("a", Model(name="m", context_length=1000)),
        backend("b", Model(name="m")),
        backend("c", Model(name="f", context_length=8000)),
        fallbacks={"m": ["f"]},
    )
    asked = RouteQuery(model="m", longer_than=1000)
    choice = choose(routes, asked, tried={("a", "m")}, now=Conditions(load=lambda _: 0))
    assert (choice.backend.name, choice.model, choice.context_length) == ("c", "f", 8000)
    with pytest.raises(RequestFailed):
        choose(
            routes,
            RouteQuery(model="m", longer_than=8000),
            tried=frozenset(),
            now=Conditions(load=lambda _: 0),
        )


class Unread:
    """Needs of a body that is too costly to read."""

    dialect = "openai"
    translations = ()

    def __getattr__(self, name: str):
        raise AssertionError(f"{name} was read")


def test_needs_are_read_only_where_they_decide():
    assert pick(sized(a=1000, b=1000, c=None), "m", needs=Unread()).backend.name == "a"
    with pytest.raises(AssertionError, match="context was read"):
        pick(sized(a=1000, b=2000), "m", needs=Unread())
    with pytest.raises(AssertionError, match="tools was read"):
        pick(table(backend("a", Model(name="m", tools=False))), "m", needs=Unread())


def test_a_request_goes_where_its_dialect_is_spoken():
    routes = table(
        backend("a", "m", type="openai"),
        backend("b", "m", type="vllm"),
        backend("c", "m", type="vllm", dialects=["openai"]),
        backend("d", "m", "claude", type="anthropic"),
    )
    assert {pick(routes, "m").backend.name for _ in range(8)} <= {"a", "b", "c"}
    needs = Requirements(dialect="anthropic")
    assert {pick(routes, "m", needs=needs).backend.name for _ in range(8)} <= {"b", "d"}
    with pytest.raises(RequestFailed, match=r"'claude' .*\(openai\).* at d") as caught:
        pick(routes, "claude")
    assert caught.value.fault.code == "dialect_not_spoken"


def test_a_translated_backend_comes_after_those_that_need_no_translation():
    needs = Requirements(dialect="anthropic", translations=(("openai", "messages-to-chat"),))
    routes = table(
        backend("chat", "m", column=0, type="generic", priority=1),
        backend("native", "m", column=1, type="vllm", priority=1),
        backend("closed", "m", column=2, type="generic", priority=1, translate=False),
        backend("none", "m", column=3, type="generic", priority=1, translate=[]),
        backend("other", "m", column=4, type="generic", translate=["responses-to-chat"]),
    )
    for n in range(20):
        choice = pick(routes, "m", needs=needs, chance=n / 20, load=(5, 9, 0, 0, 0).__getitem__)
        assert (choice.backend.name, choice.translation) == ("native", None)
    choice = pick(routes, "m", needs=needs, tried={("native", "m")})
    assert (choice.backend.name, choice.translation) == ("chat", "messages-to-chat")
    assert refused(routes, "m", needs=needs, tried={("native", "m"), ("chat", "m")})
    other = Requirements(dialect="responses", translations=(("openai", "responses-to-chat"),))
    choice = pick(routes, "m", needs=other, tried={("native", "m"), ("chat", "m")})
    assert (choice.backend.name, choice.translation) == ("other", "responses-to-chat")
    routes = table(
        backend("chat", "m", column=0, type="generic", priority=1),
        backend("native", "m", column=1, type="vllm", priority=9),
        strategy="priority_only",
    )
    assert pick(routes, "m", needs=needs).backend.name == "chat", "priority comes first"
    assert pick(routes, "m").translation is None


def test_backends_that_need_no_translation_are_not_ready():
    """A request without a translation waits for them, or is told that they are down."""
    needs = Requirements(dialect="anthropic", translations=(("openai", "messages-to-chat"),))
    open_ = EndpointStatus("open", ready_in_s=9)

    query = RouteQuery("m", needs=needs, native=True)

    def after_chat(*natives, **now):
        routes = table(backend("chat", "m", type="generic"), *natives)
        conditions = Conditions(**{"load": lambda _: 0, **now})
        return choose(routes, query, tried={("chat", "m")}, now=conditions)

    native = backend("native", "m", column=1, type="vllm", max_concurrent=1)
    for natives, load, fault in (
        ([native], 1, "at_capacity"),
        ([replace(native, status="unhealthy")], 0, "no_healthy_backend"),
        ([], 0, "dialect_not_spoken"),
    ):
        with pytest.raises(RequestFailed) as failed:
            after_chat(*natives, load=[0, load].__getitem__)
        assert failed.value.fault.code == fault
    choice = after_chat(native, status=lambda column, _: open_ if column else CLEAR)
    assert choice.backend.name == "native"


OLLAMA = ("llama3.2:latest", "Qwen:7b", "hf.co/user/model:latest")


@pytest.mark.parametrize(
    ("asked", "resolved"),
    [
        ("llama3.2", "llama3.2:latest"),
        ("Llama3.2", "llama3.2:latest"),
        ("LLAMA3.2:LATEST", "llama3.2:latest"),
        ("library/llama3.2", "llama3.2:latest"),
        ("registry.ollama.ai/library/llama3.2", "llama3.2:latest"),
        ("qwen:7B", "Qwen:7b"),
        ("qwen", "qwen"),
        ("hf.co/User/Model", "hf.co/user/model:latest"),
        ("mine", "llama3.2:latest"),
        ("my-alias", "/models/tiny.gguf"),
        ("My-Alias", "My-Alias"),
        ("VLLM/model", "VLLM/model"),
    ],
)
def test_equivalent_names(asked, resolved):
    routes = table(
        backend("o", *OLLAMA, type="ollama"),
        backend("l", Model(name="/models/tiny.gguf", aliases=("my-alias",)), type="llamacpp"),
        backend("v", "vllm/model", type="vllm"),
        aliases={"mine": "llama3.2"},
    )
    assert routes.resolve(asked) == resolved
    known = resolved in routes.candidates
    assert (pick(routes, resolved).model if known else refused(routes, resolved)) == (
        resolved if known else "model_not_found"
    )


def test_a_listed_name_goes_before_an_equivalent_one_and_both_serve():
    routes = table(
        backend("o", "llama3.2:latest", type="ollama"),
        backend("v", "llama3.2", type="vllm"),
        backend("l", Model(name="tiny", aliases=("llama3.2",)), type="llamacpp"),
    )
    assert routes.resolve("llama3.2") == "llama3.2"
    assert {candidate.backend.name for candidate in routes.candidates_for("llama3.2")} == {
        "o",
        "v",
        "l",
    }
    assert [candidate.backend.name for candidate in routes.candidates_for("llama3.2:latest")] == [
        "o"
    ]
    assert [candidate.backend.name for candidate in routes.candidates_for("tiny")] == ["l"]


def test_a_fallback_may_be_an_alias():
    routes = table(
        backend("a", "m"),
        aliases={"other": "second", "second": "m", "own": "gone"},
        fallbacks={"gone": ["own", "other"]},
    )
    assert routes.chain("gone") == ("gone", "m")
    assert pick(routes, "gone").model == "m"


def test_fallbacks_know_equivalent_names():
    routes = table(backend("o", "b:latest", type="ollama"), fallbacks={"a": ["b"], "B": ["c"]})
    assert routes.chain("a") == ("a", "b:latest")
    assert routes.chain(routes.resolve("b")) == ("b:latest", "c")


def test_a_pattern_in_a_list_covers_names():
    routes = table(
        backend("p", "wild/*"), backend("q", "wild/listed"), fallbacks={"m": ["wild/one"]}
    )
    choice = pick(routes, "wild/not-listed")
    assert (choice.backend.name, choice.model) == ("p", "wild/not-listed"), (
        "it is asked for by its own name"
    )
    assert pick(routes, "wild/listed").backend.name == "q"
    assert pick(routes, "m").model == "wild/one"
    assert refused(routes, "tame/one") == "model_not_found"
    assert routes.entry("wild/not-listed") == "wild/*"


def test_a_busy_model_that_a_pattern_covers_is_not_requested_again():
    """The backend's answer named the model, not the pattern; its other models are free."""
    routes = table(backend("p", "wild/*", column=1), backend("q", "wild/*", column=2))
    asked_about = []

    def status(column: int, model: str) -> EndpointStatus:
        asked_about.append(model)
        return EndpointStatus(busy_s=20.0) if (column, model) == (1, "wild/one") else CLEAR

    assert {
        pick(routes, "wild/one", status=status, chance=n / 10).backend.name for n in range(10)
    } == {"q"}
    assert set(asked_about) == {"wild/one"}
    only = table(backend("p", "wild/*", column=1))
    with pytest.raises(AtCapacity) as no_room:
        pick(only, "wild/one", status=status)
    assert (no_room.value.fault.code, no_room.value.ready_in_s) == ("at_capacity", 20.0)
    assert no_room.value.headers["retry-after"] == "20"
    assert "busy" in no_room.value.headers["x-nexus-rejection-reasons"]
    assert pick(only, "wild/two", status=status).model == "wild/two"


def test_policies_hold_for_fallbacks_that_a_pattern_covers():
    routes = table(
        backend("cloud", "wild/*", zone="open"),
        fallbacks={"m": ["wild/secret", "wild/plain"], "n": ["wild/secret"]},
        policies=[Policy(model_pattern="wild/secret", privacy="restricted")],
    )
    assert pick(routes, "m").model == "wild/plain"
    assert refused(routes, "n") == "routing_rejected"


def test_not_found_lists_what_there_is():
    with pytest.raises(RequestFailed, match=r"Available: a, b\."):
        pick(table(backend("x", "b", "a"), backend("y", "c", status="unhealthy")), "nope")


def test_near_equals_are_spread_and_better_ones_win():
    """Those within one request of the best count as equal; of two at random, the better one."""
    routes = table(*(backend(name, "m", column=column) for column, name in enumerate("abcd")))
    loads = (0, 1, 1, 9)
    picks = Counter(
        pick(routes, "m", load=lambda c: loads[c], chance=n / 1000).backend.name
        for n in range(1000)
    )
    assert set(picks) == {"a", "b", "c"}
    assert picks["a"] > picks["b"] + picks["c"], "it wins each pair that it is in"


@pytest.mark.parametrize(
    ("status", "fault", "retry_after"),
    [
        (EndpointStatus(state="open", ready_in_s=3.2), "no_healthy_backend", "4"),
        (EndpointStatus(busy_s=2.0), "at_capacity", "2"),
    ],
)
def test_taken_out_by_what_requests_saw(status, fault, retry_after):
    routes = table(backend("a", "m", column=0), backend("b", "m", column=1))
    assert pick(routes, "m", status=lambda c, _: (status, CLEAR)[c]).backend.name == "b"
    with pytest.raises(RequestFailed) as failed:
        pick(routes, "m", status=lambda *_: status, tried={("x", "m")})
    assert failed.value.fault.code == fault
    assert failed.value.headers["retry-after"] == retry_after
    assert isinstance(failed.value, AtCapacity) is (fault == "at_capacity")


OPEN = EndpointStatus(state="open", ready_in_s=3.2)


@pytest.mark.parametrize(
    ("a", "b", "picked"),
    [
        (OPEN, OPEN, "a"),  # the best one is tried all the same
        (OPEN, EndpointStatus(state="open", failures=9), "a"),
        (EndpointStatus(state="open", busy_s=2.0), OPEN, "b"),
        (OPEN, EndpointStatus(busy_s=2.0), None),  # one that only is busy is waited for
        (EndpointStatus(state="open", busy_s=2.0), EndpointStatus(state="open", busy_s=1.0), None),
    ],
)
def test_open_circuits_never_keep_all_backends_out(a, b, picked):
    routes = table(backend("a", "m", column=0, priority=1), backend("b", "m", column=1))
    status = lambda c, _: (a, b)[c]  # noqa: E731
    if picked is not None:
        choice = pick(routes, "m", status=status)
        assert (choice.backend.name, choice.half_open_probe) == (picked, False)
    else:
        with pytest.raises(AtCapacity):
            pick(routes, "m", status=status)
    with pytest.raises(RequestFailed):
        pick(routes, "m", status=status, tried={("x", "m")})


def test_open_circuits_give_way_to_a_fallback_first():
    routes = table(backend("a", "m", column=0), backend("b", "n", column=1), fallbacks={"m": ["n"]})
    assert pick(routes, "m", status=lambda c, _: (OPEN, CLEAR)[c]).backend.name == "b"


def test_open_circuits_let_nobody_past_a_limit():
    routes = table(backend("a", "m", column=0, max_concurrent=2))
    with pytest.raises(AtCapacity):
        pick(routes, "m", status=lambda *_: OPEN, load=lambda _: 2)


def test_busy_holds_for_the_model_that_it_was_said_of():
    routes = table(backend("a", "m", "n", column=0))
    status = lambda _, model: EndpointStatus(busy_s=9.0) if model == "m" else CLEAR  # noqa: E731
    assert pick(routes, "n", status=status).model == "n"
    with pytest.raises(AtCapacity):
        pick(routes, "m", status=status)


def test_half_open_is_tried_first_but_not_by_a_retry():
    routes = table(
        backend("a", "m", column=0, priority=1),
        backend("b", "m", column=1),
        backend("c", "x", "m", column=2),
    )
    status = lambda c, _: (CLEAR, EndpointStatus(state="half_open"), CLEAR)[c]  # noqa: E731
    choice = pick(routes, "m", status=status)
    assert (choice.backend.name, choice.half_open_probe) == ("b", True)
    assert pick(routes, "m", status=status, tried={("c", "m")}).backend.name == "a"


def test_slow_start_gives_a_share():
    routes = table(
        backend("a", "m", column=0),
        backend("b", "m", column=1, priority=99),
        strategy="priority_only",
    )
    status = lambda c, _: (EndpointStatus(share=0.25), CLEAR)[c]  # noqa: E731
    picks = Counter(
        pick(routes, "m", status=status, chance=n / 4000).backend.name for n in range(4000)
    )
    assert 900 < picks["a"] < 1100
    assert (
        pick(table(backend("a", "m", column=0)), "m", status=status, chance=0.99).backend.name
        == "a"
    ), "it is alone"


def test_failing_fast_is_no_attraction():
    routes = table(backend("a", "m", column=0), backend("b", "m", column=1))
    status = lambda c, _: (EndpointStatus(failures=4), CLEAR)[c]  # noqa: E731
    assert (
        pick(routes, "m", status=status, load=lambda c: (0, 3)[c], chance=0.5).backend.name == "b"
    )


def test_a_full_backend_that_others_wait_for():
    routes = table(
        backend("a", "m", column=0, max_concurrent=9), backend("b", "m", column=1, max_concurrent=9)
    )
    assert pick(routes, "m", waited_for=lambda c: c == 0).backend.name == "b"
    with pytest.raises(AtCapacity) as none:
        pick(routes, "m", waited_for=lambda _: True)
    assert [backend.name for backend in none.value.backends] == ["a", "b"]
    routes = table(backend("a", "m", column=0, max_concurrent=9), backend("b", "m", column=1))
    assert pick(routes, "m", waited_for=lambda _: True).backend.name == "b", (
        "without a limit nobody waits"
    )


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
            [
                CLEAR,
                EndpointStatus(state="open", ready_in_s=1),
                EndpointStatus(state="half_open"),
                EndpointStatus(busy_s=1),
                EndpointStatus(share=0.3, failures=2),
            ]
        ),
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
    st.booleans(),
    st.integers(0, 5),
    st.booleans(),
)
def test_never_one_that_is_excluded(
    fleet, strategy, loads, turn, chance, restricted, min_tier, flexible
):
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
    statuses = [entry[-1] for entry in fleet]
    tried: set[tuple[str, str]] = set()
    for _ in range(13):
        given_ = {
            "tried": frozenset(tried),
            "load": lambda c: loads[c],
            "cursor": turn,
            "chance": chance,
            "status": lambda c, _: statuses[c],
            "constraints": Constraints(restricted, min_tier),
            "flexible": flexible,
        }
        try:
            choice = pick(routes, "m", **given_)
        except RequestFailed:
            break
        assert pick(routes, "m", **given_) == choice
        found, status = choice.backend, statuses[choice.backend.column]
        assert found.status == "healthy"
        assert choice.model in {model.name for model in found.models} & {"m", "f"}
        assert found.limit is None or loads[found.column] < found.limit
        assert status.state != "open" or not tried, "open circuits yield to a first attempt only"
        assert not status.busy_s
        assert found.restricted or not restricted
        assert found.config.tier >= min_tier or flexible
        assert (found.name, choice.model) not in tried
        tried.add((found.name, choice.model))
    else:
        pytest.fail("it never ran out of backends")
