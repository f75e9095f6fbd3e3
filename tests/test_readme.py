"""The README's commands, in a clean copy of the repository, as somebody with nothing but Python and make runs them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.polling import until
from tests.support.processes import ROOT, Process, clean_environ, free_port

pytestmark = pytest.mark.e2e

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
README = (ROOT / "README.md").read_text()
BLOCKS = [(kind, text) for kind, text in BLOCK.findall(README)]
ELSEWHERE = ("make run\n", "make check\n")  # the first is started by the fixture, the second runs this test


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """`make run` in a clean copy: what git would give a newcomer, the uncommitted changes included."""
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
        NEXUS_PORT=str(port), NEXUS_HEALTH_LISTEN=f"127.0.0.1:{operations}", NEXUS_RUN_DIR=str(copy.parent / "run")
    )
    environ.pop("VIRTUAL_ENV", None)
    with Process(["make", "run"], log=copy.parent / "make.log", environ=environ, cwd=copy) as process:
        process.copy = copy
        process.ports = {"8000": str(port), "9464": str(operations)}
        until(lambda: "Ctrl-C stops it" in process.output(), within_s=240, every_s=0.2)
        yield process


def here(text: str, running: Process) -> str:
    for theirs, ours in running.ports.items():
        text = text.replace(f"127.0.0.1:{theirs}", f"127.0.0.1:{ours}")
    return text


def test_the_blocks_are_there():
    assert [text for kind, text in BLOCKS if text in ELSEWHERE] == list(ELSEWHERE)


def test_first_screen_is_as_shown(running):
    shown = next(text for kind, text in BLOCKS if kind == "text")
    for line in here(shown, running).splitlines():
        if line.strip() and not line.startswith("    state"):
            assert line in running.output()


@pytest.mark.parametrize("block", [text for kind, text in BLOCKS if kind == "sh" and text not in ELSEWHERE])
def test_commands(running, block):
    for command in here(block, running).splitlines():
        ran = subprocess.run(
            ["bash", "-c", command], cwd=running.copy, capture_output=True, text=True, timeout=60, check=True
        )
        assert ran.stdout
        if "/v1/" in command:
            assert "error" not in json.loads(ran.stdout)


@pytest.mark.parametrize("block", [text for kind, text in BLOCKS if kind == "python"])
def test_client(running, block, capsys):
    exec(compile(here(block, running), "README.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) > 10


def test_configuration_is_valid(running, tmp_path):
    block = next(text for kind, text in BLOCKS if kind == "toml")
    (tmp_path / "nexus.toml").write_text(block)
    checked = subprocess.run(
        [running.copy / ".venv/bin/nexus", "config", "check", tmp_path / "nexus.toml"], capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout) == (0, f"{tmp_path}/nexus.toml: ok, 2 backends.\n")


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_nothing_names_this_machine():
    for path in [ROOT / "Makefile", ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        assert "/root/" not in Path(path).read_text()
