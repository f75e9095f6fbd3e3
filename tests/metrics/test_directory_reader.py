"""The fast reader against the library's own collector, on the same files."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, values
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.values import MultiProcessValue

from nexus.metrics.directory_reader import DAMAGED, DirectoryReader
from nexus.metrics.exposition import of_metric


class Writer:
    """A process's metrics in `directory`, made by the library itself."""

    def __init__(self, directory: Path, slot: str) -> None:
        self._slot = slot
        self._value = MultiProcessValue(lambda: slot)
        self._directory = directory
        self._metrics: dict = {}

    def make(self, monkeypatch, kind, name, labels, **more):
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(self._directory))
        monkeypatch.setattr(values, "ValueClass", self._value)
        metric = self._metrics.get(name)
        if metric is None:
            metric = kind(
                name,
                f"help of {name}\nwith \\ a line",
                list(labels),
                registry=CollectorRegistry(),
                **more,
            )
            self._metrics[name] = metric
        return metric.labels(**labels) if labels else metric

    def close(self) -> None:
        self._value.close_all_files()


def stock(directory: Path) -> str:
    files = sorted(str(path) for path in directory.glob("*.db"))
    kinds = ("counter", "gauge", "histogram", "summary")
    by_kind = {kind: [f for f in files if Path(f).name.startswith(kind)] for kind in kinds}
    return "".join(generate_latest(Merged(found)).decode() for found in by_kind.values())


class Merged:
    """What the library's collector makes of these files, in this order."""

    def __init__(self, files: list[str]) -> None:
        self._files = files

    def collect(self):
        return MultiProcessCollector.merge(self._files)


def ours(reader: DirectoryReader) -> str:
    texts: dict[str, str] = {"counter": "", "gauge": "", "histogram": "", "summary": ""}
    for family in reader.read():
        texts[family.layout.header.split()[-1]] += family.exposition()
    texts["gauge"] = "".join(of_metric(metric).exposition() for metric in reader.gauges())
    return "".join(texts.values())


label_text = st.text(
    alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=6
) | st.sampled_from(['a"b', "a\\b", "a\nb", "{}", "ü✓"])
amounts = (
    st.floats(min_value=0, max_value=1e300)
    | st.integers(0, 10_000_000).map(float)
    | st.sampled_from([1.0, 0.5])
)
operations = st.lists(
    st.tuples(
        st.sampled_from(["0", "1", "10", "2", "x-1"]),
        st.sampled_from(
            [
                "counter_a",
                "counter_b",
                "gauge_max",
                "gauge_all",
                "gauge_sum",
                "gauge_recent",
                "hist_a",
                "hist_b",
                "summary_a",
            ]
        ),
        label_text,
        amounts,
    ),
    max_size=25,
)


def apply(writers, monkeypatch, slot: str, name: str, label: str, amount: float) -> None:
    writer = writers[slot]
    if name.startswith("counter"):
        labels = {} if name == "counter_b" else {"x": label, "a": "1"}
        writer.make(monkeypatch, Counter, name, labels).inc(amount)
    elif name.startswith("gauge"):
        mode = {"max": "max", "all": "all", "sum": "livesum", "recent": "mostrecent"}[
            name.partition("_")[2]
        ]
        writer.make(monkeypatch, Gauge, name, {"x": label}, multiprocess_mode=mode).set(amount)
    elif name.startswith("summary"):
        writer.make(monkeypatch, Summary, name, {"x": label}).observe(amount)
    else:
        buckets = (0.1, 1, 10, 1e6) if name == "hist_a" else (5,)
        writer.make(monkeypatch, Histogram, name, {"x": label}, buckets=buckets).observe(amount)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(operations, min_size=1, max_size=4))
def test_same_bytes_as_the_library(rounds, tmp_path_factory, monkeypatch):
    """After every round, with the one reader that has seen all rounds before: files grow, and
    new ones come."""
    directory = tmp_path_factory.mktemp("metrics")
    writers = {slot: Writer(directory, slot) for slot in ("0", "1", "10", "2", "x-1")}
    reader = DirectoryReader(directory)
    try:
        for done in rounds:
            for operation in done:
                apply(writers, monkeypatch, *operation)
            assert ours(reader) == stock(directory)
            assert ours(reader) == stock(directory)
        assert reader.damaged() == 0
    finally:
        reader.close()
        for writer in writers.values():
            writer.close()


@pytest.fixture
def directory(tmp_path, monkeypatch):
    writers = {slot: Writer(tmp_path, slot) for slot in ("0", "1")}
    for slot in writers:
        for name in ("counter_a", "hist_a", "gauge_max"):
            apply(writers, monkeypatch, slot, name, "x", 2.0)
    yield tmp_path
    for writer in writers.values():
        writer.close()


@pytest.fixture
def reader(directory):
    reader = DirectoryReader(directory)
    yield reader
    reader.close()


def test_file_that_grows_beyond_its_mapping(directory, monkeypatch, reader):
    writer = Writer(directory, "7")
    for number in range(400):
        apply({"7": writer}, monkeypatch, "7", "hist_a", f"label-{number}", 1.0)
        if number % 100 == 0:
            assert ours(reader) == stock(directory)
    assert (directory / "histogram_7.db").stat().st_size > 1 << 16
    assert ours(reader) == stock(directory)
    writer.close()


