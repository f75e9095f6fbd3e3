"""A gateway in front of a backend that responds with what it is given."""

from pathlib import Path

import pytest

from tests.streams.exact import CONFIG, NAMES
from tests.support.processes import Workers, backend
from tests.support.replay import Replay


@pytest.fixture(scope="module")
def replay():
    with Replay() as replay:
        yield replay


@pytest.fixture(scope="module")
def gateway(module_dir: Path, replay: Replay):
    config = CONFIG
    others = ["learn", "refuses", "broken", "slow", "large", "whole", "timed", "done"]
    with Workers(
        module_dir, config, [backend("up", replay.url, *NAMES, *others)], workers=1
    ) as workers:
        yield workers
