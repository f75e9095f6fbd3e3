"""A fleet of two vLLM servers behind the gateway: its counts beside theirs, their caches, and an
engine that dies."""

import os
import signal
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic
from openai import APIError, OpenAI
from prometheus_client.parser import text_string_to_metric_families

from tests.real.servers import Server, vllm
from tests.support.polling import until
from tests.support.processes import Gateway

pytestmark = pytest.mark.real

BLOCK = 128
"""Tokens of a block of the server's cache."""


def said(text: str, *, words: int = 20) -> list[Any]:
    return [{"role": "user", "content": f"{text} " + "hello backend " * words}]


@pytest.fixture(scope="module")
def servers(module_dir: Path):
    with ExitStack() as stack:
        yield [stack.enter_context(vllm(module_dir)) for _ in range(2)]


@pytest.fixture(scope="module")
def gateway(module_dir: Path, servers: list[Server]):
    fleet = "".join(server.toml(f"v{n}", "vllm") for n, server in enumerate(servers))
    with Gateway(module_dir, fleet, affinity=True) as gateway:
        until(lambda: gateway.scrape().value("nexus_backends_healthy") == 2, within_s=30)
        yield gateway


@pytest.fixture(scope="module")
def openai(gateway: Gateway) -> OpenAI:
    return OpenAI(base_url=f"{gateway.base}/v1", api_key="unused", max_retries=0, timeout=60)


def counters(server: Server) -> dict[str, float]:
    """The sums of a server's own metrics by name, without `vllm:` and `_total`."""
    sums: Counter[str] = Counter()
    with urllib.request.urlopen(server.url + "/metrics", timeout=10) as response:
        for family in text_string_to_metric_families(response.read().decode()):
            for sample in family.samples:
                sums[sample.name.removeprefix("vllm:").removesuffix("_total")] += sample.value
    return sums


def every_way(openai: OpenAI, gateway: Gateway) -> list[Callable[[list[Any]], Any]]:
    """Each endpoint that vLLM serves, whole and as a stream."""
    anthropic = Anthropic(base_url=gateway.base, api_key="unused", max_retries=0, timeout=60)
    chat, ask = openai.chat.completions.create, {"model": "tiny", "max_tokens": 6}
    reply = {"model": "tiny", "max_output_tokens": 6}

    def message_stream(messages: list[Any]) -> None:
        with anthropic.messages.stream(**ask, messages=messages) as stream:
            stream.get_final_message()

    return [
        lambda messages: chat(**ask, messages=messages),
        lambda messages: list(chat(**ask, messages=messages, stream=True)),
        lambda messages: list(
            chat(**ask, messages=messages, stream=True, stream_options={"include_usage": True})
        ),
        lambda messages: openai.completions.create(**ask, prompt=messages[0]["content"]),
        lambda messages: list(
            openai.completions.create(**ask, prompt=messages[0]["content"], stream=True)
        ),
        lambda messages: anthropic.messages.create(**ask, messages=messages),
        message_stream,
        lambda messages: openai.responses.create(**reply, input=messages),
        lambda messages: list(openai.responses.create(**reply, input=messages, stream=True)),
    ]


def test_the_counts_are_those_of_the_servers(openai: OpenAI, gateway: Gateway, servers):
    ways = every_way(openai, gateway)
    before, theirs = gateway.settled(), [counters(server) for server in servers]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: ways[n % 9](said(f"chat {n // 9}", words=60)), range(90)))
    after = gateway.settled()

    def moved(name: str, number: int, **labels: str) -> float:
        labels["backend"] = f"v{number}"
        return after.total(name, **labels) - before.total(name, **labels)

    for number, server in enumerate(servers):
        until(lambda s=server: counters(s)["num_requests_running"] == 0)
        now = counters(server)
        tokens = "nexus_tokens_total_sum"
        assert {
            "request_success": moved("nexus_requests_total", number, status="200"),
            "prompt_tokens": moved(tokens, number, type="prompt"),
            "generation_tokens": moved(tokens, number, type="completion"),
            "prefix_cache_hits": moved("nexus_token_details_total", number, type="cached"),
        } == {
            name: now[name] - theirs[number][name]
            for name in (
                "request_success",
                "prompt_tokens",
                "generation_tokens",
                "prefix_cache_hits",
            )
        }
        assert now["prefix_cache_hits"] > theirs[number]["prefix_cache_hits"]
    assert moved("nexus_requests_total", 0) + moved("nexus_requests_total", 1) == 90


def test_a_conversation_finds_its_start_in_the_cache(openai: OpenAI, gateway: Gateway):
    chats = [said(f"conversation {n}", words=BLOCK) for n in range(6)]
    for turn in range(4):
        for chat in chats:
            raw = openai.chat.completions.with_raw_response.create(
                model="tiny", max_tokens=4, messages=chat
            )
            usage = raw.parse().usage
            cached = usage.prompt_tokens_details.cached_tokens
            if turn:
                assert raw.headers["x-nexus-affinity"] == "hit"
                assert cached >= BLOCK, (turn, cached, usage.prompt_tokens)
            chat += [{"role": "assistant", "content": "hello"}, *said("go on")]


def test_a_client_that_leaves_stops_the_server(openai: OpenAI, gateway: Gateway, servers):
    def running() -> float:
        return sum(counters(server)["num_requests_running"] for server in servers)

    before = gateway.settled()
    stream = openai.chat.completions.create(
        model="tiny",
        max_tokens=900,
        messages=said("leave"),
        stream=True,
        extra_body={"ignore_eos": True},
    )
    for _, _ in zip(range(4), stream, strict=False):
        pass
    assert running() == 1
    stream.close()
    until(lambda: running() == 0)
    after = gateway.settled()
    assert (
        after.total("nexus_requests_total", status="499")
        - before.total("nexus_requests_total", status="499")
        == 1
    )


def test_an_engine_that_dies_takes_only_streams_with_it(openai: OpenAI, gateway: Gateway, servers):
    before, failed = gateway.settled(), []

    def chat(number: int) -> None:
        try:
            response = openai.chat.completions.create(
                model="tiny",
                max_tokens=24,
                messages=said(f"die {number}"),
                stream=number % 2 == 1,
                extra_body={"ignore_eos": True},
            )
            if number % 2:
                list(response)
        except APIError:
            failed.append(number)
        if number == 40:
            os.kill(engine_of(servers[0]), signal.SIGKILL)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(chat, range(200)))
    after = until(
        lambda: (s := gateway.settled()).value("nexus_backends_healthy") == 1 and s, within_s=60
    )
    assert all(number % 2 for number in failed), "a whole response comes from the other server"

    def moved(name: str, **labels: str) -> float:
        return after.total(name, **labels) - before.total(name, **labels)

    assert moved("nexus_requests_total", status="200") == 200 - len(failed)
    assert moved("nexus_requests_total") == 200
    assert moved("nexus_errors_total", error_type="stream_interrupted") == len(failed)
    assert moved("nexus_errors_total") == len(failed)
    assert after.value("nexus_accounting_imbalance") == 0
    assert [after.value("nexus_backend_up", backend=name) for name in ("v0", "v1")] == [0, 1]


def engine_of(server: Server) -> int:
    """The process id of a server's engine."""
    children = Path(f"/proc/{server.child.pid}/task/{server.child.pid}/children").read_text()
    return next(
        int(pid)
        for pid in children.split()
        if Path(f"/proc/{pid}/comm").read_text().startswith("VLLM::Engine")
    )
