"""`nexus keys`."""

import hashlib
import json
import subprocess
import sys
import tomllib

import jsonschema
import pytest
from click.testing import CliRunner

from nexus.admin.pages import _globs
from nexus.cli.keys import _all_of
from nexus.cli.main import cli
from nexus.config import ConfigError, load
from tests.cli.schemas import SCHEMAS
from tests.cli.test_commands import nexus
from tests.support.processes import ROOT, clean_environ


def test_new_prints_an_entry_for_the_configuration(tmp_path):
    words = ("--name", 'the "ci"', "--team", "t", "--expires", "2027-06-30")
    text = nexus("keys", "new", *words).stdout
    entry = text.partition("    [[keys]]")[2].partition("\n\n")[0]
    [key] = tomllib.loads("[[keys]]" + entry.replace("\n    ", "\n"))["keys"]
    secret = next(word for word in text.split() if word.startswith("sk-nx-"))
    assert key["sha256"] == [hashlib.sha256(secret.encode()).hexdigest()]
    assert (key["name"], key["team"], key["expires"].isoformat()) == ('the "ci"', "t", "2027-06-30")
    assert secret.startswith(f"sk-nx-{key['id']}-")
    assert text.count(secret) == 2, "once to keep, and once as a line to paste"


def test_new_as_json():
    shown = json.loads(nexus("keys", "new", "--json").stdout)
    jsonschema.validate(shown, SCHEMAS["keys new"])
    assert shown["sha256"] == hashlib.sha256(shown["key"].encode()).hexdigest()


def test_a_day_that_is_none_is_refused():
    refused = nexus("keys", "new", "--expires", "soon")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "'soon' is no day; write it like 2027-06-30." in refused.stderr


@pytest.mark.parametrize(("given", "status"), [("sk-of-another-gateway", 0), ("so-short", 2)])
def test_digest_of_a_key_from_elsewhere(given, status):
    done = subprocess.run(
        [sys.executable, "-m", "nexus", "keys", "digest", "--json"], input=f"{given}\n",
        capture_output=True, text=True, cwd=ROOT, env=clean_environ(), check=False,
    )  # fmt: skip
    assert done.returncode == status
    assert given not in done.stdout + done.stderr
    if status == 0:
        shown = json.loads(done.stdout)
        jsonschema.validate(shown, SCHEMAS["keys digest"])
        assert shown["sha256"] == hashlib.sha256(given.encode()).hexdigest()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '[auth]\nmode = "on"',
            '[auth] mode = \'on\' is not allowed; it takes one of "keys", "off", "optional".',
        ),
        ('[auth]\nheader = "X-Key"', "[auth] header = 'X-Key' is not allowed"),
        ('[[keys]]\nid = "a"', "[keys[0]] lacks sha256, which has no default."),
        ('[[keys]]\nid = "a"\nsha256 = ["x"]', "[keys[0]] sha256 = ['x'] is not allowed"),
        (
            '[[keys]]\nid = "other"\nsha256 = ["{0}"]',
            'id = "other" is not allowed; metrics use that word for no key.',
        ),
        (
            '[[teams]]\nname = "research"\n[[keys]]\nid = "a"\nteam = "reserch"\nsha256 = ["{0}"]',
            '[[keys]] "a" team = "reserch" does not exist; did you mean research?',
        ),
        (
            '[[keys]]\nid = "a"\nsha256 = ["{0}"]\nmodels = [""]',
            "models = [''] is not allowed; it takes a list, each item a text that is not empty.",
        ),
        ('[[teams]]\nname = "none"', '[[teams]] name = "none" is not allowed; it stands for'),
        ('[[teams]]\nname = "t"\n[[teams]]\nname = "t"', '[[teams]] name = "t" is used twice'),
        (
            '[[keys]]\nid = "a"\nsha256 = ["{0}"]\n[[keys]]\nid = "a"\nsha256 = ["{1}"]',
            '[[keys]] id = "a" is used twice',
        ),
        (
            '[[keys]]\nid = "a"\nsha256 = ["{0}"]\n[[keys]]\nid = "b"\nsha256 = ["{0}"]',
            '[[keys]] "a" and "b" have the same sha256',
        ),
        (
            '[[keys]]\nid = "a"\nsha256 = ["{0}"]\ngrace_until = 2027-06-30T12:00:00Z',
            '[[keys]] "a" grace_until has no effect without a second sha256.',
        ),
        (
            '[[keys]]\nid = "a"\nsha256 = ["{0}"]\ngrace_until = "soon"',
            "grace_until = 'soon' is not allowed; it takes a time such as 2027-06-30T12:00:00Z.",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path, text, problem):
    file = tmp_path / "nexus.toml"
    file.write_text(text.format("0" * 64, "1" * 64))
    with pytest.raises(ConfigError) as refused:
        load(file, environ={})
    assert problem in str(refused.value)


@pytest.mark.parametrize("words", [["add"], ["edit", "a"], ["new"], ["import"]])
def test_an_empty_team_is_a_mistake(words):
    """Such as of a variable that is not set: the key could use everything."""
    done = CliRunner().invoke(cli, ["keys", *words, "--team", ""])
    assert done.exit_code == 2
    assert "the name is empty; `nexus keys edit --unset` removes one." in done.output


def test_a_key_that_may_use_nothing_does_not_look_like_one_that_may_use_all():
    assert _all_of([]) == _globs([]) == "all"
    assert _all_of([["a", "b"], []]) == _globs([["a", "b"], []]) == "a, b and none"


@pytest.mark.parametrize(
    ("text", "host", "warned"),
    [
        ("", "127.0.0.1", False),
        ('[auth]\nmode = "optional"', "127.0.0.1", False),
        ('[auth]\nmode = "keys"\n[[keys]]\nid = "a"\nsha256 = ["{0}"]', "0.0.0.0", False),
        ('[auth]\nmode = "keys"', "0.0.0.0", False),
        ('[server]\nhost = "0.0.0.0"', "0.0.0.0", True),
        ('[server]\nhost = "[::]"', "::", True),
        ('[server]\nhost = "::1"', "::1", False),
        (
            '[server]\nhost = "127.0.0.1"\n[auth]\nmode = "keys"\n[[keys]]\nid = "a"\n'
            'sha256 = ["{0}"]',
            "127.0.0.1",
            False,
        ),
    ],
)  # fmt: skip
def test_where_it_listens_by_default(tmp_path, text, host, warned):
    file = tmp_path / "nexus.toml"
    file.write_text(text.format("0" * 64))
    loaded = load(file, environ={})
    assert loaded.config.server.host == host
    assert bool(loaded.warnings) is warned
    assert load(file, environ={"NEXUS_HOST": "10.0.0.1"}).config.server.host == "10.0.0.1"
