"""The doctor finds what was planted, names the mend, and finds nothing where nothing is wrong."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile

import jsonschema
import pytest

from nexus.cli.doctor import host_checks, request_check
from nexus.config.records import Config, Server
from tests.cli.schemas import SCHEMAS
from tests.support.polling import until
from tests.support.processes import (
    Demo,
    Gateway,
    Process,
    backend_toml,
    clean_environ,
    free_port,
)

pytestmark = pytest.mark.e2e


@pytest.fixture
def place(tmp_path):
    """A configuration in which nothing is wrong, and a place where a gateway could start."""
    run_dir = f"/dev/shm/nexus-test-{os.getpid()}"
    text = (
        f'[server]\nhost = "127.0.0.1"\nport = {free_port()}\nrun_dir = "{run_dir}"\n'
        f'[health_check]\nlisten = "127.0.0.1:{free_port()}"\n'
    )
    (tmp_path / "nexus.toml").write_text(text)
    return tmp_path


def doctor(
    place, *words: str, limit: int | None = None, **environ: str
) -> dict[str, tuple[str, str]]:
    """Area → (what, mend) of the faults."""

    def set_limit() -> None:
        if limit:
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
            )

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "nexus",
            "doctor",
            "--json",
            "-c",
            str(place / "nexus.toml"),
            *words,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=set_limit,
        env=clean_environ(**environ),
    )
    shown = json.loads(done.stdout)
    jsonschema.validate(shown, SCHEMAS["doctor"])
    faults = {
        one["area"]: (one["what"], one["mend"])
        for one in shown["findings"]
        if one["state"] == "fail"
    }
    assert done.returncode == (1 if faults else 0)
    return faults


def quick(place, **given) -> dict[str, tuple[str, str]]:
    return doctor(place, "--no-request", **given)


def append(place, text: str) -> None:
    (place / "nexus.toml").write_text((place / "nexus.toml").read_text() + text)


def test_nothing_is_wrong(place):
    """The request through a gateway of its own included."""
    with Demo(place, models=["m"]) as demo:
        append(place, backend_toml(demo))
        assert doctor(place) == {}
        done = subprocess.run(
            [sys.executable, "-m", "nexus", "doctor", "-c", str(place / "nexus.toml")],
            capture_output=True,
            text=True,
            env=clean_environ(),
        )
    assert "one through a demo backend moved exactly its 4 series" in done.stdout
    assert done.stdout.endswith("\nNothing is wrong.\n")


def test_a_gateway_that_runs_is_no_fault(tmp_path):
    with Demo(tmp_path, models=["m"]) as demo, Gateway(tmp_path, backend_toml(demo)) as gateway:
        found = quick(tmp_path)
        assert found == {}
        (tmp_path / "nexus.toml").write_text(
            (tmp_path / "nexus.toml").read_text().replace("vllm", "vlm")
        )
        gateway.send(signal.SIGHUP)
        until(
            lambda: (
                gateway.scrape().samples[("nexus_config_last_reload_successful", frozenset())] == 0
            )
        )
        assert {"configuration", "reload"} <= set(quick(tmp_path))


def test_misspelt_key(place):
    append(place, "[queue]\nmax_sise = 3\n")
    what, mend = quick(place)["configuration"]
    assert "did you mean max_size?" in what
    assert "nexus config check" in mend


def test_key_that_is_not_there(place):
    append(
        place, '[[backends]]\nname = "a"\nurl = "http://127.0.0.1:9"\napi_key_env = "NO_SUCH_KEY"\n'
    )
    what, mend = quick(place)["secrets"]
    assert "$NO_SUCH_KEY" in what
    assert "LoadCredential=NO_SUCH_KEY" in mend


def test_too_few_descriptors(place):
    what, mend = quick(place, limit=256)["descriptors"]
    assert "256" in what
    assert "ulimit -n 2064" in mend


def test_uploads_that_cannot_be_stored(place):
    config = (place / "nexus.toml").read_text()
    (place / "nexus.toml").write_text(
        config.replace("[server]", '[server]\nspool_dir = "/nowhere"')
    )
    what, mend = quick(place)["uploads"]
    assert what == "/nowhere cannot store them (No such file or directory)."
    assert "[server] spool_dir" in mend


def test_a_host_without_a_place_for_files(monkeypatch):
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    (finding,) = host_checks.uploads(Config())
    assert finding.text == "$TMPDIR cannot store them (No usable temporary directory found)."
    assert "set $TMPDIR to a directory" in request_check.request().fix


def test_uploads_without_room(tmp_path):
    server = Server(spool_dir=str(tmp_path), max_upload_bytes=1 << 60)
    (finding,) = host_checks.uploads(Config(server=server))
    assert (finding.state, finding.text.partition(" has ")[0]) == ("warn", str(tmp_path))
    assert "lower max_upload_bytes" in finding.fix


@pytest.mark.parametrize(
    ("name", "value", "area", "mend"),
    [
        ("PROMETHEUS_MULTIPROC_DIR", "/somewhere", "prometheus", "unset PROMETHEUS_MULTIPROC_DIR"),
        ("GUNICORN_CMD_ARGS", "--threads 2 -k sync", "gunicorn", "take the worker class out"),
        ("GUNICORN_CMD_ARGS", "--worker-class=sync", "gunicorn", "take the worker class out"),
    ],
)
def test_variables(place, name, value, area, mend):
    assert mend in quick(place, **{name: value})[area][1]


def test_run_directory_that_is_a_file(place):
    (place / "file").write_text("")
    what, mend = quick(place, NEXUS_RUN_DIR=str(place / "file"))["run directory"]
    assert "is a link or a file, not a directory" in what
    assert "$NEXUS_RUN_DIR" in mend


def test_run_directory_that_others_may_write(place):
    (place / "run").mkdir(mode=0o777)
    (place / "run").chmod(0o777)
    what, mend = quick(place, NEXUS_RUN_DIR=str(place / "run"))["run directory"]
    assert "Other users may write" in what
    assert "delete the directory" in mend


def test_port_that_something_else_has(place):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        what, mend = quick(place, NEXUS_PORT=str(port))["address"]
    assert f"Something that is not Nexus has http://127.0.0.1:{port}" in what
    assert "$NEXUS_PORT" in mend


def test_backends_each_in_its_own_way(place):
    with (
        Demo(place, name="broken", fault="status=500,models") as broken,
        Demo(place, name="closed", fault="status=401,models") as closed,
    ):
        append(place, backend_toml(broken, closed))
        append(place, f'[[backends]]\nname = "away"\nurl = "http://127.0.0.1:{free_port()}"\n')
        append(place, '[[backends]]\nname = "nowhere"\nurl = "http://no-such-host.invalid"\n')
        found = quick(place)
    assert "500" in found["backend broken"][0]
    assert "is it really of type 'vllm'?" in found["backend broken"][1]
    assert "check its key" in found["backend closed"][1]
    assert "nothing listens there" in found["backend away"][0]
    assert "the DNS" in found["backend nowhere"][1]


def test_a_health_process_without_workers(place):
    """Its port is no other gateway's, and stopping it would mend nothing."""
    command = [sys.executable, "-m", "nexus.health", "-c", str(place / "nexus.toml")]
    with Process(command, log=place / "health.log", environ=clean_environ()):
        faults = until(lambda: (found := quick(place)).get("address") and found)
        assert "The health process runs, but no worker responds" in faults["address"][0]
        assert "operations address" not in faults


def test_health_process_that_is_gone(tmp_path):
    """Its supervisor is held still, so that it is not started again."""
    with Demo(tmp_path, models=["m"]) as demo, Gateway(tmp_path, backend_toml(demo)) as gateway:
        os.kill(gateway.pid, signal.SIGSTOP)
        try:
            os.kill(gateway.health_pid(), signal.SIGKILL)
            until(lambda: gateway.scrape().value("nexus_health_process_up") == 0)
            assert "systemctl start nexus-health" in quick(tmp_path)["health process"][1]
        finally:
            os.kill(gateway.pid, signal.SIGCONT)
