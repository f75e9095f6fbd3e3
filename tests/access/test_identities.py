"""Users whom a proxy in front has signed in: over the fast path and through Flask."""

import json
from collections.abc import Iterator

import pytest

from nexus.access.callers import Identities, callers_of
from nexus.access.keys import digest
from nexus.config.access_records import Auth, Identity, Team
from nexus.config.consistency import find_conflicts
from nexus.config.records import Config
from nexus.metrics.series_bound import series_bound
from tests.access.test_gateway import WAYS, changes
from tests.server.asking import GOOD, ask
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

KEY = "sk-nx-of-a-test-beside-identities"
ACCESS = f"""
[auth]
mode = "keys"
[auth.identity]
from = ["127.0.0.1/32", "::1"]
user = "X-Auth-Request-User"
[[teams]]
name = "research"
models = ["demo*"]
[[teams]]
name = "vectors"
endpoints = ["embeddings"]
[[keys]]
id = "script"
sha256 = ["{digest(KEY)}"]
[[limits]]
name = "per user"
match = {{ user = "lim*" }}
each = ["user"]
requests = "2/d"
"""
HEADERS = ("x-auth-request-user", "x-forwarded-groups")


def identities(*peers: str) -> Identities:
    identity = Identity(peers=list(peers) or ["127.0.0.1"])
    config = Config(
        auth=Auth(mode="keys", identity=identity),
        teams=[Team(name="dev ops", models=["qwen*"]), Team(name="b")],
    )
    made = callers_of(config, key_labels={}, team_labels={"b": "b"})
    assert made is not None
    assert made.identities is not None
    return made.identities


@pytest.mark.parametrize(
    ("peer", "believed"),
    [
        ("127.0.0.1", True),
        ("::ffff:127.0.0.1", True),
        ("10.1.2.3", True),
        ("fd00::7", True),
        ("127.0.0.2", False),
        ("fe80::1%eth0", False),
        ("", False),
    ],
)
def test_peers(peer, believed):
    assert identities("127.0.0.1/32", "10.0.0.0/8", "fd00::/8").believes(peer) is believed


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], None),
        ([("x-forwarded-user", " ")], None),
        ([("x-forwarded-user", "a" * 257)], None),
        ([("x-forwarded-groups", "b")], None),
        ([("x-forwarded-user", "ann")], ("user:ann", "none")),
        ([("x-forwarded-user", "ann"), ("x-forwarded-groups", "x, b ,dev ops")], ("user:ann", "b")),
        (
            [("x-forwarded-user", "ann"), ("x-forwarded-groups", "dev ops|b")],
            ("user:ann", "dev ops"),
        ),
        ([("x-forwarded-user", "ann"), ("x-forwarded-user", "bob")], ("user:ann,bob", "none")),
        ([("x-forwarded-user", "Andr\u00c3\u00a9")], ("user:Andr\u00e9", "none")),
    ],
)
def test_users_and_their_teams(fields, expected):
    caller = identities().identify(fields)
    assert (caller and (caller.key, caller.team)) == expected


def test_a_user_may_use_what_the_team_may():
    caller = identities().identify([("x-forwarded-user", "ann"), ("x-forwarded-groups", "dev ops")])
    assert caller is not None
    assert caller.may_use_model("qwen-7b")
    assert not caller.may_use_model("llama")
    assert (caller.key_label, caller.team_label) == ("user", "other")


def test_the_series_of_users_are_bounded():
    def bound(auth: Auth) -> int:
        return series_bound(Config(auth=auth), endpoints=1)["nexus_key_tokens_total"]

    of_users = bound(Auth(identity=Identity(peers=["::1"]))) - bound(Auth())
    assert of_users == 2 * (Config().metrics.max_keys + 1)


@pytest.mark.parametrize(
    ("identity", "problem"),
    [
        (Identity(peers=["10.0.0.1/8"]), 'from = "10.0.0.1/8" is not allowed'),
        (Identity(peers=["proxy.example"]), "it takes an IP address or a network"),
        (Identity(user="Authorization"), 'user = "Authorization" is not allowed; it carries keys.'),
        (Identity(teams="X-Nexus-Key"), 'teams = "X-Nexus-Key" is not allowed'),
    ],
)
def test_settings_that_are_refused(identity, problem):
    [found] = find_conflicts(Config(auth=Auth(identity=identity)))
    assert problem in found


@pytest.fixture(scope="module")
def demo(module_dir) -> Iterator[Demo]:
    with Demo(module_dir, name="demo", models=["demo-small", "spare"], pace=0) as demo:
        yield demo


@pytest.fixture(scope="module", params=WAYS)
def gateway(request, tmp_path_factory, demo) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("identities")
    config = ACCESS + backend_toml(demo)
    with Gateway(directory, config, workers=1, environ=WAYS[request.param]) as gateway:
        yield gateway


