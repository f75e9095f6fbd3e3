"""Names and headers that only one backend gets: over the fast path and through Flask."""

import json
from collections.abc import Iterator

import pytest

from tests.server.asking import JSON, ask
from tests.support.processes import Demo, Gateway, backend_toml, get_json

pytestmark = pytest.mark.e2e

WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}
HI = [{"role": "user", "content": "hi"}]
KEY = "sk-of-the-backend-0123456789"


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def running(request, tmp_path_factory) -> Iterator[tuple[Gateway, Demo, Demo]]:
    directory = tmp_path_factory.mktemp("settings")
    with (
        Demo(directory, name="there", models=["named-there", "else"], pace=0) as there,
        Demo(directory, name="here", models=["m"], pace=0) as here,
    ):
        config = (
            backend_toml(
                there,
                list=False,
                priority=1,
                api_key_env="THEIR_KEY",
                auth_header="x-api-key",
            )
            + '[[backends.models]]\nname = "m"\nupstream = "named-there"\n'
            + backend_toml(here, priority=2)
            + '[routing]\nstrategy = "priority_only"\n[routing.aliases]\nalias = "m"\n'
            + "[circuit_breaker]\nenabled = false\n"
        )
        environ = {"THEIR_KEY": KEY, **request.param}
        with Gateway(directory, config, environ=environ) as gateway:
            yield gateway, there, here


@pytest.mark.parametrize("name", ["m", "alias"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_model_has_another_name_at_one_backend(running, path, name):
    gateway, there, here = running
    body = b'{"max_tokens": 3, "messages":[{"role":"user","content":"hi"}], "model" : "%b"} '
    reply = ask(gateway, path, body=body % name.encode(), headers=JSON)
    assert (reply.status, reply.headers["x-nexus-backend"]) == (200, "there")
    assert "x-nexus-fallback-model" not in reply.headers
    assert there.last()["body"].encode() == body % b"named-there"
    there.fault("status=500")
    try:
        reply = ask(gateway, path, body=body % name.encode(), headers=JSON)
    finally:
        there.fault("")
    assert (reply.status, reply.headers["x-nexus-backend"]) == (200, "here")
    assert json.loads(here.last()["body"])["model"] == "m"


def test_a_form_has_the_other_name_too(running):
    gateway, there, _ = running
    body = (
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nxx\r\n--b--\r\n'
    )
    headers = {"content-type": "multipart/form-data; boundary=b"}
    reply = ask(gateway, "/v1/audio/transcriptions", body=body, headers=headers)
    assert (reply.status, reply.headers["x-nexus-backend"]) == (200, "there")
    assert "\r\n\r\nnamed-there\r\n" in there.last()["body"]


def test_only_the_name_for_clients_is_known(running):
    gateway, _, _ = running
    listed = get_json(f"{gateway.base}/v1/models")["data"]
    assert {model["id"] for model in listed} == {"m", "alias"}
    body = json.dumps({"model": "named-there", "messages": HI}).encode()
    assert ask(gateway, body=body, headers=JSON).status == 404


def test_the_key_goes_into_the_header_that_is_named(running):
    gateway, there, _ = running
    body = json.dumps({"model": "m", "messages": HI}).encode()
    sent = JSON | {"authorization": "Bearer of-the-client"}
    assert ask(gateway, body=body, headers=sent).status == 200
    headers = there.last()["headers"]
    assert headers["x-api-key"] == KEY
    assert "authorization" not in headers
