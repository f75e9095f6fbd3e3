"""The commands of the README and of the first steps, in a clean copy, as somebody with nothing
but Python and make runs them, and what they print."""

import json
import re
import shutil
import subprocess

import pytest

from tests.support.polling import until
from tests.support.processes import ROOT, Process, clean_environ, free_port

pytestmark = pytest.mark.e2e

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTS = re.compile(r"^```sh\n(.*?)^```\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/getting-started.md")}
README = BLOCK.findall(PAGES["README.md"])
ELSEWHERE = (
    "make run",
    "make check",
)  # the first is started by the fixture, the second runs this test
COMMANDS = [
    (page, line)
    for page, text in PAGES.items()
    for kind, block in BLOCK.findall(text)
    if kind == "sh"
    for line in block.splitlines()
    if line not in ELSEWHERE
]
SHOWN = {
    block.splitlines()[-1]: text for page in PAGES.values() for block, text in PRINTS.findall(page)
}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """`make run` in a clean copy: what git would give a newcomer, the uncommitted changes
    included."""
    copy = tmp_path_factory.mktemp("clone") / "nexus"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    port, operations = free_port(), free_port()
    environ = clean_environ(
        NEXUS_PORT=str(port),
        NEXUS_HEALTH_LISTEN=f"127.0.0.1:{operations}",
        NEXUS_RUN_DIR=str(copy.parent / "run"),
    )
    environ.pop("VIRTUAL_ENV", None)
    with Process(
        ["make", "run"], log=copy.parent / "make.log", environ=environ, cwd=copy
    ) as process:
        process.copy = copy
        process.ports = {"8000": str(port), "9464": str(operations)}
        process.environ = environ
        until(lambda: "Ctrl-C stops it" in process.output(), within_s=240, every_s=0.2)
        yield process


def here(text: str, running: Process) -> str:
    for theirs, ours in running.ports.items():
        text = text.replace(f"127.0.0.1:{theirs}", f"127.0.0.1:{ours}")
    return text


def alike(text: str) -> list[str]:
    """Its lines, without what differs from run to run: numbers, widths, and which of two like
    backends comes first."""
    return sorted(
        " ".join(re.sub(r"\d[\d.,]*", "#", line).split())
        for line in text.splitlines()
        if line.strip()
    )


def test_the_blocks_are_there():
    assert [text for kind, text in README if kind == "sh"].count("make run\n") == 1
    assert all(f"```sh\n{command}\n```" in PAGES["README.md"] for command in ELSEWHERE)
    assert len(SHOWN) >= 4


def test_first_screen_is_as_shown(running):
    shown = next(text for kind, text in README if kind == "text")
    for line in here(shown, running).splitlines():
        if line.strip() and not line.startswith("    state"):
            assert line in running.output()


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands(running, page, command):
    prelude = [line for name, line in COMMANDS if name == page and line.startswith("export ")]
    script = "\n".join([*prelude, here(command, running)])
    ran = subprocess.run(
        ["bash", "-c", script],
        cwd=running.copy,
        env=running.environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    if command in SHOWN:
        assert alike(ran.stdout) == alike(SHOWN[command])
    if "-sN" in command:
        assert ran.stdout.endswith("data: [DONE]\n\n")
    elif "/v1/" in command:
        response = json.loads(ran.stdout)
        assert ("error" in response) == ("gpt-9" in command)
        if "gpt-9" in command:
            assert "demo-small" in response["error"]["message"]
    elif command not in prelude:
        assert ran.stdout


@pytest.mark.parametrize("block", [text for kind, text in README if kind == "python"])
def test_client(running, block, capsys):
    exec(compile(here(block, running), "README.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) > 10


@pytest.mark.parametrize("page", PAGES)
def test_configuration_is_valid(running, page, tmp_path):
    block = next(text for kind, text in BLOCK.findall(PAGES[page]) if kind == "toml")
    (tmp_path / "nexus.toml").write_text(block)
    checked = subprocess.run(
        [running.copy / ".venv/bin/nexus", "config", "check", tmp_path / "nexus.toml"],
        capture_output=True,
        text=True,
    )
    assert (checked.returncode, checked.stdout) == (0, f"{tmp_path}/nexus.toml: ok, 2 backends.\n")