@pytest.mark.e2e
def test_a_user_is_served_and_the_headers_reach_no_backend(gateway, demo):
    before = gateway.settled()
    given = {"x_auth_request_user": "ann", "x_forwarded_groups": "staff,research"}
    reply = ask(gateway, x_request_id="of-ann", **given)
    assert reply.status == 200
    assert not set(HEADERS) & set(demo.last()["headers"])
    used = json.loads(reply.content)["usage"]
    assert changes(before, gateway.settled()) == {
        "nexus_requests_total demo demo_small 200": 1,
        "nexus_upstream_attempts_total demo ok": 1,
        "nexus_key_requests_total user 200 research": 1,
        "nexus_team_requests_total demo_small 200 research": 1,
        "nexus_key_tokens_total user research prompt": used["prompt_tokens"],
        "nexus_key_tokens_total user research completion": used["completion_tokens"],
    }
    line = until(
        lambda: next((ln for ln in gateway.lines("request") if ln["id"] == "of-ann"), None)
    )
    assert (line["key"], line["team"]) == ("user:ann", "research")


@pytest.mark.e2e
def test_from_another_peer_the_headers_are_ignored_and_not_passed_on(gateway, demo):
    given = {"source": "127.0.0.2", "x_auth_request_user": "ann", "x_forwarded_groups": "research"}
    tally, before = demo.tally()["requests"], gateway.settled()
    assert ask(gateway, **given).code == "invalid_api_key"
    assert demo.tally()["requests"] == tally
    assert changes(before, gateway.settled()) == {
        "nexus_requests_total none unknown 401": 1,
        "nexus_errors_total unauthorized unknown": 1,
        "nexus_key_requests_total unknown 401 unknown": 1,
        "nexus_team_requests_total unknown 401 unknown": 1,
        "nexus_key_refusals_total unknown invalid unknown": 1,
    }
    before = gateway.settled()
    assert ask(gateway, authorization=f"Bearer {KEY}", **given).status == 200
    assert not set(HEADERS) & set(demo.last()["headers"])
    assert "nexus_key_requests_total script 200 none" in changes(before, gateway.settled())


@pytest.mark.e2e
def test_a_key_wins_and_another_token_does_not(gateway):
    before = gateway.settled()
    for value in (f"Bearer {KEY}", "Bearer token.of.the-proxy"):
        assert ask(gateway, authorization=value, x_auth_request_user="ann").status == 200
    requests = "nexus_key_requests_total"
    moved = {name for name in changes(before, gateway.settled()) if name.startswith(requests)}
    assert moved == {f"{requests} script 200 none", f"{requests} user 200 none"}


@pytest.mark.e2e
def test_a_user_is_held_to_what_the_team_may_use(gateway):
    ann = {"x_auth_request_user": "ann", "x_forwarded_groups": "research"}
    before = gateway.settled()
    refused = ask(gateway, body=json.dumps({**GOOD, "model": "spare"}).encode(), **ann)
    assert (refused.status, refused.code) == (403, "model_not_allowed")
    assert "The user ann may not use the model 'spare'" in refused.content.decode()
    refused = ask(gateway, x_auth_request_user="bob", x_forwarded_groups="vectors")
    assert (refused.status, refused.code) == (403, "endpoint_not_allowed")
    refusals = "nexus_key_refusals_total user"
    moved = {n: v for n, v in changes(before, gateway.settled()).items() if n.startswith(refusals)}
    assert moved == {f"{refusals} model research": 1, f"{refusals} endpoint vectors": 1}

    def shown(path):
        return json.loads(ask(gateway, path, method="GET", body=None, headers={}, **ann).content)

    assert [entry["id"] for entry in shown("/v1/models")["data"]] == ["demo-small"]
    key = shown("/v1/key")
    assert (key["id"], key["user"], key["team"]) == (None, "ann", "research")


@pytest.mark.e2e
def test_limits_count_users_apart(gateway):
    def statuses(**given):
        return [ask(gateway, **given).status for _ in range(3)]

    assert statuses(x_auth_request_user="lima") == [200, 200, 429]
    assert statuses(x_auth_request_user="limo") == [200, 200, 429]
    assert statuses(x_auth_request_user="ann") == [200, 200, 200]
    assert statuses(authorization=f"Bearer {KEY}", x_auth_request_user="lima") == [200] * 3
    refused = ask(gateway, x_auth_request_user="lima")
    assert "Limit 'per user' of user lima on requests" in refused.content.decode()
    now = gateway.settled()
    assert now.total("nexus_key_requests_total") == now.total("nexus_requests_total")
