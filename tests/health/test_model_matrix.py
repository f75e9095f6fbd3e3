"""Which models the dashboard shows, and when their table is made anew."""

from msgspec.structs import replace

from nexus.config import BackendConfig, Config
from nexus.fleet.records import Backend, Model, Snapshot
from nexus.health.model_matrix import ModelMatrix


def snapshot(*lists: tuple[Model, ...]) -> Snapshot:
    return Snapshot(
        revision=1,
        published_at=1.0,
        config=Config(),
        backends=tuple(
            Backend(
                config=BackendConfig(name=f"b{n}", url="http://h"),
                label=f"b{n}",
                column=n,
                models=models,
            )
            for n, models in enumerate(lists)
        ),
    )


def test_of_thousands_of_models_the_first_are_shown():
    many = tuple(Model(name=f"m{n:04}", vision=True) for n in reversed(range(5_000)))
    lists = snapshot(many, (Model(name="m0003"), Model(name="z")))
    matrix = ModelMatrix.of(()).updated(lists)
    assert [row["name"] for row in matrix.rows] == [f"m{n:04}" for n in range(100)]
    assert matrix.hidden == 4_901
    assert list(matrix.rows[3]["backends"]) == ["b0", "b1"]
    assert matrix.rows[4]["backends"]["b0"]["can"] == ["vision"]


def test_it_is_made_anew_only_for_other_models():
    one, two = (Model(name="a"),), (Model(name="b"),)
    before = snapshot(one, two)
    matrix = ModelMatrix.of(()).updated(before)
    later = replace(
        before, revision=2, backends=tuple(replace(b, latency_ms=5.0) for b in before.backends)
    )
    assert matrix.updated(later) is matrix
    assert matrix.updated(snapshot(one)) is not matrix
    changed = matrix.updated(snapshot(one, (Model(name="c"),)))
    assert [row["name"] for row in changed.rows] == ["a", "c"]
