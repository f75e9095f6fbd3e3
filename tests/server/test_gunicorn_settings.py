"""gunicorn.conf.py: what the environment sets, and what it says of a value that is wrong."""

import json
import subprocess
import sys

import pytest

from tests.support.processes import ROOT, clean_environ

pytestmark = pytest.mark.e2e

SHOW = (
    "import json, runpy; read = runpy.run_path('gunicorn.conf.py');"
    "print(json.dumps([read[name] for name in ('bind', 'graceful_timeout', 'max_requests')]))"
)


def settings(**environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SHOW],
        cwd=ROOT,
        env=clean_environ(**environ),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("environ", "shown"),
    [
        ({}, ["127.0.0.1:8000", 30, 0]),
        # Empty is unset, as for every process; gunicorn would listen on all addresses.
        (
            {"NEXUS_HOST": "", "NEXUS_PORT": "", "NEXUS_MAX_REQUESTS": ""},
            ["127.0.0.1:8000", 30, 0],
        ),
        (
            {"NEXUS_HOST": "::1", "NEXUS_PORT": "81", "NEXUS_GRACEFUL_TIMEOUT": "5"},
            ["[::1]:81", 5, 0],
        ),
        ({"NEXUS_HOST": "[::1]", "NEXUS_MAX_REQUESTS": "20"}, ["[::1]:8000", 30, 20]),
    ],
)
def test_what_the_environment_sets(environ, shown):
    done = settings(**environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == shown


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NEXUS_WORKERS", "two"),
        ("NEXUS_PORT", "tcp://10.96.0.7:8000"),
        ("NEXUS_GRACEFUL_TIMEOUT", "30s"),
        ("NEXUS_MAX_REQUESTS", "many"),
        ("NEXUS_MAX_REQUESTS", "-5"),
        ("NEXUS_LOG_FORMAT", "text"),
    ],
)
def test_a_wrong_value_is_one_sentence(variable, value):
    done = settings(**{variable: value})
    assert done.returncode == 2
    assert done.stderr.startswith(f"environment variable {variable}: ")
    assert f"{value!r} is not allowed; it takes " in done.stderr
    assert len(done.stderr.splitlines()) == 1
