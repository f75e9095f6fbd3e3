"""Which limits hold for a request."""

import json

import pytest

from nexus.access.callers import Caller
from nexus.access.limits import Limits, amounts
from nexus.config.access_records import Key, Team
from nexus.config.limit_records import Limit, Match, OwnLimits
from nexus.config.records import Config
from nexus.dialects.anthropic.limits import limit_headers
from nexus.dialects.base import PromptField, RequestForm
from nexus.dialects.estimate import estimate_tokens
from nexus.dialects.json_body import read_fields
from nexus.dialects.openai.limits import duration

CHAT = RequestForm(prompts=(PromptField(name="messages", messages=True),), task="chat")
INPUT = RequestForm(prompts=(PromptField(name="input"),), task="embeddings")


def estimated(body: bytes, form: RequestForm):
    return estimate_tokens(read_fields(body), len(body), form)


def subjects(limit, *requests):
    limits = Limits([limit])
    return [
        [(counter.dimension, counter.subject) for counter in limits.counters(*request)]
        for request in requests
    ]


def test_globs_of_a_limit_and_what_it_counts_apart():
    limit = Limit(
        name="a",
        match=Match(team="res*", model="llama*"),
        each=["key", "model"],
        requests="1/s",
        parallel=2,
    )
    of_team = Caller(key="k1", team="research")
    assert subjects(
        limit,
        (of_team, "llama3", "chat_completions"),
        (of_team, "qwen", "chat_completions"),
        (Caller(key="k2", team="other"), "llama3", "chat_completions"),
        (None, "llama3", "chat_completions"),
    ) == [
        [("requests", "key k1, model llama3"), ("parallel", "key k1, model llama3")],
        [],
        [],
        [],
    ]


def test_counters_of_different_subjects_have_different_records():
    limits = Limits([Limit(name="a", each=["key"], requests="1/s", tokens="1/s")])
    found = {
        counter.digest
        for key in ("k1", "k2", "none")
        for counter in limits.counters(Caller(key=key), "m", "e")
    }
    assert len(found) == 6
    shared = Limits([Limit(name="a", requests="1/s")])
    [one], [other] = (shared.counters(Caller(key=key), "m", "e") for key in ("k1", "k2"))
    assert one.digest == other.digest


def test_no_limits():
    assert Limits.of(Config(keys=[Key(id="k1", sha256=["0" * 64])])) is None


def test_keys_and_teams_have_limits_of_their_own():
    limits = Limits.of(
        Config(
            keys=[
                Key(id="k1", sha256=["0" * 64], limits=OwnLimits(requests="2/s", parallel=3)),
                Key(id="k2", sha256=["1" * 64]),
            ],
            teams=[Team(name="research", limits=OwnLimits(tokens="5k/min"))],
            limits=[Limit(name="all", requests="9/s")],
        )
    )
    assert limits is not None

    def counted(caller):
        return [
            (counter.limit.name, counter.dimension, counter.subject, counter.burst)
            for counter in limits.counters(caller, "m", "e")
        ]

    everyone = ("all", "requests", "", 9)
    of_team = ("[[teams]]", "tokens", "team research", 5000)
    assert counted(Caller(key="k1", team="research")) == [
        everyone,
        ("[[keys]]", "requests", "key k1", 2),
        ("[[keys]]", "parallel", "key k1", 3),
        of_team,
    ]
    assert counted(Caller(key="k2", team="research")) == [everyone, of_team]
    assert counted(None) == [everyone]


def test_amounts():
    assert amounts(20, 300) == {
        "requests": 1, "tokens": 320, "input_tokens": 20, "output_tokens": 300,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0ms"),
        (1, "1ms"),
        (20_000_000, "20ms"),
        (1_000_000_000, "1s"),
        (360_000_000_000, "6m0s"),
        (3_723_000_000_001, "1h2m4s"),
    ],
)
def test_durations_as_openai_writes_them(ns, text):
    assert duration(ns) == text


@pytest.mark.parametrize(
    ("body", "form", "estimate"),
    [
        ({"messages": [{"content": "x" * 374}]}, CHAT, (97, None)),
        ({"messages": [{"content": "hi"}], "max_tokens": 9}, CHAT, (4, 9)),
        ({"messages": [{"content": "hi"}], "max_tokens": "many"}, CHAT, (4, None)),
        ({"messages": [{}], "max_tokens": 9, "max_completion_tokens": 1}, CHAT, (1, 9)),
        ({"messages": [{}], "max_tokens": "9"}, CHAT, (1, 9)),
        ({"messages": [{}], "max_tokens": 10**400, "n": 10**400}, CHAT, (1, 10**9)),
        ({"messages": [{"type": "image_url", "u": "data:image/png;base64,A"}]}, CHAT, (1606, None)),
        ({"input": [[1, 2, 3], [4, 5]]}, INPUT, (5, 0)),
        ({"input": "x" * 398}, INPUT, (100, 0)),
    ],
)  # fmt: skip
def test_the_estimate_of_a_request(body, form, estimate):
    text = json.dumps({"model": "m", **body}, separators=(",", ":"))
    assert estimated(text.encode(), form)[:2] == estimate


@pytest.mark.parametrize(
    ("fields", "choices"),
    [
        ('"prompt": "a, b"', 1),
        ('"prompt": [1, 2, 3]', 1),
        ('"prompt": ["a, b", "c"]', 2),
        ('"prompt": [[1, 2], [3], [4]], "n": 2', 6),
        ('"prompt": ["\\ud83d", "b"]', 2),
        ('"prompt": [NaN, "b"]', 2),
        ('"prompt": [], "n": "3"', 3),
        ('"prompt": "a", "n": 3.0, "best_of": -4', 3),
        ('"prompt": "a", "n": 1.5', 1),
    ],
)
def test_how_many_responses_a_request_asks_for(fields, choices):
    form = RequestForm(prompts=(PromptField(name="prompt"),), task="chat")
    assert estimated(f'{{"model": "m", {fields}}}'.encode(), form).choices == choices


def test_the_bound_of_a_request():
    """One token for each byte of the whole body but inline data; more beside it."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5000}}
    body = {
        "messages": [{"role": "system", "content": "é" * 9}, {"role": "user", "content": [image]}],
        "tools": [{"type": "function"}],
        "max_tokens": 7,
        "n": 3,
    }
    text = json.dumps(body, ensure_ascii=False).encode()
    found = estimated(text, CHAT)
    assert (found.output_limit, found.choices) == (7, 3)
    assert found.beside == 2 * 16 + 1600 + 512
    assert 0 <= len(text) - 5000 - found.size < 100
    assert found.bound(strict=True) == found.size + found.beside
    assert found.bound(strict=False) == -(-found.size // 2) + found.beside


def test_headers_in_anthropics_form():
    at = limit_headers("input-tokens", limit=10, remaining=3, reset_ns=1_500_000_000, now=0.0)
    assert at == [
        ("anthropic-ratelimit-input-tokens-limit", "10"),
        ("anthropic-ratelimit-input-tokens-remaining", "3"),
        ("anthropic-ratelimit-input-tokens-reset", "1970-01-01T00:00:02Z"),
    ]
