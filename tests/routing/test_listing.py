"""What the models alone decide: shared by snapshots in which they are the same, and built while
others run."""

from msgspec.structs import replace

from nexus.config import BackendConfig, Config
from nexus.fleet.records import Backend, Model, Snapshot, Status
from nexus.routing.table import RouteTable


def backend(name: str, *models: Model, kind: str = "openai", status: Status = "healthy") -> Backend:
    config = BackendConfig(name=name, url="http://h", type=kind)  # type: ignore[arg-type]
    return Backend(config=config, label=name, column=0, status=status, models=models)


def snapshot(*backends: Backend) -> Snapshot:
    return Snapshot(revision=1, published_at=1.0, config=Config(), backends=backends)


MANY = tuple(Model(name=f"m{n}") for n in range(5_000))


def test_it_is_built_again_only_for_other_models_or_kinds():
    one, two = backend("a", *MANY), backend("b", Model(name="x"))
    pauses: list[None] = []
    pause = lambda: pauses.append(None)  # noqa: E731
    table = RouteTable(snapshot(one, two), pause=pause)
    assert len(pauses) == 11, "others run after every 500 models"

    pauses.clear()
    slower = replace(one, latency_ms=9.0, status="unhealthy")
    later = RouteTable(snapshot(slower, two), before=table, pause=pause)
    assert later.listing is table.listing
    assert not pauses
    assert later.candidates["m7"][0].backend is slower
    assert "m7" not in later.healthy
    assert list(later.healthy) == ["x"]

    for other in (
        snapshot(one),
        snapshot(two, one),
        snapshot(one, backend("b", Model(name="y"))),
        snapshot(one, replace(two, config=replace(two.config, type="ollama"))),
    ):
        assert RouteTable(other, before=table).listing is not table.listing


def test_candidates_are_those_of_the_requested_backends():
    well, down = (
        backend("a", Model(name="m"), Model(name="n")),
        backend("b", Model(name="m"), status="unhealthy"),
    )
    table = RouteTable(snapshot(well, down))
    assert [candidate.backend.name for candidate in table.candidates["m"]] == ["a", "b"]
    assert [candidate.backend.name for candidate in table.healthy["m"]] == ["a"]
    assert (len(table.candidates), sorted(table.candidates)) == (2, ["m", "n"])
    assert ("none" in table.candidates, table.healthy.get("none")) == (False, None)
    down_alone = RouteTable(snapshot(down))
    assert (list(down_alone.healthy), len(down_alone.candidates)) == ([], 1)


def test_equivalent_names_are_known_while_others_run():
    pauses: list[None] = []
    models = tuple(Model(name=f"m{n}:latest") for n in range(1_000))
    table = RouteTable(
        snapshot(backend("o", *models, kind="ollama")), pause=lambda: pauses.append(None)
    )
    assert table.resolve("m999") == "m999:latest"
    assert len(pauses) == 4
