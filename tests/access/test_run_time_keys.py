"""Keys made and changed while the gateway runs."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import jsonschema
import pytest

from nexus.access.keys import digest
from tests.cli.schemas import SCHEMAS
from tests.server.asking import GOOD, ask
from tests.support.polling import until
from tests.support.processes import ROOT, Demo, Gateway, backend_toml, clean_environ

pytestmark = pytest.mark.e2e

FILE_KEY = "sk-nx-of-a-test-that-is-in-the-file"
ACCESS = f"""
[auth]
mode = "keys"
[[teams]]
name = "research"
models = ["demo*"]
[[keys]]
id = "infile"
sha256 = ["{digest(FILE_KEY)}"]
"""


@pytest.fixture(scope="module")
def demo(module_dir) -> Iterator[Demo]:
    with Demo(module_dir, name="demo", models=["demo-small", "other"], pace=0) as demo:
        yield demo


@pytest.fixture(scope="module")
def gateway(module_dir, demo) -> Iterator[Gateway]:
    server = f'state_dir = "{module_dir}/state"'
    with Gateway(module_dir, ACCESS + backend_toml(demo), workers=3, server=server) as gateway:
        yield gateway


def keys(gateway, *words: str, status: int = 0, given: str = ""):
    """What `nexus keys … --json` prints, or its message if it is to fail."""
    done = subprocess.run(
        [sys.executable, "-m", "nexus", "keys", *words, "-c", str(gateway.file), "--json"],
        input=given, capture_output=True, text=True, timeout=30, cwd=ROOT, env=clean_environ(),
        check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    if status:
        return done.stderr
    shown = json.loads(done.stdout)
    jsonschema.validate(shown, SCHEMAS[f"keys {words[0]}"])
    return shown


def codes(gateway, key: str, *, model: str = "demo-small", times: int = 12) -> set[object]:
    """What requests with the key came to, in several workers."""
    body = json.dumps({**GOOD, "model": model}).encode()
    answers = [ask(gateway, body=body, authorization=f"Bearer {key}") for _ in range(times)]
    return {200 if answer.status == 200 else answer.code for answer in answers}


def test_a_key_from_its_making_to_its_end(gateway):
    made = keys(gateway, "add", "--name", "ci", "--team", "research", "--model", "*small")
    assert codes(gateway, made["key"]) == {200}
    assert codes(gateway, made["key"], model="other") == {"model_not_allowed"}
    assert made["models"] == [["*small"], ["demo*"]]

    assert keys(gateway, "block", made["id"])["state"] == "blocked"
    assert codes(gateway, made["key"]) == {"key_blocked"}
    assert keys(gateway, "unblock", made["id"])["state"] == "active"
    assert codes(gateway, made["key"]) == {200}

    limited = keys(gateway, "edit", made["id"], "--limit", "requests=4/d", "--limit", "parallel=9")
    assert (limited["limits"]["requests"], limited["limits"]["parallel"]) == ("4/d", 9)
    assert codes(gateway, made["key"]) == {200, "rate_limit_exceeded"}
    limited = keys(gateway, "edit", made["id"], "--limit", "requests=off")
    assert (limited["limits"]["requests"], limited["limits"]["parallel"]) == (None, 9)
    assert codes(gateway, made["key"]) == {200}
    wrong = keys(gateway, "edit", made["id"], "--limit", "requests=4 a day", status=2)
    assert 'requests = "4 a day" is not allowed' in wrong
    assert keys(gateway, "edit", made["id"], "--unset", "limits")["limits"] is None
    assert (limited["priority"], made["priority"]) == ("normal", "normal")
    assert keys(gateway, "edit", made["id"], "--priority", "high")["priority"] == "high"
    assert keys(gateway, "edit", made["id"], "--unset", "priority")["priority"] == "normal"

    edited = keys(gateway, "edit", made["id"], "--unset", "team", "--model", "other")
    assert (edited["team"], edited["models"], edited["name"]) == (None, [["other"]], "ci")
    assert codes(gateway, made["key"], model="other") == {200}
    assert keys(gateway, "edit", made["id"], "--expires", "2020-01-01")["state"] == "expired"
    assert codes(gateway, made["key"]) == {"key_expired"}

    assert keys(gateway, "remove", made["id"]) == {"removed": made["id"]}
    assert codes(gateway, made["key"]) == {"invalid_api_key"}
    message = keys(gateway, "show", made["id"], status=1)
    assert f"There is no key '{made['id']}'." in message


def test_both_secrets_are_accepted_during_the_grace(gateway):
    made = keys(gateway, "add")
    grace = keys(gateway, "rotate", made["id"], "--grace", "3s")
    assert grace["id"] == made["id"]
    assert codes(gateway, made["key"], times=3) == codes(gateway, grace["key"], times=3) == {200}
    until(lambda: codes(gateway, made["key"], times=1) == {"key_expired"})
    assert codes(gateway, grace["key"]) == {200}
    at_once = keys(gateway, "rotate", made["id"], "--grace", "0s")
    assert codes(gateway, grace["key"]) == {"invalid_api_key"}
    assert codes(gateway, at_once["key"]) == {200}


def test_a_key_of_another_gateway(gateway):
    theirs = "sk-of-another-gateway-0123"
    imported = keys(gateway, "import", "--name", "theirs", given=f"{theirs}\n")
    assert codes(gateway, theirs) == {200}
    again = keys(gateway, "import", "--sha256", digest(theirs), status=1)
    assert f"There is a key '{imported['id']}' already." in again
    assert "shorter than 20" in keys(gateway, "import", given="short\n", status=2)


def test_commands_take_a_key_from_the_environment(gateway):
    def command(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nexus", *words, "-c", str(gateway.file)],
            capture_output=True, text=True, timeout=30, env=clean_environ(**environ), check=False,
        )  # fmt: skip

    made = keys(gateway, "add", "--model", "other")
    shown = command("models", NEXUS_API_KEY=made["key"]).stdout
    assert "other" in shown
    assert "demo-small" not in shown
    chat = ("chat", "other", "Hello!")
    header = ("--header", f"Authorization: Bearer {made['key']}")
    assert command(*chat, NEXUS_API_KEY=made["key"]).returncode == 0
    assert command(*chat, *header, NEXUS_API_KEY="another").returncode == 0
    for words, status in ((("models",), 2), (chat, 1)):
        refused = command(*words)
        assert refused.returncode == status
        assert "An API key is required" in refused.stderr
        assert "$NEXUS_API_KEY" in refused.stderr


def test_a_key_that_has_expired_is_noticed(gateway):
    def note(day: str) -> str:
        words = ("keys", "add", "--expires", day, "-c", str(gateway.file))
        return subprocess.run(
            [sys.executable, "-m", "nexus", *words],
            capture_output=True, text=True, timeout=30, env=clean_environ(), check=True,
        ).stderr  # fmt: skip

    assert note("2020-01-01") == "warning: the key is not accepted; it has expired.\n"
    assert note("2120-01-01") == ""


def test_what_is_refused(gateway):
    assert "is in the configuration file" in keys(gateway, "block", "infile", status=1)
    assert "did you mean research?" in keys(gateway, "add", "--team", "reserch", status=2)
    assert "is no duration" in keys(gateway, "rotate", "x", "--grace", "soon", status=2)


def test_the_file_is_private_and_knows_no_secret(gateway, module_dir):
    made = keys(gateway, "add", "--name", "canary")
    state = module_dir / "state"
    assert state.stat().st_mode & 0o777 == 0o700
    assert (state / "keys.json").stat().st_mode & 0o777 == 0o600
    codes(gateway, made["key"], times=1)
    secret = made["key"].rpartition("-")[2].encode()
    for directory in (state, gateway.run_dir):
        for file in directory.rglob("*"):
            assert not file.is_file() or secret not in file.read_bytes(), file
    assert secret.decode() not in gateway.output()


def test_keys_outlast_the_health_process_and_the_gateway(demo, tmp_path):
    server = f'state_dir = "{tmp_path}/state"'
    with Gateway(tmp_path, ACCESS + backend_toml(demo), server=server) as gateway:
        made = keys(gateway, "add")
        pid = gateway.health_pid()
        os.kill(pid, signal.SIGKILL)
        assert codes(gateway, made["key"]) == {200}
        assert codes(gateway, "sk-of-nobody") == {"invalid_api_key"}
        until(lambda: gateway.health_pid() != pid)
        until(lambda: _added(gateway))
        assert codes(gateway, made["key"]) == {200}
        gateway.stop()
        gateway.start_again()
        assert codes(gateway, made["key"]) == {200}
        gateway.file.write_text(gateway.file.read_text().replace('"infile"', f'"{made["id"]}"'))
        done = subprocess.run(
            [sys.executable, "-m", "nexus", "reload", "-c", str(gateway.file)],
            capture_output=True, text=True, timeout=30, env=clean_environ(), check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert f'id = "{made["id"]}" is in the configuration file and in {tmp_path}' in done.stderr


def _added(gateway) -> bool:
    try:
        return bool(keys(gateway, "add"))
    except AssertionError:
        return False
