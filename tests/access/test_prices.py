"""What requests cost, against figures made by hand, for both forms of usage."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.access.prices import FREE, TYPES, Prices, cost, most, total, usd
from nexus.config import BackendConfig
from nexus.config.cost_records import Price, Tier
from nexus.dialects import anthropic, openai

GPT = Price(model="gpt*", input="1.25", cached_input="0.125", output="10.00")
LONG = Tier(input_tokens=200_000, input="6", cached_input="0.60", cache_write="7.5", output="22.50")
CLAUDE = Price(
    model="claude*",
    input="3",
    cached_input="0.30",
    cache_write="3.75",
    cache_write_1h="6",
    output="15",
    above=LONG,
)
GPU = Price(model="gpu*", per_request="0.001", per_image="0.04", per_second="0.000833333333")
TINY = Price(model="tiny*", input="0.000001", output="0.0005")
CLOUD = BackendConfig(name="cloud", url="http://127.0.0.1:1", type="openai")
LOCAL = BackendConfig(name="local", url="http://127.0.0.1:1", type="ollama")
PRICES = Prices([GPT, CLAUDE, GPU, TINY])


def openai_usage(prompt, completion, cached=None):
    details = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, **details}
    return openai.usage_in_response(json.dumps({"usage": usage}).encode())


def anthropic_usage(prompt, completion, read=0, written=0, hour=0):
    usage = {
        "input_tokens": prompt,
        "output_tokens": completion,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        "cache_creation": {"ephemeral_1h_input_tokens": hour} if hour else None,
    }
    return anthropic.usage_in_response(json.dumps({"usage": usage}).encode())


@pytest.mark.parametrize(
    ("model", "usage", "parts"),
    [
        # 1,000 x $1.25/M = $0.00125, 200 x $10/M = $0.002
        ("gpt-5", openai_usage(1000, 200), {"input": 1_250_000, "output": 2_000_000}),
        # 600 of the 1,000 are cached: 400 x 1.25 + 600 x 0.125 millionths
        (
            "gpt-5",
            openai_usage(1000, 200, cached=600),
            {"input": 500_000, "cached": 75_000, "output": 2_000_000},
        ),
        # Beside the 100 come 600 read and 300 written
        (
            "claude-x",
            anthropic_usage(100, 10, read=600, written=300),
            {"input": 300_000, "cached": 180_000, "cache_write": 1_125_000, "output": 150_000},
        ),
        # 200 of the 300 that were written are kept for an hour, and never more than were written
        (
            "claude-x",
            anthropic_usage(100, 10, written=300, hour=200),
            {"input": 300_000, "cache_write": 1_575_000, "output": 150_000},
        ),
        ("claude-x", anthropic_usage(0, 0, written=1, hour=9), {"cache_write": 6_000}),
        # Exactly at the border of the tier, and one above
        ("claude-x", anthropic_usage(200_000, 0), {"input": 600_000_000}),
        ("claude-x", anthropic_usage(200_001, 1), {"input": 1_200_006_000, "output": 22_500}),
        (
            "claude-x",
            anthropic_usage(1, 0, read=200_000),
            {"input": 6_000, "cached": 120_000_000},
        ),
        # 1 x 10^-12 rounds to 0; 500 of them are half a nano-dollar, which rounds up
        ("tiny", openai_usage(499, 0), {}),
        ("tiny", openai_usage(500, 0), {"input": 1}),
        # 0.25 + 0.5 nano-dollars: the sum rounds to 1
        ("tiny", openai_usage(250, 1), {"output": 1}),
    ],
)
def test_cost_by_type(model, usage, parts):
    price = PRICES.find(CLOUD, model)
    found = cost(
        price,
        prompt=usage.prompt_tokens,
        completion=usage.completion_tokens,
        cached=usage.cached_tokens or 0,
        cache_write=usage.cache_write_tokens or 0,
        cache_write_1h=usage.cache_write_1h_tokens,
    )
    assert dict(found) == parts


def test_requests_and_time():
    found = cost(PRICES.find(CLOUD, "gpu-7b"), prompt=9, completion=9, microseconds=1_500_000)
    assert dict(found) == {"request": 1_000_000, "time": 1_250_000}
    found = cost(PRICES.find(CLOUD, "gpu-7b"), prompt=9, completion=0, images=3)
    assert dict(found) == {"request": 1_000_000, "image": 120_000_000}
    assert most(PRICES.find(CLOUD, "gpu-7b"), 9, 0, images=3) == 121_000_000


def test_the_first_price_that_matches_counts():
    dear, cheap = Price(backend="cl*", model="m", input="2"), Price(input="1")
    prices = Prices([dear, cheap])
    assert prices.find(CLOUD, "m").rates.input == 2_000_000
    assert prices.find(CLOUD, "n").rates.input == 1_000_000
    assert prices.find(LOCAL, "m").rates.input == 1_000_000


def test_an_hour_in_the_cache_costs_as_much_as_other_writes_of_its_table():
    dear = Tier(input_tokens=9, cache_write="7.5")
    price = Prices([msgspec.structs.replace(CLAUDE, above=dear)]).find(CLOUD, "claude-x")
    assert price.rates.cache_write_1h == 6_000_000
    assert price.long_rates.input == 3_000_000
    assert price.long_rates.cache_write_1h == price.long_rates.cache_write == 7_500_000


def test_without_a_price():
    assert PRICES.find(CLOUD, "other") is None
    assert PRICES.find(LOCAL, "other") is FREE
    assert cost(FREE, prompt=9, completion=9) == ()


_NUMBER = st.integers(0, 300_000)


@given(
    st.sampled_from(["gpt-5", "claude-x", "gpu", "tiny"]),
    _NUMBER, _NUMBER, _NUMBER, _NUMBER, st.integers(0, 10**9),
)  # fmt: skip
def test_parts_add_up_to_the_cost_rounded_once(model, prompt, completion, cached, written, us):
    price = PRICES.find(CLOUD, model)
    counts = {"prompt": prompt, "completion": completion, "cached": cached, "cache_write": written}
    parts = cost(price, **counts, microseconds=us)
    assert [kind for kind, _ in parts] == [kind for kind in TYPES if kind in dict(parts)]
    rates, cached = price.rates_for(prompt), min(cached, prompt)
    written = min(written, prompt - cached)
    exact = (
        (prompt - cached - written) * rates.input + cached * rates.cached_input
        + written * rates.cache_write + completion * rates.output
        + price.per_request + price.per_second * us // 1_000_000
    )  # fmt: skip
    assert total(parts) == (exact + 500) // 1000
    without_time = total(cost(price, **counts))
    assert without_time <= most(price, prompt, completion)


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "0"),
        (1, "0.000000001"),
        (1_250_000, "0.00125"),
        (3 * 10**9, "3"),
        (-5, "-0.000000005"),
    ],
)
def test_amounts_are_written_exactly(nano, text):
    assert usd(nano) == text
