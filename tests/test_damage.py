"""Files of the run directory that are damaged while the gateway runs, and file systems that
cannot be used."""

import os
import signal
import subprocess
import sys
import urllib.request

import pytest

from tests.support.load import chat, run
from tests.support.metrics import scrape
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml, clean_environ, free_port

pytestmark = pytest.mark.e2e

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")


@pytest.fixture(scope="module")
def demo(module_dir):
    with Demo(module_dir) as demo:
        yield demo


@pytest.fixture(scope="module")
def gateway(module_dir, demo):
    with Gateway(module_dir, backend_toml(demo)) as gateway:
        yield gateway


def ask(gateway: Gateway, count: int = 4) -> list[int]:
    statuses: list[int] = []
    asks = [chat("chat", "demo-small", max_tokens=3)] * count
    run(gateway.port, asks, concurrency=2, seen=lambda _, status, __: statuses.append(status))
    return statuses


def restart_workers(gateway: Gateway) -> None:
    old = set(gateway.worker_pids())
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(set(gateway.worker_pids()) - old) == 2)
    until(lambda: scrape(gateway.operations).value("nexus_workers") == 2)


def restarts(gateway: Gateway) -> float:
    return scrape(gateway.operations).value("nexus_worker_restarts_total")


@pytest.mark.parametrize("content", [b"\x00garbage", None], ids=["garbage", "gone"])
def test_the_start_that_cannot_be_read_ends_no_worker(gateway, content):
    before = restarts(gateway)
    [file] = gateway.run_dir.glob("current/started.json")
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    restart_workers(gateway)
    assert ask(gateway) == [200] * 4
    assert gateway.lines("the time of the start cannot be read and is rewritten")
    until(lambda: restarts(gateway) == before + 2)
    until(lambda: scrape(gateway.base).value("nexus_worker_restarts_total") == before + 2)
    assert file.read_bytes().startswith(b'{"at":')


def test_a_load_table_that_is_truncated_is_restored(gateway):
    restart_workers(gateway)
    before, counted = restarts(gateway), gateway.settled().total("nexus_requests_total")
    assert before >= 2
    [load] = gateway.run_dir.glob("current/load")
    size = load.stat().st_size
    os.truncate(load, 0)
    until(lambda: load.stat().st_size == size)
    until(lambda: scrape(gateway.operations).value("nexus_workers") == 2)
    assert gateway.lines("the load table was truncated and is restored")
    assert ask(gateway) == [200] * 4
    until(lambda: restarts(gateway) >= before)
    until(lambda: scrape(gateway.operations).total("nexus_requests_total") >= counted + 4)


def test_a_dashboard_state_that_cannot_be_read_is_replaced(gateway):
    for _ in range(20):
        (gateway.run_dir / "live.json").write_bytes(b"\xff{broken")
        with urllib.request.urlopen(gateway.base, timeout=10) as page:
            assert page.status == 200
    until(lambda: (gateway.run_dir / "live.json").read_bytes().startswith(b'{"number":'))


COMMANDS = {
    "nexus serve": ["-m", "nexus", "serve"],
    "gunicorn": ["-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app"],
    "nexus-health": ["-m", "nexus.health"],
}


def in_mounts(script: str, command: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command where the script has mounted things that nobody else sees."""
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{script} && exec "$@"', "sh", sys.executable, *command],
        capture_output=True, text=True, timeout=60,
        env=clean_environ(NEXUS_PORT=str(free_port()), NEXUS_HEALTH_LISTEN="off", **environ),
    )  # fmt: skip


@needs_root
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "script",
    [
        "mount -t tmpfs -o ro none {place}",
        "mount -t tmpfs -o size=4k,nr_inodes=8 none {place} && mkdir {place}/run && head -c 4096 "
        "/dev/zero > {place}/filler",
    ],
    ids=["read-only", "full"],
)
def test_a_run_directory_that_cannot_be_used_is_one_sentence(tmp_path, name, script):
    place = tmp_path / "small"
    place.mkdir()
    done = in_mounts(script.format(place=place), COMMANDS[name], NEXUS_RUN_DIR=str(place / "run"))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    [line] = done.stderr.strip().splitlines()
    assert line.startswith(f"The run directory {place}/run cannot be used (")


@needs_root
def test_shared_memory_that_is_read_only_is_not_needed(tmp_path, demo):
    mounted = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o ro none /dev/shm && exec "$@"', "sh"]
    with Gateway(tmp_path, backend_toml(demo), prefix=mounted) as gateway:
        assert ask(gateway) == [200] * 4
        assert "Traceback" not in gateway.output()
