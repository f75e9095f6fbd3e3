"""The LiteLLM proxy as a backend: limits by model, its errors, and its way of ending streams."""

from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, OpenAI

from tests.real.servers import Server, litellm
from tests.support.polling import until
from tests.support.processes import Gateway, get_json

pytestmark = pytest.mark.real

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server(module_dir: Path):
    with litellm(module_dir) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(module_dir: Path, server: Server):
    toml = server.toml("proxy", "generic", api_key_env="PROXY_KEY")
    with Gateway(module_dir, toml, environ={"PROXY_KEY": server.key}) as gateway:
        until(lambda: get_json(f"{gateway.base}/v1/models")["data"], within_s=30)
        yield gateway


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> OpenAI:
    return OpenAI(base_url=f"{gateway.base}/v1", api_key="unused", max_retries=0, timeout=60)


def test_a_model_responds_whole_and_as_a_stream(client: OpenAI, gateway: Gateway):
    before = gateway.settled()
    completion = client.chat.completions.create(model="mock-gpt", messages=HELLO)
    chunks = list(client.chat.completions.create(model="mock-gpt", messages=HELLO, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert completion.choices[0].message.content == text == "Hello from the proxy."
    after = gateway.settled()
    served = (
        after.series("nexus_requests_total", "status"),
        before.series("nexus_requests_total", "status"),
    )
    assert served[0]["200",] - served[1].get(("200",), 0) == 2


def test_a_limited_model_holds_no_other(client: OpenAI):
    with pytest.raises(APIStatusError) as limited:
        client.chat.completions.create(model="limited", messages=HELLO)
    assert limited.value.status_code == 429
    assert (
        client.chat.completions.create(model="mock-gpt", messages=HELLO).choices[0].message.content
    )


def test_a_failing_model_shuts_out_no_other(client: OpenAI):
    words = []
    for _ in range(5):
        with pytest.raises(APIStatusError) as failed:
            client.chat.completions.create(model="failing", messages=HELLO)
        words.append(str(failed.value))
    assert "InternalServerError" in words[0], "the backend's words reach the client"
    assert (
        client.chat.completions.create(model="mock-gpt", messages=HELLO).choices[0].message.content
    )
