"""The fleet snapshot: whole or not at all, and told by a shared number."""

import pytest

from nexus.config import BackendConfig, Config
from nexus.fleet.records import Backend, Labels, Model, Snapshot
from nexus.fleet.snapshot import SnapshotReader, SnapshotWriter


def test_round_trip(tmp_path):
    writer, reader = SnapshotWriter(tmp_path), SnapshotReader(tmp_path)
    assert (reader.revision, reader.read()) == (0, None)
    backend = Backend(
        config=BackendConfig(name="a", url="http://a"),
        label="a",
        column=3,
        models=(Model(name="m", vision=True),),
    )
    snapshot = Snapshot(
        revision=writer.next_revision(), published_at=1.5, config=Config(), backends=(backend,),
        labels=Labels(models={"m": "m"}, backends={"a": "a"}),
    )  # fmt: skip
    writer.publish(snapshot)
    assert reader.revision == 1
    assert reader.read() == snapshot
    assert SnapshotWriter(tmp_path).next_revision() == 2


@pytest.mark.parametrize(
    "text", ['{"number": "x"}', "", "\n", "[1]\n[]", '{"snapshot": {}, "pages": [1]}']
)
def test_a_file_that_cannot_be_understood_is_no_snapshot(tmp_path, text):
    reader = SnapshotReader(tmp_path)
    (tmp_path / "fleet.json").write_text(text)
    assert reader.read() is None


def fleet(number: int, *lists: tuple[Model, ...], latency_ms: float = 1.0) -> Snapshot:
    backends = (
        Backend(
            config=BackendConfig(name=f"b{n}", url="http://h"),
            label=f"b{n}",
            column=n,
            models=models,
            latency_ms=latency_ms,
        )
        for n, models in enumerate(lists)
    )
    return Snapshot(revision=number, published_at=1.0, config=Config(), backends=tuple(backends))


def models(
    count: int, *, name: str = "m", vision: frozenset[int] = frozenset()
) -> tuple[Model, ...]:
    return tuple(Model(name=f"{name}{n}", vision=n in vision) for n in range(count))


def test_models_that_did_not_change_are_neither_encoded_nor_decoded_again(tmp_path):
    writer, reader = SnapshotWriter(tmp_path), SnapshotReader(tmp_path)
    pauses: list[None] = []

    def read() -> tuple[Snapshot, int, int, int]:
        decoded, encoded = reader.decoded, writer.encoded
        pauses.clear()
        found = reader.read(lambda: pauses.append(None))
        assert found is not None
        return found, encoded, reader.decoded - decoded, len(pauses)

    one, two = models(5_000), models(1_200, name="other")
    writer.publish(first := fleet(1, one, two))
    found, encoded, decoded, paused = read()
    assert found == first
    assert (encoded, decoded, paused) == (13, 13, 13), "others run after each page of 500 models"

    writer.publish(second := fleet(2, one, two, latency_ms=2.0))
    again, encoded, decoded, paused = read()
    assert again == second
    assert (encoded, decoded, paused) == (13, 0, 0), "nothing new"
    assert [x.models is y.models for x, y in zip(found.backends, again.backends, strict=True)] == [
        True,
        True,
    ]

    writer.publish(third := fleet(3, models(5_000, vision=frozenset({600})), two))
    changed, encoded, decoded, paused = read()
    assert changed == third
    assert (encoded, decoded) == (23, 1), "one page of a list that changed"
    assert changed.backends[1].models is again.backends[1].models

    writer.publish(fourth := fleet(4, two))  # a backend less, and its name has other models
    assert read()[0] == fourth
    writer.publish(fifth := fleet(5, (), ()))
    assert read()[0] == fifth
