"""Keys in a running gateway: over the fast path and through Flask."""

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import closing

import anthropic
import openai
import pytest

from nexus.access.keys import digest
from tests.server.asking import GOOD, ask, raw
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml, get_json

pytestmark = pytest.mark.e2e

WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}
KEYS = {
    "all": "sk-nx-of-a-test-that-may-use-everything",
    "small": "sk-nx-of-a-test-that-may-use-one-model",
    "vectors": "sk-nx-of-a-test-that-may-use-embeddings",
    "old": "sk-nx-of-a-test-that-has-expired",
    "shut": "sk-nx-of-a-test-that-is-blocked",
}
CREDENTIALS = ("authorization", "x-api-key", "api-key", "x-goog-api-key", "x-nexus-key")
ACCESS = """
[auth]
mode = "keys"
[[teams]]
name = "research"
models = ["demo*", "fast", "spare"]
[routing.aliases]
fast = "spare"
[routing.fallbacks]
demo-small = ["spare"]
demo-broken = ["spare"]
""" + "".join(
    f'[[keys]]\nid = "{id_}"\nsha256 = ["{digest(key)}"]\n{more}\n'
    for (id_, key), more in zip(
        KEYS.items(),
        (
            "",
            'team = "research"\nmodels = ["demo*", "fast"]',
            'endpoints = ["embeddings"]',
            "expires = 2020-01-01",
            "blocked = true",
        ),
        strict=True,
    )
)
FAMILIES = (
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_key_requests_total",
    "nexus_key_tokens_total",
    "nexus_team_requests_total",
    "nexus_key_refusals_total",
    "nexus_upstream_attempts_total",
)


@pytest.fixture(scope="module")
def demo(module_dir) -> Iterator[Demo]:
    with Demo(module_dir, name="demo", models=["demo-small", "spare", "other"], pace=0) as demo:
        yield demo


@pytest.fixture(scope="module", params=WAYS)
def gateway(request, tmp_path_factory, demo) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("keys")
    config = ACCESS + backend_toml(demo)
    with Gateway(directory, config, workers=1, environ=WAYS[request.param]) as gateway:
        yield gateway


def changes(before, after) -> dict[str, float]:
    return {
        f"{name} {' '.join(value for _, value in sorted(labels))}": change
        for (name, labels), change in moved(before, after, FAMILIES).items()
    }


@pytest.mark.parametrize("header", CREDENTIALS)
def test_a_key_is_served_and_reaches_no_backend(gateway, demo, header):
    value = f"Bearer {KEYS['all']}" if header == "authorization" else KEYS["all"]
    before = gateway.settled()
    reply = ask(gateway, **{header: value})
    assert reply.status == 200
    assert not set(CREDENTIALS) & set(demo.last()["headers"])
    used = json.loads(reply.content)["usage"]
    moved_now = changes(before, gateway.settled())
    assert moved_now == {
        "nexus_requests_total demo demo_small 200": 1,
        "nexus_upstream_attempts_total demo ok": 1,
        "nexus_key_requests_total all 200 none": 1,
        "nexus_team_requests_total demo_small 200 none": 1,
        "nexus_key_tokens_total all none prompt": used["prompt_tokens"],
        "nexus_key_tokens_total all none completion": used["completion_tokens"],
    }


def test_the_real_client(gateway):
    with openai.OpenAI(base_url=f"{gateway.base}/v1", api_key=KEYS["small"]) as client:
        answer = client.chat.completions.create(**GOOD)
        assert answer.choices[0].message.content
        assert [model.id for model in client.models.list()] == ["demo-small", "fast"]
        with pytest.raises(openai.AuthenticationError) as refused:
            client.with_options(api_key="sk-nx-no-such-key-of-anybody").chat.completions.create(
                **GOOD
            )
        assert refused.value.code == "invalid_api_key"
        with pytest.raises(openai.PermissionDeniedError) as denied:
            client.chat.completions.create(**{**GOOD, "model": "spare"})
        assert denied.value.code == "model_not_allowed"


@pytest.mark.parametrize("field", ["api_key", "auth_token"])
def test_anthropics_client(gateway, demo, field):
    asked = {"model": "demo-small", "max_tokens": 2, "messages": GOOD["messages"]}

    def client(key: str) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=gateway.base, max_retries=2, **{field: key})

    with client(KEYS["small"]) as known, client("sk-nx-no-such-key-of-anybody") as unknown:
        assert known.messages.create(**asked).content[0].text
        assert not set(CREDENTIALS) & set(demo.last()["headers"])
        assert [model.id for model in known.models.list()] == ["demo-small", "fast"]
        before = gateway.settled()
        with pytest.raises(anthropic.AuthenticationError) as refused:
            unknown.messages.create(**asked)
        with pytest.raises(anthropic.PermissionDeniedError) as denied:
            known.messages.create(**{**asked, "model": "spare"})
    for caught, kind, code in (
        (refused, "authentication_error", "invalid_api_key"),
        (denied, "permission_error", "model_not_allowed"),
    ):
        body = caught.value.body
        assert (body["type"], body["error"]["type"]) == ("error", kind)
        assert body["error"]["code"] == code
        assert body["request_id"] == caught.value.response.headers["request-id"]
    found = changes(before, gateway.settled())
    assert found["nexus_key_requests_total unknown 401 unknown"] == 1, "it is not asked again"
    assert found["nexus_key_requests_total small 403 research"] == 1


