"""Every command against a gateway that runs: what it says to people, its JSON against a schema,
its exit status."""

import json
import os
import pty
import signal
import subprocess
import sys

import jsonschema
import pytest

from nexus.cli.main import COMMANDS, cli
from tests.cli.schemas import SCHEMAS
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml, clean_environ

pytestmark = pytest.mark.e2e

NEXUS = [sys.executable, "-m", "nexus"]
WITHOUT_JSON = {"serve", "demo-backend", "completions"}
"""Commands that run until they are stopped, and one that prints a script."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cli")
    with (
        Demo(directory, name="one", models=["m", "only-one"], pace=0) as one,
        Demo(directory, name="two", models=["m"], pace=0) as two,
        Gateway(directory, backend_toml(one), interval_s=0.3) as gateway,
    ):
        until(lambda: gateway.scrape().value("nexus_backends_healthy") == 1)
        gateway.two = two
        gateway.configured = str(directory / "nexus.toml")
        yield gateway


def nexus(*words: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*NEXUS, *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environ(**environ),
    )


def asked(fleet, command: str, *words: str, status: int = 0):
    """What the command says as JSON, which fits its schema."""
    options = [] if command in ("metrics list", "config init") else ["-c", fleet.configured]
    done = nexus(*command.split(), *words, *options, "--json")
    assert done.returncode == status, done.stderr
    shown = json.loads(done.stdout)
    jsonschema.validate(shown, SCHEMAS[command])
    return shown


def said(fleet, *words: str, status: int = 0) -> str:
    done = nexus(*words, "-c", fleet.configured)
    assert done.returncode == status, done.stderr
    assert "\x1b" not in done.stdout + done.stderr, "no colour where there is no terminal"
    return done.stdout


def commands() -> set[str]:
    found = set()
    for name in COMMANDS:
        command = cli.get_command(None, name)
        below = {f"{name} {one}" for one in getattr(command, "commands", {})}
        found |= below
        if not below or command.invoke_without_command:
            found.add(name)
    return found


def test_every_command_has_a_schema():
    assert set(SCHEMAS) == commands() - WITHOUT_JSON


def test_chat_then_what_was_counted(fleet):
    done = nexus("chat", "m", "Hello!", "--max-tokens", "3", "-c", fleet.configured)
    assert done.returncode == 0
    assert len(done.stdout.split()) == 3
    assert "one (local, capability-match) · first token after" in done.stderr
    shown = asked(fleet, "chat", "m", "Hello!", "--max-tokens", "4")
    assert (shown["backend"], shown["completion_tokens"], shown["finish_reason"]) == (
        "one",
        4,
        "length",
    )
    refused = nexus("chat", "made-up", "Hello!", "-c", fleet.configured)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "made-up" in refused.stderr
    fleet.settled()

    (refused, ok) = asked(fleet, "metrics get", "nexus_requests_total")[
        "samples"
    ]  # by their labels: backend first
    assert (ok["labels"], ok["value"]) == ({"model": "m", "backend": "one", "status": "200"}, 2)
    assert (refused["labels"], refused["value"]) == (
        {"model": "unknown", "backend": "none", "status": "404"},
        1,
    )
    shown = [
        line.split()
        for line in said(fleet, "metrics", "get", "nexus_requests_total").splitlines()[1:]
    ]
    assert shown == [["unknown", "none", "404", "1"], ["m", "one", "200", "2"]]
    assert asked(fleet, "stats")["requests"] == {"total": 3, "success": 2, "errors": 1}
    assert "3 requests, 1 failed (33.3 %)" in said(fleet, "stats")
    assert [one["http_status"] for one in asked(fleet, "history")] == [404, 200, 200]
    assert [one["model"] for one in asked(fleet, "history", "--status", "error")] == ["made-up"]
    assert "made-up" in said(fleet, "history")
    found = nexus("metrics", "get", "nexus_request_total", "-c", fleet.configured)
    assert found.returncode != 0
    assert "nexus_requests_total" in found.stderr, "a misspelt family gets a hint"


def test_status_health_models(fleet):
    shown = asked(fleet, "status")
    assert (shown["healthy"], shown["workers"], shown["problems"]) == (True, 2, [])
    assert "all is well" in said(fleet, "status")
    assert asked(fleet, "health")["backends"] == {"total": 1, "healthy": 1, "unhealthy": 0}
    assert said(fleet, "health").startswith("healthy: 1 of 1 backend healthy")
    assert [model["name"] for model in asked(fleet, "models")["models"]] == ["m", "only-one"]
    assert "only-one" in said(fleet, "models")


def test_backends_come_drain_and_go(fleet):
    added = asked(
        fleet,
        "backends add",
        fleet.two.url,
        "--name",
        "two",
        "--type",
        "vllm",
        "--priority",
        "7",
        "--save",
    )
    assert (added["origin"], added["priority"]) == ("saved", 7)
    saved = json.loads((fleet.run_dir.parent / "nexus.saved.json").read_text())
    assert fleet.two.url in str(saved)
    until(lambda: fleet.scrape().value("nexus_backend_up", backend="two") == 1)
    assert asked(fleet, "backends drain", "two", "--wait", "5")["draining"]
    assert fleet.scrape().value("nexus_backend_draining", backend="two") == 1
    assert "healthy, draining" in said(fleet, "backends", "list")
    assert not asked(fleet, "backends undrain", "two")["draining"]
    assert [one["name"] for one in asked(fleet, "backends list")["backends"]] == ["one", "two"]
    twice = nexus("backends", "add", fleet.two.url, "--name", "two", "-c", fleet.configured)
    assert (twice.returncode, twice.stdout) == (1, "")
    misspelt = nexus("backends", "drain", "tow", "-c", fleet.configured)
    assert (misspelt.returncode, misspelt.stderr) == (
        1,
        "There is no backend tow; did you mean two?\n",
    )
    wrong = nexus("backends", "add", fleet.two.url, "--tier", "9", "-c", fleet.configured)
    assert wrong.returncode == 2
    assert "tier" in wrong.stderr
    assert asked(fleet, "backends remove", "two", "--save") == {"removed": "two"}
    until(lambda: fleet.scrape().value("nexus_backends_total") == 1)
    other = nexus("backends", "list", "-c", fleet.configured, NEXUS_ADMIN_TOKEN="wrong")
    assert other.returncode == 2
    assert "token" in other.stderr


def test_the_short_options_and_older_names_of_options(fleet, tmp_path):
    assert nexus("-V").stdout == nexus("--version").stdout
    target = str(tmp_path / "n.toml")
    assert nexus("config", "init", "-o", target).returncode == 0
    assert nexus("config", "init", "-o", target, "-f").returncode == 0
    assert [one["name"] for one in asked(fleet, "models", "-b", "one")["models"]] == [
        "m",
        "only-one",
    ]
    assert [one["name"] for one in asked(fleet, "backends list", "-s", "Healthy")["backends"]] == [
        "one"
    ]
    done = nexus("backends", "list", "--status", "unhealthy", "-c", fleet.configured)
    assert (done.returncode, done.stderr) == (
        1,
        "No backend is unhealthy; there are 1 of another status.\n",
    )
    added = asked(fleet, "backends add", fleet.two.url, "-n", "short", "-t", "VLLM", "-p", "3")
    assert (added["name"], added["type"], added["priority"]) == ("short", "vllm", 3)
    asked(fleet, "backends remove", "short")
    added = asked(fleet, "backends add", fleet.two.url, "-n", "older", "--backend-type", "generic")
    assert added["type"] == "generic"
    asked(fleet, "backends remove", "older")


@pytest.mark.parametrize("kind", ["ollama", "llamacpp", "vllm", "generic"])
def test_the_kind_of_a_backend_is_detected_when_none_is_given(fleet, tmp_path, kind):
    with Demo(tmp_path, name=kind, kind=kind, pace=0) as backend:
        assert asked(fleet, "backends add", backend.url, "-n", kind)["type"] == kind
        asked(fleet, "backends remove", kind)


@pytest.mark.parametrize("address", ["not-a-url", "example.com", "host:port", "ftp://h:1"])
def test_an_address_that_is_none_is_refused(fleet, address):
    done = nexus("backends", "add", address, "-c", fleet.configured)
    assert (done.returncode, done.stdout) == (2, "")
    assert address in done.stderr
    assert "it takes" in done.stderr


def test_route_and_reload(fleet):
    assert [one["backend"] for one in asked(fleet, "route explain", "m")["verdicts"]] == ["one"]
    assert asked(fleet, "reload")["reloaded"]
    assert "one" in said(fleet, "route", "explain", "m")
    assert asked(fleet, "route explain", "made-up", status=1)["refusal"]


def test_configuration(fleet, tmp_path):
    assert asked(fleet, "config init", "-o", str(tmp_path / "new.toml"))["file"].endswith(
        "new.toml"
    )
    assert asked(fleet, "config check")["usable"]
    shown = asked(fleet, "config show", "--origin")
    assert shown["origins"]["server.request_timeout_seconds"] == "default"
    assert fleet.configured in shown["origins"]["backends"]
    (tmp_path / "again.toml").write_text(said(fleet, "config", "show"))
    assert nexus("config", "check", str(tmp_path / "again.toml")).returncode == 0, (
        "what is shown is a configuration"
    )
    assert asked(fleet, "metrics bound")["total"] > 100
    assert len(asked(fleet, "metrics list")) > 30


def test_without_a_gateway(tmp_path):
    (tmp_path / "n.toml").write_text(
        '[server]\nport = 9\nhost = "127.0.0.1"\n[health_check]\nlisten = "127.0.0.1:10"\n'
    )
    for words in ("status", "health", "models", "stats", "history", "backends list", "chat m hi"):
        done = nexus(*words.split(), "-c", str(tmp_path / "n.toml"))
        assert (done.returncode, done.stdout) == (3, ""), words
        assert "No gateway responds at http://127.0.0.1:" in done.stderr


def test_a_sick_fleet_is_reported_by_the_exit_status(tmp_path):
    with (
        Demo(tmp_path, name="sick", models=["m"]) as sick,
        Gateway(tmp_path, backend_toml(sick), interval_s=0.2) as gateway,
    ):
        sick.stop(number=signal.SIGKILL)
        until(lambda: gateway.scrape().value("nexus_backends_healthy") == 0)
        done = nexus("status", "-c", str(tmp_path / "nexus.toml"))
        assert done.returncode == 1
        assert "sick is unhealthy" in done.stdout
        assert nexus("health", "-c", str(tmp_path / "nexus.toml")).returncode == 1


def test_colour_in_a_terminal(fleet):
    """And none where `$NO_COLOR` asks for none."""

    def in_terminal(**environ: str) -> bytes:
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [*NEXUS, "health", "-c", fleet.configured],
            stdout=theirs,
            env=clean_environ(TERM="xterm", **environ),
        ) as process:
            process.wait(20)
        shown = os.read(ours, 4096)
        os.close(ours)
        os.close(theirs)
        return shown

    assert b"\x1b[32mhealthy" in in_terminal()
    assert b"\x1b" not in in_terminal(NO_COLOR="1")


def test_completions_work_in_bash():
    script = nexus("completions", "bash").stdout
    asks = 'COMP_WORDS=(nexus ba) COMP_CWORD=1; _nexus_completion nexus; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{asks}"],
        capture_output=True,
        text=True,
        timeout=20,
        env=clean_environ(PATH=f"{sys.prefix}/bin:{os.environ['PATH']}"),
    )
    assert done.stdout.strip() == "backends", done.stderr
    assert "#compdef nexus" in nexus("completions", "zsh").stdout
    assert "complete --no-files --command nexus" in nexus("completions", "fish").stdout


@pytest.mark.parametrize("shell", ["elvish", "powershell"])
def test_completions_of_other_shells_request_as_the_one_of_bash(shell):
    script = nexus("completions", shell).stdout
    for variable in ("_NEXUS_COMPLETE", "bash_complete", "COMP_WORDS", "COMP_CWORD"):
        assert variable in script

    def offered(words: str, at: int) -> list[str]:
        done = subprocess.run(
            [f"{sys.prefix}/bin/nexus"],
            capture_output=True,
            text=True,
            timeout=20,
            env=clean_environ(
                _NEXUS_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(at)
            ),
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert offered("nexus ", 1) == list(COMMANDS)
    assert offered("nexus backends dr", 2) == ["drain"]


SIMPLE = [["--version"], ["-h"], ["health"], ["metrics", "list"], ["config", "check"]]


@pytest.mark.parametrize("words", SIMPLE)
def test_simple_commands_start_without_the_heavy_libraries(fleet, words):
    code = (
        "import sys\nfrom nexus.cli.main import main\n"
        f"sys.argv = {['nexus', *words]}\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'flask', 'gevent', 'gunicorn', 'prometheus_client', 'requests'} & "
        "set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=20,
        env=clean_environ(NEXUS_CONFIG=fleet.configured),
    )
    assert done.stderr.splitlines()[-1] == "[]"
