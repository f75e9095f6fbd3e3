"""The fleet snapshot: whole or not at all, and told by a shared number."""

from nexus.config import BackendConfig, Config
from nexus.fleet.records import Backend, Labels, Model, Snapshot
from nexus.fleet.snapshot import SnapshotReader, SnapshotWriter


def test_round_trip(tmp_path):
    writer, reader = SnapshotWriter(tmp_path), SnapshotReader(tmp_path)
    assert (reader.number, reader.read()) == (0, None)
    backend = Backend(
        config=BackendConfig(name="a", url="http://a"), label="a", column=3, models=(Model(name="m", vision=True),)
    )
    snapshot = Snapshot(
        number=writer.next_number(), published_at=1.5, config=Config(), backends=(backend,),
        labels=Labels(models={"m": "m"}, backends={"a": "a"}),
    )  # fmt: skip
    writer.publish(snapshot)
    assert reader.number == 1
    assert reader.read() == snapshot
    assert SnapshotWriter(tmp_path).next_number() == 2


def test_a_file_that_cannot_be_understood_is_no_snapshot(tmp_path):
    reader = SnapshotReader(tmp_path)
    (tmp_path / "fleet.json").write_text('{"number": "x"}')
    assert reader.read() is None
