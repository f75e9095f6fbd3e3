"""The commands, run as a person runs them."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import jsonschema
import pytest

from nexus import __version__
from nexus.config.template import template
from nexus.metrics.families import FAMILIES
from tests.cli.schemas import SCHEMAS
from tests.support.processes import ROOT, Demo, clean_environ, free_port


def nexus(*words: str, cwd=None, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nexus", *words],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=cwd,
        env=clean_environ(**environ),
    )


def test_version_and_help():
    assert nexus("--version").stdout == f"nexus, version {__version__}\n"
    shown = nexus("-h")
    assert shown.returncode == 0
    for command in ("serve", "config", "demo-backend"):
        assert command in shown.stdout


@pytest.mark.parametrize(
    "words", [[], *([name] for name in ("backends", "config", "metrics", "route"))]
)
def test_every_command_is_described_in_one_line_of_a_terminal(words):
    listed = nexus(*words, "-h", COLUMNS="80").stdout.partition("Commands:")[2]
    assert len(listed.splitlines()) > 1
    assert "..." not in listed


@pytest.mark.parametrize("words", [["serve"], ["backends", "add"], ["doctor"]])
def test_the_page_of_commands_is_what_help_says(words):
    shown = nexus(*words, "--help", COLUMNS="102").stdout
    assert f"```text\n{shown}```" in (ROOT / "docs/cli.md").read_text()


def test_config_init_and_check(tmp_path):
    target = tmp_path / "n.toml"
    assert nexus("config", "init", "-o", str(target)).returncode == 0
    assert target.read_text() == template()
    again = nexus("config", "init", "-o", str(target))
    assert (again.returncode, again.stderr) == (
        2,
        f"{target} exists already; --force replaces it.\n",
    )
    checked = nexus("config", "check", str(target))
    assert (checked.returncode, checked.stdout) == (0, f"{target}: ok, 0 backends.\n")


def test_config_check_tells_every_fault(tmp_path):
    (tmp_path / "n.toml").write_text("[server]\nprot = 1\nport = 'x'\n")
    checked = nexus("config", "check", str(tmp_path / "n.toml"))
    assert checked.returncode == 2
    assert checked.stderr.splitlines() == [
        f"{tmp_path}/n.toml: [server] has no key prot; did you mean port?",
        f"{tmp_path}/n.toml: [server] port = 'x' is not allowed; it takes a whole number from 1 "
        f"to 65535.",
    ]


def test_config_check_tells_machines_of_a_bad_file(tmp_path):
    (tmp_path / "nexus.toml").write_text("[server]\nport = 'x'\n")
    for words, environ in (
        (["nexus.toml"], {}),
        (["-c", "nexus.toml"], {}),
        ([], {"NEXUS_CONFIG": "nexus.toml"}),
        ([], {}),
    ):
        checked = nexus("config", "check", *words, "--json", cwd=tmp_path, **environ)
        assert checked.returncode == 2
        shown = json.loads(checked.stdout)
        jsonschema.validate(shown, SCHEMAS["config check"])
        assert (shown["file"], shown["usable"], len(shown["problems"])) == ("nexus.toml", False, 1)


def test_metrics_list_is_the_table():
    shown = json.loads(nexus("metrics", "list", "--json").stdout)
    assert [family["name"] for family in shown] == [family.name for family in FAMILIES]
    text = nexus("metrics", "list").stdout
    assert all(family.name in text for family in FAMILIES)


def test_a_command_of_a_group_has_addresses_of_its_own(tmp_path):
    """Those of the group, or of the environment, are not looked at before."""
    ports = free_port(), free_port()
    file = tmp_path / "n.toml"
    file.write_text(
        f"[server]\nport = {ports[0]}\n[health_check]\nlisten = '127.0.0.1:{ports[1]}'\n"
    )
    words = ("budgets", "grant", "x", "--usd", "5", "-c", str(file))
    found = nexus(*words, NEXUS_CONFIG=str(tmp_path / "absent.toml"))
    assert found.returncode == 3, found.stderr
    assert f"127.0.0.1:{ports[1]}" in found.stderr


def test_metrics_bound(tmp_path):
    (tmp_path / "n.toml").write_text(
        "[metrics]\nmax_models = 3\nmax_backends = 2\n[[backends]]\nname = 'a'\n"
        "url = 'http://a'\n[[backends]]\nname = 'b'\nurl = 'http://b'"
    )
    shown = json.loads(nexus("metrics", "bound", "-c", str(tmp_path / "n.toml"), "--json").stdout)
    families = shown["families"]
    assert families["nexus_request_duration_seconds"] == (3 + 3) * (2 + 3) * (11 + 3)
    assert families["nexus_fallbacks_total"] == 36
    assert families["nexus_backend_info"] == 3
    assert families["nexus_workers"] == 1
    assert shown["total"] == sum(families.values())


def test_the_demo_backend_takes_a_port():
    refused = nexus("demo-backend", "--port", "65536")
    assert refused.returncode == 2
    assert "65536 is not in the range 0<=x<=65535" in refused.stderr


def test_output_that_cannot_be_written():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nexus", "metrics", "list"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, env=clean_environ(),
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "The output cannot be written (No space left on device).\n"


def test_a_month_is_a_whole_span():
    refused = nexus("usage", "--month", "2026-11", "--to", "2026-11-05")
    assert refused.returncode == 2
    assert "leave out --from and --to" in refused.stderr


@pytest.mark.parametrize("words", [["reload"], ["route", "explain", "m"]])
def test_a_file_that_is_missing_leads_to_no_gateway(words, tmp_path):
    """The defaults might lead to another gateway of this host."""
    refused = nexus(*words, "-c", str(tmp_path / "absent.toml"), NEXUS_RUN_DIR=str(tmp_path))
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"{tmp_path}/absent.toml: there is no such file;")


def test_demo_backend_refuses_a_fault_that_there_is_not():
    refused = nexus("demo-backend", "--fault", "explode=1")
    assert refused.returncode == 2
    assert refused.stderr.startswith("There is no fault 'explode'; known are status,")


@pytest.mark.e2e
def test_demo_backend_is_the_same_for_the_same_seed(tmp_path):
    said = []
    for name in ("one", "two"):
        with Demo(tmp_path, name=name, seed=3, fault="status=503,rate=0.5,seed=4") as demo:
            answers = []
            for _ in range(8):
                body = json.dumps(
                    {"model": "demo-small", "messages": [{"role": "user", "content": "x"}]}
                ).encode()
                try:
                    with urllib.request.urlopen(
                        f"{demo.url}/v1/chat/completions", data=body, timeout=5
                    ) as answer:
                        answers.append(json.load(answer)["choices"][0]["message"]["content"])
                except urllib.error.HTTPError as error:
                    answers.append(error.code)
                    error.close()
            said.append(answers)
    assert said[0] == said[1]
    assert 503 in said[0]
    assert len(set(said[0])) > 2
