"""Asking for the usage of a stream, and reading it from whole responses."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.dialects.base import Usage
from nexus.dialects.openai.usage import (
    ask_for_usage,
    asks_for_usage,
    parse_timings,
    parse_usage,
    usage_in_response,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(min_size=1, max_size=8), values, min_size=1, max_size=5),
    st.none() | st.just({}) | st.just({"include_usage": False, "x": 1}),
    st.sampled_from([None, 1]),
)
def test_nothing_else_changes(fields, options, indent):
    fields.pop("stream_options", None)
    given_ = {**fields, **({"stream_options": options} if options is not None else {})}
    asked = json.loads(ask_for_usage(json.dumps(given_, indent=indent).encode() + b" \n"))
    assert asked.pop("stream_options") == {**(options or {}), "include_usage": True}
    assert asked == fields
    assert asks_for_usage(ask_for_usage(json.dumps(given_).encode()))


def test_what_is_no_object_is_left_to_the_backend():
    body = b'{"model":"m","stream_options":[1]}'
    assert ask_for_usage(body) == body


@pytest.mark.parametrize(
    ("body", "asks"),
    [
        ({"stream_options": {"include_usage": True}}, True),
        ({"stream_options": {"include_usage": False}}, False),
        ({"stream_options": None, "x": "include_usage"}, False),
        ({"stream_options": {"other": 1}, "text": '"include_usage"'}, False),
    ],
)
def test_asks_for_usage(body, asks):
    assert asks_for_usage(json.dumps(body).encode()) is asks


def test_usage_of_a_whole_response():
    answer = {
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 2},
        }
    }
    assert usage_in_response(json.dumps(answer).encode()) == Usage(3, 5, cached_tokens=2)
    assert usage_in_response(b'{"usage": null}') is None
    assert usage_in_response(b'{"usage": "odd"}') is None
    assert usage_in_response(b"{}") is None


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        ({"prompt_tokens": 3, "completion_tokens": -1}, Usage(3, None)),
        ({"prompt_tokens": 10**400, "completion_tokens": 5}, Usage(None, 5)),
        ({"prompt_tokens": 3.0, "completion_tokens": 2.5}, Usage(3, None)),
        ({"prompt_tokens": True, "completion_tokens": "5"}, None),
        (
            {"prompt_tokens": 3, "prompt_tokens_details": [], "completion_tokens_details": "x"},
            Usage(3),
        ),
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": -1}}, Usage(3)),
        (
            {
                "prompt_tokens": 3,
                "completion_tokens": 4,
                "prompt_tokens_details": {"cached_tokens": 9},
                "completion_tokens_details": {"reasoning_tokens": 9},
            },
            Usage(3, 4, cached_tokens=3, reasoning_tokens=4),
        ),
        (
            {"prompt_tokens": 100_000_000, "completion_tokens": 100_000_001},
            Usage(100_000_000, None),
        ),
        ({"prompt_tokens": 2**53, "completion_tokens": 2.0**53}, None),
        ({}, None),
    ],
)
def test_a_number_that_is_no_count_is_not_reported(told, usage):
    """A counter that went down, or a sum that overflowed, would be wrong for as long as the
    gateway runs."""
    assert usage_in_response(json.dumps({"usage": told}).encode()) == usage
    assert parse_usage(json.dumps(told).encode()) == usage


@pytest.mark.parametrize(
    ("more", "usage"),
    [
        (
            {"prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 3}},
            Usage(9, 1, cached_tokens=2, cache_write_tokens=3),
        ),
        ({"prompt_tokens_details": {"cache_creation_tokens": 3}}, Usage(9, 1, None, None, 3)),
        ({"prompt_cache_hit_tokens": 2, "prompt_cache_miss_tokens": 7}, Usage(9, 1, 2)),
        ({"cached_tokens": 2}, Usage(9, 1, 2)),
        ({"prompt_tokens_details": {"cached_tokens": 0}, "cached_tokens": 2}, Usage(9, 1, 0)),
    ],
)
def test_servers_name_the_tokens_of_caches_differently(more, usage):
    told = {"prompt_tokens": 9, "completion_tokens": 1} | more
    assert usage_in_response(json.dumps({"usage": told}).encode()) == usage
    assert parse_usage(json.dumps(told).encode()) == usage


@pytest.mark.parametrize(
    ("total", "details", "cached", "completion"),
    [
        (9 + 1 + 30, {"reasoning_tokens": 30}, 2, 31),  # xAI
        (9 + 1 + 30, None, 2, 31),  # Google
        (9 + 1, {"reasoning_tokens": 1}, 2, 1),
        (9 + 1 + 30, {"reasoning_tokens": 0}, 2, 1),
        (9 + 1 + 2, None, 2, 1),  # the cache beside the prompt
        (9 + 1 + 3, None, 2, 1),
        (9 + 1 + 2 + 3, None, 2, 1),
        (9, None, 2, 1),
        (-1, None, 2, 1),
    ],
)
def test_reasoning_that_is_only_in_the_total_is_of_the_completion(
    total, details, cached, completion
):
    told = {
        "prompt_tokens": 9,
        "completion_tokens": 1,
        "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 3},
        "completion_tokens_details": details,
    }
    assert parse_usage(json.dumps(told).encode()).completion_tokens == completion


@pytest.mark.parametrize(
    ("response", "usage"),
    [
        ({"results": [], "usage": {"total_tokens": 8}}, Usage(8)),
        ({"data": [], "usage": {"prompt_tokens": 7, "total_tokens": 8}}, Usage(7)),
        ({"data": [], "usage": {"total_tokens": -8}}, None),
        ({"choices": [], "usage": {"total_tokens": 8}}, None),
    ],
)
def test_a_total_alone_is_the_prompts_if_nothing_was_generated(response, usage):
    assert usage_in_response(json.dumps(response).encode()) == usage
    assert parse_usage(b'{"total_tokens":8}') is None, "a stream generates"


@pytest.mark.parametrize(
    "usage",
    [
        '{"prompt_tokens":3,"completion_tokens":5}',
        '{"prompt_tokens": 3, "completion_tokens": 5, "x": NaN}',
    ],
)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"data":[{"embedding":[0.1,NaN,-Infinity]}],"usage": ', "}"),
        ('{"usage" : ', ',"data":[{"embedding":[NaN]}]}'),
        ('\ufeff{"choices":[],"usage":', "}"),
        (
            '{"choices":[{"message":{"content":"\\ud83d"},"finish_reason":"\\ud83d"}],"usage":',
            ',"x":Infinity}',
        ),
    ],
)
def test_usage_beside_json_that_is_not_strict(before, after, usage):
    answer = f"{before}{usage}{after}".encode()
    assert usage_in_response(answer, lenient=True) == Usage(3, 5)
    assert usage_in_response(answer) is None, "it may be cut short as well"


@pytest.mark.parametrize(
    "answer",
    [b'{"x":NaN,"usage":[]}', b'NaN "usage"', b'NaN "usage":{"prompt_tokens":', b'NaN "usage":[1]'],
)
def test_what_is_no_usage_beside_json_that_is_not_strict(answer):
    assert usage_in_response(answer, lenient=True) is None


@pytest.mark.parametrize(
    ("timings", "usage"),
    [
        (
            {"cache_n": 13, "prompt_n": 1, "predicted_n": 4, "predicted_ms": 0.8},
            Usage(14, 4, cached_tokens=13),
        ),
        ({"prompt_n": 1, "predicted_n": 4}, Usage(None, 4)),
        ({"cache_n": 13, "prompt_n": 1}, None),
        ({"predicted_n": -1}, None),
        ([], None),
    ],
)
def test_timings(timings, usage):
    """llama.cpp counts the prompt's cached tokens apart; its older versions do not tell them."""
    assert parse_timings(json.dumps(timings).encode()) == usage
