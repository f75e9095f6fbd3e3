"""Following the snapshot: at the next request, and without keeping others waiting."""

import time
from pathlib import Path

import pytest

from nexus.config import BackendConfig, Config
from nexus.config.access_records import Auth
from nexus.config.routing_records import Queue
from nexus.fleet.records import Backend, Model, Snapshot
from nexus.fleet.snapshot import SnapshotReader, SnapshotWriter
from nexus.proxy.fleet_view import FleetView, View


def publish(writer: SnapshotWriter, *models: Model) -> None:
    config = BackendConfig(name="a", url="http://h")
    backend = Backend(config=config, label="a", column=0, status="healthy", models=models)
    writer.publish(
        Snapshot(
            revision=writer.next_revision(),
            published_at=time.time(),
            config=Config(),
            backends=(backend,),
        )
    )


def test_while_one_takes_up_a_snapshot_others_go_on_with_the_one_before(tmp_path: Path):
    writer, reader = SnapshotWriter(tmp_path), SnapshotReader(tmp_path)
    seen: list[int] = []
    meanwhile: list[object] = []

    def pause() -> None:
        meanwhile.append(fleet.current())

    fleet = FleetView(
        reader, on_change=lambda snapshot: seen.append(snapshot.revision), pause=pause
    )
    assert fleet.current() is None
    publish(writer, Model(name="m"))
    first = fleet.current()
    assert first is not None
    assert fleet.current() is first

    publish(writer, *(Model(name=f"m{n}") for n in range(2_000)))
    second = fleet.current()
    assert second is not None
    assert second.snapshot.revision == 2
    assert len(meanwhile) == 8, "after each of four pages, and at each 500 models of the table"
    assert set(map(id, meanwhile)) == {id(first)}
    assert (fleet.current(), seen) == (second, [1, 2])

    meanwhile.clear()
    publish(writer, *second.snapshot.backends[0].models)
    third = fleet.current()
    assert third is not None
    assert (third.snapshot.revision, third.table.listing is second.table.listing) == (3, True)
    assert not meanwhile, "nothing was decoded or built anew"


@pytest.mark.parametrize(
    ("auth", "queue", "fair"),
    [
        ("off", {}, False),
        ("keys", {}, True),
        ("optional", {}, True),
        ("keys", {"order": "arrival"}, False),
        ("keys", {"max_size": 0}, False),
        ("keys", {"enabled": False}, False),
    ],
)
def test_the_queue_is_fair_only_among_keys(auth, queue, fair):
    config = Config(auth=Auth(mode=auth), queue=Queue(**queue))
    view = View.of(Snapshot(revision=1, published_at=0, config=config))
    assert view.fair_queue is fair