def test_file_that_is_replaced_or_gone(directory, monkeypatch, reader):
    before = ours(reader)
    (directory / "counter_1.db").unlink()
    assert ours(reader) == stock(directory) != before
    (directory / "counter_0.db").unlink()
    fresh = Writer(directory, "0")
    apply({"0": fresh}, monkeypatch, "0", "counter_a", "other", 5.0)
    assert ours(reader) == stock(directory)
    assert "other" in ours(reader)
    fresh.close()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\x01",
        b"\xff" * 64,
        b"\x10\x00\x00\x00" + b"\x00" * 4,
        b"\x40\x00\x00\x00" + b"\x00" * 60,
        b"\x28\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00oops    " + b"\x00" * 20,
    ],
    ids=["empty", "one byte", "header too large", "cut off", "no length", "no JSON"],
)
@pytest.mark.parametrize("name", ["counter_9.db", "histogram_9.db", "gauge_max_9.db"])
def test_damaged_file_is_set_aside(directory, reader, name, damage):
    before = ours(reader)
    (directory / name).write_bytes(damage)
    assert ours(reader) == before
    assert reader.damaged() == 1
    assert len(list(directory.glob(f"{name}{DAMAGED}-*"))) == 1
    assert ours(reader) == before == stock(directory)
    assert reader.damaged() == 1


@pytest.mark.parametrize("seed", range(20))
def test_file_damaged_while_it_is_known(directory, reader, seed):
    """Bytes overwritten at random: the scrape goes on, with or without the file."""
    ours(reader)
    rng = random.Random(seed)
    path = directory / "counter_1.db"
    data = bytearray(path.read_bytes())
    for _ in range(8):
        data[rng.randrange(200)] = rng.randrange(256)
    with path.open("r+b") as file:
        file.write(data[:200])
    fresh = DirectoryReader(directory)
    assert "# TYPE counter_a_total counter" in ours(fresh)
    fresh.close()
    assert "# TYPE counter_a_total counter" in ours(reader)


def test_directory_that_is_removed_leaves_what_was_known(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    writer = Writer(gone, "0")
    apply({"0": writer}, monkeypatch, "0", "counter_a", "x", 2.0)
    reader = DirectoryReader(gone)
    assert 'counter_a_total{a="1",x="x"} 2.0' in ours(reader)
    for path in gone.iterdir():
        path.unlink()
    gone.rmdir()
    apply({"0": writer}, monkeypatch, "0", "counter_a", "x", 1.0)
    assert 'counter_a_total{a="1",x="x"} 3.0' in ours(reader)
    writer.close()
    reader.close()


class ChangingRow:
    """A row that changes while it is read, a few times."""

    def __init__(self, sequences):
        self.sequences = iter(sequences)
        self.reads = 0

    @property
    def sequence(self):
        return next(self.sequences)

    @property
    def in_flight(self):
        self.reads += 1
        return self.reads


@pytest.mark.parametrize(
    ("sequences", "reads"),
    [
        ([2, 2], 1),
        ([2, 4, 4, 4], 2),
        ([3, 4, 4], 2),  # odd at first: read again at once
        ([1, 1, 1, 1, 1], 5),  # killed while it recorded: used as it is
    ],
)
def test_slot_that_changes_during_a_read_is_read_again(tmp_path, monkeypatch, sequences, reads):
    writer = Writer(tmp_path, "0")
    apply({"0": writer}, monkeypatch, "0", "counter_a", "x", 2.0)
    row = ChangingRow(sequences)
    reader = DirectoryReader(tmp_path, row=lambda _slot: row)
    reader.read()
    assert (row.reads, reader.in_flight) == (reads, reads)
    writer.close()
    reader.close()


class RowOfARequest:
    """The row of a process that makes a series and records a request as it is first read."""

    in_flight = 0

    def __init__(self, record):
        self._record = record

    @property
    def sequence(self):
        record, self._record = self._record, None
        if record is not None:
            record()
        return 2


def test_a_request_is_read_with_the_series_that_it_needs(tmp_path, monkeypatch):
    """The series is made after the reader has parsed the files, and before it copies the values."""
    writer = Writer(tmp_path, "0")
    requests = writer.make(monkeypatch, Counter, "requests", {})
    requests.inc()
    writer.make(monkeypatch, Histogram, "size", {}).observe(1)

    def record():
        writer.make(monkeypatch, Histogram, "tokens", {"type": "prompt"}).observe(12)
        requests.inc()

    row = RowOfARequest(None)
    reader = DirectoryReader(tmp_path, row=lambda _slot: row)
    reader.read()
    row._record = record
    text = ours(reader)
    assert "requests_total 2.0" in text
    assert 'tokens_sum{type="prompt"} 12.0' in text
    writer.close()
    reader.close()


def test_series_share_their_strings(tmp_path, monkeypatch):
    writer = Writer(tmp_path, "1")
    for key in ("one", "two"):
        writer.make(monkeypatch, Counter, "used", {"key": key, "team": "a team"}).inc()
    writer.close()
    (family,) = DirectoryReader(tmp_path).read()
    one, two = family.layout.labels
    assert (one["key"], two["key"]) == ("one", "two")
    assert one["team"] is two["team"]
    assert next(iter(one)) is next(iter(two))