@pytest.mark.parametrize(
    ("key", "more", "status", "code", "label", "reason"),
    [
        (None, {}, 401, "invalid_api_key", "unknown unknown", "invalid"),
        (
            "sk-nx-guess-that-nobody-has-made",
            {},
            401,
            "invalid_api_key",
            "unknown unknown",
            "invalid",
        ),
        (KEYS["old"], {}, 401, "key_expired", "old none", "expired"),
        (KEYS["shut"], {}, 401, "key_blocked", "shut none", "blocked"),
        (
            KEYS["all"],
            {"x_api_key": KEYS["small"]},
            401,
            "ambiguous_credentials",
            "unknown unknown",
            "ambiguous",
        ),
        (KEYS["vectors"], {}, 403, "endpoint_not_allowed", "vectors none", "endpoint"),
    ],
)
def test_refusals_before_the_body(gateway, demo, key, more, status, code, label, reason):
    """The body is not read: it never comes."""
    tally, before = demo.tally()["requests"], gateway.settled()
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: x", "content-length: 60000000"]
    lines += ["content-type: application/json"]
    lines += [f"authorization: Bearer {key}"] if key else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
    with closing(socket.create_connection(("127.0.0.1", gateway.port), timeout=10)) as client:
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        received = b""
        while data := client.recv(65536):
            received += data
            if received.endswith(b"}}"):
                break
    head, _, content = received.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status}".encode())
    error = json.loads(content)["error"]
    assert error["code"] == code
    if status == 401:
        assert (
            b"\r\nwww-authenticate: Bearer\r\n"
            in head.lower().replace(b"bearer", b"Bearer") + b"\r\n"
        )
        assert b"x-should-retry: false" in head.lower()
    assert not any(secret in content.decode() for secret in KEYS.values())
    assert demo.tally()["requests"] == tally
    kind = "unauthorized" if status == 401 else "forbidden"
    key_label, team_label = label.split()
    assert changes(before, gateway.settled()) == {
        f"nexus_requests_total none unknown {status}": 1,
        f"nexus_errors_total {kind} unknown": 1,
        f"nexus_key_requests_total {key_label} {status} {team_label}": 1,
        f"nexus_team_requests_total unknown {status} {team_label}": 1,
        f"nexus_key_refusals_total {key_label} {reason} {team_label}": 1,
    }


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("demo-small", 200, None),
        ("fast", 200, None),
        ("spare", 403, "model_not_allowed"),
        ("other", 403, "model_not_allowed"),
        ("demo-broken", 404, "fallback_exhausted"),
    ],
)
def test_models_that_a_key_may_use(gateway, model, status, code):
    """An alias that the key names is allowed, whatever it stands for; a fallback is not unless the
    key names it."""
    body = json.dumps({**GOOD, "model": model}).encode()
    reply = ask(gateway, body=body, authorization=f"Bearer {KEYS['small']}")
    assert reply.status == status
    if code:
        assert reply.code == code


def test_the_list_of_models_is_the_keys_own(gateway):
    def listed(key):
        given = {"authorization": f"Bearer {KEYS[key]}"}
        reply = ask(gateway, "/v1/models", method="GET", body=None, headers=given)
        return {entry["id"] for entry in json.loads(reply.content)["data"]}

    assert listed("all") == {"demo-small", "spare", "other", "fast"}
    assert listed("small") == {"demo-small", "fast"}
    given = {"authorization": f"Bearer {KEYS['small']}"}
    for name, status in {"demo-small": 200, "spare": 404}.items():
        reply = ask(gateway, f"/v1/models/{name}", method="GET", body=None, headers=given)
        assert reply.status == status
    before = gateway.settled()
    assert ask(gateway, "/v1/models", method="GET", body=None, headers={}).status == 401
    assert changes(before, gateway.settled()) == {
        "nexus_key_refusals_total unknown invalid unknown": 1
    }


