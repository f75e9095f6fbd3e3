"""Requests with encrypted reasoning go to the account that encrypted it: over the fast path and
through Flask, and over all workers."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from uuid import uuid4

import pytest

from tests.server.asking import JSON, Reply, ask
from tests.support.metrics import moved
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}
PATH = "/v1/responses"
ACCOUNTS = [{"a1", "a2"}, {"b"}, {"c"}]


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def gateway(request, tmp_path_factory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("sealed")
    with ExitStack() as stack:
        a1, a2, b, c = (
            stack.enter_context(Demo(directory, name=name, models=["m"], pace=0))
            for name in ("a1", "a2", "b", "c")
        )
        config = (
            backend_toml(a1, a2, account="a")
            + backend_toml(b, account="b")
            + backend_toml(c)
            + '[routing]\nstrategy = "random"\n'
        )
        with Gateway(directory, config, workers=4, environ=request.param) as gateway:
            yield gateway


def send(gateway: Gateway, session: str | None = None, **more: object) -> Reply:
    body = {"model": "m", "input": "hi", "max_output_tokens": 3, **more}
    headers = JSON if session is None else JSON | {"session-id": session}
    reply = ask(gateway, PATH, body=json.dumps(body).encode(), headers=headers)
    assert reply.status == 200, reply
    return reply


def sealed(content: str) -> list[dict[str, object]]:
    user = {"role": "user", "content": 'say "encrypted_content":"no"'}
    return [
        user,
        {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": None},
        {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": content},
        {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": uuid4().hex},
    ]


def homes(gateway: Gateway, times: int = 12, **more: object) -> set[str]:
    with ThreadPoolExecutor(4) as pool:
        replies = [*pool.map(lambda _: send(gateway, **more), range(times))]
    return {reply.headers["x-nexus-backend"] for reply in replies}


def rounds(seen: set[str]) -> Iterator[int]:
    """Eight, and more until several backends were seen, which are chosen at random."""
    for number in range(60):
        if number < 8 or len(seen) < 2:
            yield number


@pytest.mark.parametrize("stream", [False, True])
def test_the_account_that_encrypted_it_reads_it(gateway, stream):
    seen = set()
    for _ in rounds(seen):
        made = send(gateway, include=["reasoning.encrypted_content"], stream=stream)
        home = made.headers["x-nexus-backend"]
        whole = json.loads(made.content.strip().splitlines()[-1].removeprefix(b"data: "))
        content = whole.get("response", whole)["output"][0]["encrypted_content"]
        account = next(one for one in ACCOUNTS if home in one)
        found = homes(gateway, input=sealed(content))
        assert found <= account
        seen |= found
    assert len(seen) > 1


@pytest.mark.parametrize("session", [True, False])
def test_what_nobody_here_encrypted_stays_where_it_was(gateway, session):
    seen = set()
    for _ in rounds(seen):
        content, name = uuid4().hex, uuid4().hex if session else None
        before = gateway.settled()
        first = send(gateway, name, input=sealed(content)).headers["x-nexus-backend"]
        account = next(one for one in ACCOUNTS if first in one)
        # Within a session other encrypted content stays there, too.
        later = uuid4().hex if session else content
        found = homes(gateway, session=name, input=sealed(later))
        assert found <= account
        seen |= found
        moves = moved(before, gateway.settled(), ("nexus_sticky_total",))
        assert {dict(labels)["result"]: n for (_, labels), n in moves.items()} == {
            "unknown": 1,
            "hit": 12,
        }
    assert len(seen) > 1


def test_without_encrypted_content_a_session_is_not_bound(gateway):
    assert len(homes(gateway, session=uuid4().hex)) > 2
    assert len(homes(gateway)) > 2
