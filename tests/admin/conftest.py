"""The application in this process, with a fleet that a health process would have published."""

import time

import pytest

from nexus.app import create_app
from nexus.config import BackendConfig, Config
from nexus.config.records import Server
from nexus.fleet.records import Backend, Labels, Model, Snapshot
from nexus.fleet.snapshot import SnapshotWriter


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def app(run_dir):
    """pytest-flask makes its `client` from this."""
    app = create_app(Config(server=Server(run_dir=str(run_dir))), environ={})
    app.testing = True
    yield app
    app.extensions["nexus"].close()


@pytest.fixture
def publish(app, run_dir):
    """Publish a fleet of these backends; the application sees it at its next request."""

    def publish(*backends: Backend, **config) -> None:
        writer = SnapshotWriter(run_dir)
        labels = Labels(
            models={model.name: model.name for b in backends for model in b.models},
            backends={b.name: b.label for b in backends},
        )
        writer.publish(
            Snapshot(
                revision=writer.next_revision(),
                published_at=time.time(),
                config=Config(**config),
                backends=backends,
                labels=labels,
            )
        )

    return publish


@pytest.fixture
def backend_at():
    def backend_at(
        url: str, *models: str, name: str = "a", status: str = "healthy", **config
    ) -> Backend:
        return Backend(
            config=BackendConfig(name=name, url=url, **config),
            label=name,
            column=0,
            status=status,
            since=1700000000.0,
            models=tuple(Model(name=model) for model in models),
        )

    return backend_at
