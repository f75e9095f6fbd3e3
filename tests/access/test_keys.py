"""The form of keys, and who may use what."""

import hashlib
import re
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.access.callers import ANONYMOUS, Callers, callers_of
from nexus.access.keys import digest, new_key
from nexus.config.access_records import Auth, Key, Team
from nexus.config.records import Config
from nexus.errors import RequestFailed
from nexus.server.caller_key import describe_key

FIRST, SECOND = "sk-first-secret-of-a-test", "sk-second-secret-of-a-test"


def callers(*keys: Key, mode: str = "keys", teams: tuple[Team, ...] = ()) -> Callers:
    config = Config(auth=Auth(mode=mode), keys=list(keys), teams=list(teams))
    labels = {key.id: key.id for key in keys}
    made = callers_of(
        config, key_labels=labels, team_labels={team.name: team.name for team in teams}
    )
    assert made is not None
    return made


def key(id_: str = "first", secret: str = FIRST, **more: object) -> Key:
    return Key(id=id_, sha256=[digest(secret)], **more)


def test_new_keys_have_the_form_and_differ():
    made = [new_key() for _ in range(100)]
    assert len({text for _, text in made}) == len({id_ for id_, _ in made}) == 100
    for id_, text in made:
        assert re.fullmatch(rf"sk-nx-{id_}-[A-Za-z0-9_-]{{43}}", text)
        assert re.fullmatch("[a-z2-7]{12}", id_)
        assert digest(text) == hashlib.sha256(text.encode()).hexdigest()


@given(st.text())
def test_anything_else_is_nobody(text):
    known = callers(key())
    headers = {"authorization": f"Bearer {text}", "x-api-key": text}
    assert known.identify(headers) is ANONYMOUS
    with pytest.raises(RequestFailed) as refusal:
        known.check(ANONYMOUS, headers, now=0)
    assert refusal.value.fault.code == "invalid_api_key"
    if len(text) > 3:
        assert text not in refusal.value.message


@pytest.mark.parametrize(
    "headers",
    [
        {"x-nexus-key": FIRST},
        {"authorization": f"Bearer {FIRST}"},
        {"authorization": f"bearer  {FIRST} "},
        {"x-api-key": FIRST},
        {"api-key": FIRST},
        {"x-goog-api-key": FIRST},
        {"authorization": "Bearer of another", "x-api-key": FIRST},
        {"authorization": f"Bearer {FIRST}", "x-api-key": FIRST},
        {"authorization": f"Bearer of another,Bearer {FIRST}"},
        {"authorization": f"Basic of another, Bearer {FIRST}"},
        {"x-api-key": f"of another, {FIRST}"},
    ],
)
def test_a_key_is_read_from_each_header(headers):
    assert callers(key()).identify(headers).key == "first"


def test_a_key_in_basic_credentials_is_none():
    assert callers(key()).identify({"authorization": f"Basic {FIRST}"}) is ANONYMOUS


def test_only_the_first_parts_of_a_header_are_hashed(monkeypatch):
    hashed, sha256 = [], hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda data: hashed.append(data) or sha256(data))
    assert callers(key()).identify({"x-api-key": "," * 60_000}) is ANONYMOUS
    assert 2 <= len(hashed) <= 20


def test_two_different_keys_are_ambiguous_and_two_digests_of_one_are_not():
    headers = {"authorization": f"Bearer {FIRST}", "x-api-key": SECOND}
    with pytest.raises(RequestFailed) as refusal:
        callers(key(), key("second", SECOND)).identify(headers)
    assert refusal.value.fault.code == "ambiguous_credentials"
    with pytest.raises(RequestFailed):
        callers(key(), key("second", SECOND)).identify({"x-api-key": f"{FIRST},{SECOND}"})
    both = Key(id="first", sha256=[digest(FIRST), digest(SECOND)])
    assert callers(both).identify(headers).key == "first"


@pytest.mark.parametrize(
    ("more", "day", "code"),
    [
        ({}, date(2030, 1, 1), None),
        ({"blocked": True}, date(2030, 1, 1), "key_blocked"),
        ({"expires": date(2030, 1, 1)}, date(2030, 1, 1), None),
        ({"expires": date(2030, 1, 1)}, date(2030, 1, 2), "key_expired"),
        ({"expires": date(2030, 1, 1), "blocked": True}, date(2030, 1, 2), "key_blocked"),
        ({"expires": date.max}, date(2030, 1, 1), None),
    ],
)
@pytest.mark.parametrize("mode", ["keys", "optional"])
def test_states(more, day, code, mode):
    known = callers(key(**more), mode=mode)
    headers = {"x-api-key": FIRST}
    now = datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
    caller = known.identify(headers)
    if code is None:
        known.check(caller, headers, now=now)
        return
    with pytest.raises(RequestFailed) as refusal:
        known.check(caller, headers, now=now)
    assert refusal.value.fault.code == code
    assert refusal.value.headers == {"www-authenticate": "Bearer", "x-should-retry": "false"}
    assert "first" in refusal.value.message
    assert FIRST not in refusal.value.message


def test_a_caller_is_shown_the_last_day_of_all():
    caller = callers(key(expires=date.max)).identify({"x-api-key": FIRST})
    assert describe_key(caller, (), ())["expires"] == "9999-12-31T23:59:59+00:00"


def test_without_a_key():
    callers(mode="optional").check(ANONYMOUS, {}, now=0)
    with pytest.raises(RequestFailed, match="required"):
        callers().check(ANONYMOUS, {}, now=0)


@pytest.mark.parametrize(
    ("own", "of_team", "model", "may"),
    [
        (None, None, "anything", True),
        (["qwen*"], None, "qwen-7b", True),
        (["qwen*"], None, "llama", False),
        (None, ["qwen*", "llama"], "llama", True),
        (["*"], ["qwen*"], "llama", False),
        (["qwen-7b"], ["qwen*"], "qwen-14b", False),
        (["a[0-9]"], None, "a1", True),
        ([], None, "qwen", False),
    ],
)
def test_models_of_key_and_team(own, of_team, model, may):
    known = callers(
        key(team="research", models=own), teams=(Team(name="research", models=of_team),)
    )
    assert known.by_key["first"].may_use_model(model) is may


def test_endpoints_of_key_and_team():
    known = callers(
        key(team="t", endpoints=["embeddings", "completions"]),
        teams=(Team(name="t", endpoints=["embeddings", "chat_completions"]),),
    )
    caller = known.by_key["first"]
    allowed = [
        name
        for name in ("embeddings", "completions", "chat_completions")
        if caller.may_use_endpoint(name)
    ]
    assert allowed == ["embeddings"]


def test_off_knows_nobody():
    assert callers_of(Config(), key_labels={}, team_labels={}) is None


def test_keys_beyond_the_labels_share_one():
    config = Config(auth=Auth(mode="keys"), keys=[key(team="t")], teams=[Team(name="t")])
    made = callers_of(config, key_labels={}, team_labels={"t": "t"})
    assert made is not None
    caller = made.by_key["first"]
    assert (caller.key_label, caller.team_label, caller.key, caller.team) == (
        "other",
        "other",
        "first",
        "t",
    )