def test_a_caller_sees_what_its_key_may_use(gateway):
    def shown(**given):
        return ask(gateway, "/v1/key", method="GET", body=None, headers=given)

    assert json.loads(shown(authorization=f"Bearer {KEYS['small']}").content) == {
        "object": "key", "id": "small", "user": None, "name": None, "team": "research",
        "models": [["demo*", "fast"], ["demo*", "fast", "spare"]], "endpoints": [],
        "priority": "normal", "budgets": [], "expires": None, "limits": [],
    }  # fmt: skip
    assert shown().code == "invalid_api_key"
    assert shown(authorization=f"Bearer {KEYS['old']}").code == "key_expired"
    vectors = json.loads(shown(**{"x-api-key": KEYS["vectors"]}).content)
    assert vectors["endpoints"] == [["embeddings"]]


@pytest.mark.parametrize(("size", "kept"), [(65536, True), (65537, False)])
def test_a_long_body_that_nobody_reads_ends_the_connection(gateway, size, kept):
    """A form goes through gunicorn's parser, which has no limit for what it skips."""
    head = (
        "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\n"
        f"content-type: multipart/form-data; boundary=b\r\ncontent-length: {size}\r\n\r\n"
    )
    last = "GET /v1/key HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    received = raw(gateway, f"{head}{'x' * size}{last}".encode())
    assert received.count(b"HTTP/1.1 401 ") == (2 if kept else 1)


@pytest.mark.parametrize("header", CREDENTIALS)
def test_a_header_that_is_given_twice_may_carry_a_key(gateway, header):
    scheme = "Bearer " if header == "authorization" else ""
    codes = []
    for first, second in (("foreign", "all"), ("all", "all"), ("all", "small")):
        keys = [KEYS.get(id_, "a-key-of-another-gateway") for id_ in (first, second)]
        lines = "".join(f"{header}: {scheme}{key}\r\n" for key in keys)
        body = json.dumps(GOOD)
        received = raw(
            gateway,
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{lines}"
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}".encode(),
        )
        codes.append(json.loads(received.partition(b"\r\n\r\n")[2]).get("error", {}).get("code"))
    assert codes == [None, None, "ambiguous_credentials"]


def test_what_its_head_alone_refuses_counts_at_an_unknown_key(gateway):
    before = gateway.settled()
    given = {"authorization": f"Bearer {KEYS['all']}"}
    assert ask(gateway, method="GET", body=None, headers=given).status == 405
    assert ask(gateway, headers={"content-type": "text/plain", **given}).status == 415
    assert ask(gateway, origin="https://evil.example", **given).status == 403
    found = changes(before, gateway.settled())
    for status in (405, 415, 403):
        assert found[f"nexus_key_requests_total unknown {status} unknown"] == 1
        assert found[f"nexus_team_requests_total unknown {status} unknown"] == 1
    assert not any(name.startswith("nexus_key_refusals") for name in found)


def test_every_request_counts_at_one_key(gateway):
    now = gateway.settled()
    assert now.total("nexus_key_requests_total") == now.total("nexus_requests_total")
    assert now.total("nexus_team_requests_total") == now.total("nexus_requests_total")
    tokens = now.total("nexus_tokens_total_sum")
    assert now.total("nexus_key_tokens_total") == tokens > 0
    assert now.series("nexus_keys", "state") == {("active",): 3, ("expired",): 1, ("blocked",): 1}
    assert ("small", "", "research") in now.series("nexus_key_info", "key", "name", "team")


def test_the_log_names_the_key_and_no_secret(gateway):
    ask(gateway, authorization=f"Bearer {KEYS['small']}", x_request_id="of-small")
    line = until(
        lambda: next((ln for ln in gateway.lines("request") if ln["id"] == "of-small"), None)
    )
    assert (line["key"], line["team"]) == ("small", "research")
    for path in gateway.directory.rglob("*"):
        if path.is_file() and path != gateway.file:
            content = path.read_bytes()
            assert not any(key.encode() in content for key in KEYS.values()), path


def test_a_reload_changes_who_may_use_it(gateway):
    given = f"Bearer {KEYS['shut']}"
    text = gateway.file.read_text()
    try:
        gateway.file.write_text(text.replace("blocked = true", ""))
        gateway.send(signal.SIGHUP)
        until(lambda: ask(gateway, authorization=given).status == 200)
        gateway.file.write_text(text.replace('mode = "keys"', 'mode = "off"'))
        gateway.send(signal.SIGHUP)
        until(lambda: ask(gateway).status == 200)
    finally:
        gateway.file.write_text(text)
        gateway.send(signal.SIGHUP)
        until(lambda: ask(gateway).status == 401)


def test_a_gateway_without_keys_has_no_series_of_them(module_dir, demo):
    with Gateway(module_dir, backend_toml(demo), workers=1) as gateway:
        assert ask(gateway).status == 200
        text = gateway.settled().text
        assert not [ln for ln in text.splitlines() if ln.startswith(("nexus_key", "nexus_team"))]
        assert get_json(f"{gateway.base}/v1/models")["data"]
