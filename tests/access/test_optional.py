"""`[auth] mode = "optional"`: who sends a key of ours is held to it; all others are served."""

import json
from collections.abc import Iterator

import pytest

from tests.access.test_gateway import ACCESS, KEYS, WAYS
from tests.server.asking import GOOD, ask
from tests.support.metrics import moved
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def demo(module_dir) -> Iterator[Demo]:
    with Demo(module_dir, name="demo", models=["demo-small", "spare"], pace=0) as demo:
        yield demo


@pytest.fixture(scope="module", params=WAYS)
def gateway(request, tmp_path_factory, demo) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("optional")
    config = ACCESS.replace('"keys"', '"optional"') + backend_toml(demo)
    config = config.replace("[[backends]]\n", "[[backends]]\nforward_authorization = true\n")
    with Gateway(directory, config, workers=1, environ=WAYS[request.param]) as gateway:
        yield gateway


def test_a_key_of_ours_is_held_to_what_it_may_use(gateway, demo):
    body = json.dumps({**GOOD, "model": "spare"}).encode()
    small = f"Bearer {KEYS['small']}"
    assert ask(gateway, body=body, authorization=small).code == "model_not_allowed"
    assert ask(gateway, authorization=small).status == 200
    assert "authorization" not in demo.last()["headers"]
    assert ask(gateway, authorization=f"Bearer {KEYS['shut']}").code == "key_blocked"


def test_without_a_key_there_is_none_to_show(gateway):
    reply = ask(gateway, "/v1/key", method="GET", body=None, headers={})
    shown = json.loads(reply.content)
    assert (reply.status, shown["id"], shown["models"]) == (200, None, [])


def test_others_are_served_and_their_key_goes_on(gateway, demo):
    before = gateway.settled()
    assert ask(gateway, authorization="Bearer of-the-backend").status == 200
    assert demo.last()["headers"]["authorization"] == "Bearer of-the-backend"
    assert ask(gateway).status == 200
    after = gateway.settled()
    assert moved(before, after, ["nexus_key_requests_total"]) == {
        (
            "nexus_key_requests_total",
            frozenset({"key": "none", "team": "none", "status": "200"}.items()),
        ): 2
    }
