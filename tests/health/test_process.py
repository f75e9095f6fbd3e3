"""The health process as a process of its own."""

import subprocess
import sys

import pytest

from tests.support.processes import clean_environ

pytestmark = pytest.mark.e2e

BROKEN = """
from gevent import monkey
monkey.patch_all()
from nexus.config import load
from nexus.fleet.run_directory import RunDirectory
from nexus.health.process import HealthProcess
from nexus.metrics.metrics_file import ReservedFile
import sys
loaded = load()
run_dir = RunDirectory.of(loaded.config)
run_dir.prepare()
process = HealthProcess(loaded, run_dir)
process._monitor._publisher = None  # a defect: whatever needs it fails
sys.exit(process.run())
"""


def test_one_whose_part_fails_ends_and_says_why(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", BROKEN],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=tmp_path,
        env=clean_environ(
            NEXUS_RUN_DIR=str(tmp_path / "run"),
            NEXUS_HEALTH_LISTEN="off",
            PYTHONPATH=sys.path[0] or ".",
        ),
    )
    assert ended.returncode == 1
    assert "the health process failed and ends" in ended.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("[health_check]\nlisten = 'nine'", "it takes host:port"),
        ("[server]\nrun_dir = '/proc/nexus'", "The run directory /proc/nexus cannot be used"),
    ],
)
def test_bad_settings_are_one_sentence_and_status_2(tmp_path, settings, said):
    (tmp_path / "nexus.toml").write_text(settings)
    ended = subprocess.run(
        [sys.executable, "-m", "nexus.health", "-c", str(tmp_path / "nexus.toml")],
        capture_output=True, text=True, timeout=30, env=clean_environ(),
    )  # fmt: skip
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
