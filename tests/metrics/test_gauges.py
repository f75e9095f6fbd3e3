"""The fleet's gauges: one file, replaced whole, that the library's own collector reads too."""

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from nexus.config import BackendConfig, Config
from nexus.fleet.records import Backend, Labels, Model, Snapshot
from nexus.metrics.gauges import write_fleet_gauges


def backend(name: str, label: str, *models: str, status: str = "healthy", **config) -> Backend:
    return Backend(
        config=BackendConfig(name=name, url="http://h", **config),
        label=label,
        column=0,
        status=status,
        models=tuple(Model(name=model) for model in models),
    )


def snapshot(*backends: Backend, models: dict[str, str]) -> Snapshot:
    labels = Labels(
        models=models,
        backends={each.name: each.label for each in backends if each.label != "other"},
    )
    return Snapshot(revision=1, published_at=1, config=Config(), backends=backends, labels=labels)


@pytest.fixture
def value(tmp_path):
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(tmp_path))

    def value(sample: str, /, **labels: str) -> float | None:
        return registry.get_sample_value(sample, labels)

    return value


def test_what_is_written(tmp_path, value):
    fleet = snapshot(
        backend("a/1", "a_1", "m", "n"),
        backend("b", "b", "n", "p", status="unhealthy", zone="open", tier=3),
        backend("c", "other", "x", "y"),
        models={"m": "m", "n": "n", "x": "x"},
    )
    write_fleet_gauges(tmp_path, fleet, updated_at=123.0, loaded_at=7.0, last_reload_good=True)
    assert value("nexus_backends_total") == 3
    assert value("nexus_backends_healthy") == 2
    assert value("nexus_models_available") == 4
    assert value("nexus_fleet_last_update_timestamp_seconds") == 123
    assert [value("nexus_backend_up", backend=label) for label in ("a_1", "b")] == [1, 0]
    info = {"type": "generic", "url": "http://h"}
    assert (
        value("nexus_backend_info", backend="a_1", name="a/1", zone="restricted", tier="1", **info)
        == 1
    )
    assert value("nexus_backend_info", backend="b", name="b", zone="open", tier="3", **info) == 1
    assert value("nexus_model_info", model="m", name="m") == 1
    assert value("nexus_labels_overflowed", kind="model") == 0, "nobody asked for p or y"
    assert value("nexus_labels_overflowed", kind="backend") == 1
    assert value("nexus_labels", kind="model") == 3
    assert value("nexus_labels", kind="backend") == 2
    assert value("nexus_labels_limit", kind="model") == 500
    assert value("nexus_labels_limit", kind="backend") == 200


def test_what_shares_a_label_shows_its_worst(tmp_path, value):
    fleet = snapshot(
        backend("a", "a", "m"),
        backend("b", "other", "m", "x"),
        msgspec.structs.replace(backend("c", "other", "y", status="unhealthy"), draining=True),
        backend("d", "other", "x", "z"),
        models={"m": "m"},
    )
    fleet = msgspec.structs.replace(
        fleet, labels=msgspec.structs.replace(fleet.labels, models_over=("x",))
    )
    write_fleet_gauges(tmp_path, fleet, updated_at=1.0, loaded_at=1.0, last_reload_good=True)
    assert [value("nexus_backend_up", backend=label) for label in ("a", "other")] == [1, 0]
    assert value("nexus_backend_draining", backend="other") == 0, (
        "one that is down and not drained is an alert"
    )
    nothing = {"type": "", "url": "", "zone": "", "tier": ""}
    assert value("nexus_backend_info", backend="other", name="other", **nothing) == 1
    assert [value("nexus_model_backends", model=label) for label in ("m", "other")] == [2, 0]
    assert value("nexus_model_info", model="other", name="other") is None
    assert value("nexus_labels_overflowed", kind="model") == 1
    assert value("nexus_labels_overflowed", kind="backend") == 3


def test_backends_of_a_model(tmp_path, value):
    """Those that may be given requests; a model that none of its backends can serve now is 0,
    one of no backend is not there."""
    fleet = snapshot(
        backend("a", "a", "both", "twice", "twice"),
        backend("b", "b", "both", "sick", status="unhealthy"),
        msgspec.structs.replace(backend("c", "c", "both", "drained"), draining=True),
        models={name: name for name in ("both", "twice", "sick", "drained", "alias")},
    )
    write_fleet_gauges(tmp_path, fleet, updated_at=1.0, loaded_at=1.0, last_reload_good=True)
    found = {name: value("nexus_model_backends", model=name) for name in fleet.labels.models}
    assert found == {"both": 1, "twice": 1, "sick": 0, "drained": 0, "alias": None}


def test_backend_that_is_gone_is_gone(tmp_path, value):
    both = snapshot(backend("a", "a", "m"), backend("b", "b", "m"), models={"m": "m"})
    write_fleet_gauges(tmp_path, both, updated_at=1.0, loaded_at=7.0, last_reload_good=True)
    assert value("nexus_backend_up", backend="b") == 1
    write_fleet_gauges(
        tmp_path,
        snapshot(both.backends[0], models={"m": "m"}),
        updated_at=2.0,
        loaded_at=7.0,
        last_reload_good=True,
    )
    assert value("nexus_backend_up", backend="b") is None
    assert value("nexus_backends_total") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["gauge_max_fleet.db"]


def test_directory_that_is_gone_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_fleet_gauges(
            tmp_path / "gone",
            snapshot(models={}),
            updated_at=1.0,
            loaded_at=7.0,
            last_reload_good=True,
        )
