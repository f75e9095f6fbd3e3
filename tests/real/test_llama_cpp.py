"""llama.cpp's own server behind the gateway: what it lists, streams, counts and refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, BadRequestError, OpenAI

from tests.real.servers import Server, llama_cpp
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Gateway, get_json

pytestmark = pytest.mark.real

CONTEXT = 512
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture(scope="module")
def server(module_dir: Path):
    with llama_cpp(module_dir, context=CONTEXT) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(module_dir: Path, server: Server):
    with Gateway(module_dir, server.toml("llama", "llamacpp")) as gateway:
        until(lambda: get_json(f"{gateway.base}/v1/models")["data"])
        yield gateway


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> OpenAI:
    return OpenAI(base_url=f"{gateway.base}/v1", api_key="unused", max_retries=0)


def counted(gateway: Gateway, before) -> dict[tuple[str, ...], float]:
    changes = moved(before, gateway.settled(), ["nexus_requests_total"])
    return {tuple(sorted(dict(labels).values())): value for (_, labels), value in changes.items()}


def test_the_list_says_what_the_server_says(client: OpenAI, gateway: Gateway):
    def listed() -> dict[str, Any]:
        return {entry["id"]: entry for entry in get_json(f"{gateway.base}/v1/models")["data"]}

    tiny = until(
        lambda: (found := listed().get("tiny")) and found.get("context_length") == CONTEXT and found
    )
    assert tiny["backends"] == ["llama"]
    assert client.models.retrieve("tiny").id == "tiny"
    assert (
        client.chat.completions.create(
            model="tiny-too", messages=HELLO, max_tokens=2
        ).usage.completion_tokens
        == 2
    )


def test_a_whole_response_is_counted_exactly(client: OpenAI, gateway: Gateway):
    before = gateway.settled()
    completion = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=8)
    after = gateway.settled()
    assert (
        completion.usage.total_tokens
        == completion.usage.prompt_tokens + completion.usage.completion_tokens
    )
    for kind, tokens in (
        ("prompt", completion.usage.prompt_tokens),
        ("completion", completion.usage.completion_tokens),
    ):
        name = "nexus_tokens_total_sum"
        assert after.total(name, type=kind) - before.total(name, type=kind) == tokens


def test_a_stream_keeps_the_server_timings_and_is_counted(client: OpenAI, gateway: Gateway):
    before = gateway.settled()
    chunks = list(
        client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=8, stream=True)
    )
    after = gateway.settled()
    assert any((chunk.model_extra or {}).get("timings") for chunk in chunks), (
        "the server's timings reach the client"
    )
    assert all(chunk.usage is None for chunk in chunks), (
        "usage that the client did not ask for is not shown"
    )
    name = "nexus_tokens_total_sum"
    assert 0 < after.total(name, type="completion") - before.total(name, type="completion") <= 8


def test_tools_are_not_refused_by_a_guess(client: OpenAI):
    completion = client.chat.completions.create(
        model="tiny", messages=HELLO, tools=[TOOL], max_tokens=2
    )
    assert completion.usage.completion_tokens <= 2


def test_a_prompt_over_the_context_comes_back_in_the_server_words(client: OpenAI, gateway: Gateway):
    before = gateway.settled()
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hello " * CONTEXT * 2}],
            max_tokens=2,
        )
    assert "context" in str(refused.value)
    assert counted(gateway, before) == {("400", "llama", "tiny"): 1}


@pytest.mark.parametrize("kind", ["embeddings", "image"])
def test_a_client_mistake_reported_as_5xx_blames_nobody(
    client: OpenAI, gateway: Gateway, kind: str
):
    image: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    ask: Any = {
        "embeddings": lambda: client.embeddings.create(model="tiny", input="hello"),
        "image": lambda: client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": [image]}]
        ),
    }[kind]
    before = gateway.settled()
    for _ in range(6):
        with pytest.raises(APIStatusError) as refused:
            ask()
        assert 400 <= refused.value.status_code < 500, refused.value
    after = gateway.settled()
    assert after.total("nexus_backend_circuit_opens_total") == before.total(
        "nexus_backend_circuit_opens_total"
    )
    assert (
        client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=2
        ).usage.completion_tokens
        == 2
    )


def test_status_says_all_is_well(gateway: Gateway):
    health = get_json(f"{gateway.operations}/health")
    assert (health["status"], health["backends"]["healthy"]) == ("healthy", 1), json.dumps(health)
