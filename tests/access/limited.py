"""Requests to a gateway with limits, and what it shows of them."""

import json
import socket
from typing import Any

from nexus.access.keys import digest
from tests.server.asking import GOOD, Reply, ask
from tests.support.processes import Gateway

WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}


def key_of(id_: str) -> str:
    return f"sk-nx-of-a-test-of-limits-{id_}"


def keys_toml(*ids: str) -> str:
    """`[[keys]]` for these ids."""
    return "".join(f'\n[[keys]]\nid = "{id_}"\nsha256 = ["{digest(key_of(id_))}"]\n' for id_ in ids)


def send(gateway: Gateway, id_: str, **more: Any) -> Reply:
    return ask(gateway, authorization=f"Bearer {key_of(id_)}", **more)


def chat(**more: Any) -> bytes:
    return json.dumps({**GOOD, **more}).encode()


def own_limits(gateway: Gateway, id_: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What `/v1/key` shows of the limits of a key, by name and dimension."""
    bearer = {"authorization": f"Bearer {key_of(id_)}"}
    reply = ask(gateway, "/v1/key", method="GET", body=None, headers=bearer)
    assert reply.status == 200, reply
    limits = json.loads(reply.content)["limits"]
    return {(limit["name"], limit["dimension"]): limit for limit in limits}


def open_stream(gateway: Gateway, id_: str, **more: Any) -> socket.socket:
    """A connection with a stream that the key has asked for."""
    body = chat(**{"stream": True, "max_tokens": 2000, **more})
    client = socket.create_connection(("127.0.0.1", gateway.port), timeout=20)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        "connection: close\r\n"
        f"authorization: Bearer {key_of(id_)}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    client.sendall(head.encode() + body)
    return client
