"""A run directory that somebody else made first: nothing of ours is harmed, and nothing in it is
believed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nexus.fleet.locks import LockFile
from nexus.fleet.run_directory import RunDirectory, RunDirectoryError
from tests.support.processes import clean_environ, free_port

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        os.geteuid() != 0, reason="only root can make a directory of another user's"
    ),
]
STRANGER = 4242


@pytest.fixture
def trap(tmp_path):
    """A run directory of another user's, full of links to a file of ours."""
    victim = tmp_path / "victim.txt"
    victim.write_text("dear to us")
    directory = tmp_path / "run"
    generation = directory / "generations" / "g"
    (generation / "metrics").mkdir(parents=True)
    (directory / "current").symlink_to("generations/g")
    for name in ("load", "circuits", "recent", "slots"):
        (generation / name).symlink_to(victim)
    (directory / "admin.token").write_text("known-to-the-stranger")
    (directory / "format").write_text("2")
    for pid in range(os.getpid(), os.getpid() + 3000):
        (directory / f".probe-{pid}").symlink_to(victim)
    for path in [directory, *directory.rglob("*")]:
        os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    directory.chmod(0o777)
    return directory


def nexus(trap, *words):
    file = trap.parent / "nexus.toml"
    file.write_text(
        f'[server]\nport = {free_port()}\nhost = "127.0.0.1"\nrun_dir = "{trap}"\n'
        f'[health_check]\nlisten = "127.0.0.1:{free_port()}"\n'
    )
    return subprocess.run(
        [sys.executable, "-m", *words, "-c", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environ(),
        cwd=Path(__file__).parent.parent,
    )


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("nexus", "serve"), 2),
        (("nexus.health",), 2),
        (("nexus", "reload"), 2),
        (("nexus", "route", "explain", "m"), 2),
        (("nexus", "status"), 3),
        (("nexus", "backends", "list"), 3),
        (("nexus", "doctor", "--no-request"), 1),
    ],
)
def test_no_process_uses_it(trap, words, status):
    before = sorted(path.name for path in trap.rglob("*"))
    found = nexus(trap, *words)
    assert found.returncode == status, found.stdout + found.stderr
    assert "Traceback" not in found.stderr
    if status != 3:
        assert f"belongs to another user (uid {STRANGER})" in found.stdout + found.stderr
    assert (trap.parent / "victim.txt").read_text() == "dear to us"
    assert sorted(path.name for path in trap.rglob("*")) == before


def test_no_process_is_signalled(trap):
    with subprocess.Popen(
        [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
    ) as child:
        child.stdout.readline()
        lock = LockFile(trap / "health.lock")
        assert lock.acquire(0)
        lock.write_note(f"pid {child.pid}")
        os.chown(trap / "health.lock", STRANGER, STRANGER)
        assert nexus(trap, "nexus", "reload").returncode == 2
        assert child.poll() is None
        lock.close()
        child.send_signal(signal.SIGTERM)


def test_what_makes_a_directory_ours(tmp_path):
    run_dir = RunDirectory(tmp_path / "run")
    assert run_dir.check() is False
    run_dir.prepare()
    assert run_dir.check() is True
    for mode in (0o770, 0o707, 0o702):
        run_dir.path.chmod(mode)
        with pytest.raises(RunDirectoryError, match="Other users may write in the run directory"):
            run_dir.prepare()
    run_dir.path.chmod(0o755)
    assert run_dir.check() is True
    link = RunDirectory(tmp_path / "link")
    link.path.symlink_to(run_dir.path)
    with pytest.raises(RunDirectoryError, match="a link or a file"):
        link.prepare()
    victim = tmp_path / "victim"
    victim.write_text("dear to us")
    (run_dir.path / f".probe-{os.getpid()}").symlink_to(victim)
    run_dir.prepare()
    assert victim.read_text() == "dear to us"
