"""One demo backend behind two gateways: one with the fast path, one in which every request goes
through Flask."""

from collections.abc import Iterator

import pytest

from tests.server.asking import NAMED
from tests.support.processes import Demo, Gateway, backend_toml

SERVER = """
max_request_bytes = 200_000
max_buffered_bytes = 400_000
max_concurrent_requests = 4
body_timeout_seconds = 6
client_timeout_seconds = 5
"""
WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}


@pytest.fixture(scope="package")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with Demo(tmp_path_factory.mktemp("demo"), pace=0) as demo:
        yield demo


@pytest.fixture(scope="package", params=WAYS)
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, demo: Demo
) -> Iterator[Gateway]:
    config = backend_toml(demo) + f'[cors]\norigins = ["{NAMED}"]\n'
    directory = tmp_path_factory.mktemp("gateway")
    with Gateway(
        directory, config, workers=1, server=SERVER, environ=WAYS[request.param]
    ) as gateway:
        yield gateway
