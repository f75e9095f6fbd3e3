"""Fixtures that all tests may use."""

import atexit
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.processes import Demo, Gateway, backend_toml

# No test may fail because a host is slow.
_ANY_SPEED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("any speed", parent=_ANY_SPEED)
settings.register_profile("long", parent=_ANY_SPEED, max_examples=5_000)
settings.load_profile("any speed")

# Otherwise each of the many processes here would compile the program again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Gateways without `state_dir` keep keys and ledgers here, and not among those of the user.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="nexus-state-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

_MARKS = re.compile(r"^pytestmark = (.*)$", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import a module if all its tests are deselected: unit tests need no browser."""
    if collection_path.suffix != ".py" or "not " not in config.option.markexpr:
        return None
    marks = re.findall(r"mark\.(\w+)", " ".join(_MARKS.findall(collection_path.read_text())))
    return any(f"not {mark}" in config.option.markexpr for mark in marks) or None


@pytest.fixture(scope="module")
def module_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("module")


@pytest.fixture(scope="module")
def demo(module_dir: Path) -> Iterator[Demo]:
    """A demo backend without pauses, for the tests of one module."""
    with Demo(module_dir, name="demo-a", models=["demo-small", "demo-large"], pace=0) as demo:
        yield demo


@pytest.fixture(scope="module")
def gateway(module_dir: Path, demo: Demo) -> Iterator[Gateway]:
    """A gateway with two workers in front of `demo`, for the tests of one module."""
    with Gateway(module_dir, backend_toml(demo)) as gateway:
        yield gateway
