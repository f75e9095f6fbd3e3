"""A client that sends one request after the other needs one place: over the fast path and through
Flask, whichever worker gets the next one."""

import json
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.server.asking import ask
from tests.support.processes import Gateway, backend_toml

pytestmark = pytest.mark.e2e

WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}
LIMITS = """
[[limits]]
name = "one"
parallel = 1
"""
REQUESTS = 300


@pytest.fixture(scope="module", params=WAYS)
def gateway(request, tmp_path_factory, demo) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("next")
    config = LIMITS + backend_toml(demo)
    with Gateway(directory, config, workers=2, environ=WAYS[request.param]) as gateway:
        yield gateway


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_place_is_free_when_the_client_has_its_response(gateway, stream):
    body = json.dumps(
        {
            "model": "demo-small",
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 2,
            "stream": stream,
        }
    ).encode()
    before = gateway.settled()
    statuses = Counter(ask(gateway, body=body).status for _ in range(REQUESTS))
    assert statuses == {200: REQUESTS}
    after = gateway.settled()
    assert after.total("nexus_requests_total") - before.total("nexus_requests_total") == REQUESTS
