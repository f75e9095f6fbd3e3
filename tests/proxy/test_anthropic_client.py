"""Anthropic's own client through the gateway gets what it gets from the backend itself."""

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from nexus.config import Config
from nexus.config.routing_records import Routing
from tests.corpus import __file__ as corpus
from tests.support.processes import Workers, backend
from tests.support.replay import HEAD, Replay

pytestmark = pytest.mark.e2e

STREAMS = Path(corpus).parent / "streams"
NAMES = [f"messages-{name}" for name in ("text", "thinking", "tools", "server-tool", "no-content")]
PIXEL = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
ASKED: dict[str, Any] = {
    "max_tokens": 2000,
    "system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "tools": [{"name": "read", "input_schema": {"type": "object", "properties": {}}}],
    "messages": [
        {"role": "user", "content": [{"type": "image", "source": PIXEL}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
            {"type": "tool_use", "id": "toolu_1", "name": "read", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "nothing"},
        ]},
    ],
}  # fmt: skip


def scripted(name: str):
    """Answers with a stream of the corpus."""
    data = (STREAMS / f"{name}.sse").read_bytes()

    def send(_: dict[str, Any], sock: socket.socket) -> None:
        sock.sendall(HEAD + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(data) + data)

    return send


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    with Replay() as replay:
        replay.scripts |= {name: scripted(name) for name in NAMES}
        yield replay


@pytest.fixture(scope="module")
def gateway(module_dir: Path, replay: Replay) -> Iterator[Workers]:
    config = Config(routing=Routing(max_retries=0))
    with Workers(module_dir, config, [backend("up", replay.url, *NAMES)], workers=1) as workers:
        yield workers


def told(base: str, name: str) -> dict[str, Any]:
    """The message that the client puts together."""
    with (
        anthropic.Anthropic(base_url=base, api_key="unused", max_retries=0) as client,
        client.messages.stream(model=name, **ASKED) as stream,
    ):
        return stream.get_final_message().to_dict()


async def told_later(base: str, name: str) -> dict[str, Any]:
    async with (
        anthropic.AsyncAnthropic(base_url=base, api_key="unused", max_retries=0) as client,
        client.messages.stream(model=name, **ASKED) as stream,
    ):
        message = await stream.get_final_message()
        return message.to_dict()


@pytest.mark.parametrize("name", NAMES)
def test_tools_images_and_thinking(gateway, replay, name):
    direct = told(replay.url, name)
    assert told(gateway.base, name) == direct
    assert asyncio.run(told_later(gateway.base, name)) == direct
    first, *others = [json.dumps(asked) for asked in replay.asked[-3:]]
    assert others == [first, first]
    usage = gateway.settled().total("nexus_tokens_total_sum", model=name.replace("-", "_"))
    counted = direct["usage"]
    prompt = sum(
        counted.get(kind) or 0
        for kind in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    )
    assert usage == 2 * (prompt + counted["output_tokens"])
