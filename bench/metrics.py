"""What reading and recording figures costs: our reader beside prometheus_client's own collector, on
the same files.

Run it with `make bench-metrics`; it writes bench/results/metrics.md.
"""

import gc
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.values import MultiProcessValue

from bench.machine import machine, percentile, spread, versions
from nexus.fleet.outcome import Outcome
from nexus.fleet.run_directory import RunDirectory, Started
from nexus.fleet.slot_lease import SlotLease
from nexus.metrics.collector import Collector
from nexus.metrics.directory_reader import DirectoryReader
from nexus.metrics.recorder import Recorder
from nexus.metrics.recovery import recover_slot
from nexus.metrics.store import Store

RESULTS = Path(__file__).parent / "results" / "metrics.md"
BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)  # and +Inf: 12
REPEATS = 5
ACTIVE = 5  # one in so many series of each process moves between two readings
GOAL_RATIO, GOAL_SCRAPE_MS, GOAL_RECORD_US = 30, 1.0, 10.0


class Merged:
    """The library's collector over these files, in the order in which ours takes them."""

    def __init__(self, files: list[str]) -> None:
        self._files = files

    def collect(self):
        return MultiProcessCollector.merge(self._files)


def write_files(directory: Path, processes: int, series: int) -> list[list[Histogram]]:
    """Files as the library writes them; gives each process's histograms. Each process meets its
    series in an order of its own, as workers do."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    written = []
    for process in range(processes):
        values.ValueClass = MultiProcessValue(lambda process=process: str(process))
        histogram = Histogram(
            "bench_seconds",
            "Bench.",
            ["model", "backend"],
            registry=CollectorRegistry(),
            buckets=BUCKETS,
        )
        numbers = list(range(series))
        random.Random(process).shuffle(numbers)
        written.append([histogram.labels(f"model_{n % 50}", f"backend_{n // 50}") for n in numbers])
        for number, child in enumerate(written[-1]):
            child.observe((number * 7 % 100) / 10)
    return written


class Pauses:
    """Finds the longest time without a pause."""

    def start(self) -> None:
        self._last, self._longest = time.perf_counter(), 0.0

    def __call__(self) -> None:
        now = time.perf_counter()
        self._longest, self._last = max(self._longest, now - self._last), now

    def end(self) -> float:
        """In milliseconds."""
        self()
        return 1000 * self._longest


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call; the garbage of the calls before is not its own."""
    gc.collect()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def against_the_library(processes: int) -> tuple[str, float]:
    """A row of the table, and the ratio of the medians."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        directory = Path(place)
        written = write_files(directory, processes, 500)
        files = sorted(str(path) for path in directory.glob("*.db"))
        pauses = Pauses()
        reader = DirectoryReader(directory, pause=pauses)

        def ours() -> bytes:
            pauses.start()
            return "".join(family.exposition() for family in reader.read()).encode()

        def library() -> bytes:
            return generate_latest(Merged(files))

        cold = timed(ours)
        cold_stretch = pauses.end()
        assert ours() == library(), "the two disagree"
        pairs, stretches = [], []
        for _ in range(REPEATS):
            for children in written:
                for child in random.sample(children, len(children) // ACTIVE):
                    child.observe(random.random() * 20)
            pairs.append((timed(library), timed(ours)))
            stretches.append(pauses.end())
        reader.close()
    theirs_ms, ours_ms = [[1000 * pair[n] for pair in pairs] for n in (0, 1)]
    ratio = statistics.median(theirs / our for theirs, our in pairs)
    row = (
        f"| {processes} | {spread(theirs_ms)} | {spread(ours_ms)} | **{ratio:.0f} ×** | "
        f"{spread(stretches)} |"
    )
    row += f" {1000 * cold:.3g} | {cold_stretch:.3g} |"
    return row, ratio


class Process:
    """What a worker has, without the worker."""

    def __init__(self, slot_lease: SlotLease) -> None:
        recover_slot(slot_lease)
        self.store = Store(slot_lease)
        self.recorder = Recorder(self.store, slot_lease)
        self.figures = Collector(
            slot_lease,
            self.store.registry,
            started=Started.now(workers=8),
            snapshot=lambda: None,
            health_process_alive=lambda: True,
        )


def finished(number: int) -> Outcome:
    return Outcome(
        model_label=f"model_{number}",
        backend_label="backend",
        status=200,
        duration_s=0.42,
        prompt_tokens=300,
        completion_tokens=120,
    )


def one_gateway() -> tuple[list[float], int, list[float]]:
    """Milliseconds of scrapes over 8 workers, how many series they gave, and microseconds of
    recording a request."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        run_dir = RunDirectory(place)
        run_dir.prepare()
        generation = run_dir.new_generation(workers=8)
        workers = [Process(SlotLease.lease(generation)) for _ in range(8)]
        for worker in workers:
            for number in range(22):
                worker.recorder.request_started("chat_completions")
                worker.recorder.request_finished(finished(number))
        figures = workers[0].figures
        series = sum(
            not line.startswith("#")
            for line in figures.collect().exposition().decode().splitlines()
        )
        scrapes = []
        for number in range(2000):
            for worker in workers:
                worker.recorder.request_finished(finished(number % 22))
            began = time.perf_counter()
            figures.collect().exposition()
            scrapes.append(1000 * (time.perf_counter() - began))

        recorder, request = workers[0].recorder, finished(1)
        recorder.request_finished(request)
        recording = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            for _ in range(20_000):
                recorder.request_finished(request)
            recording.append((time.perf_counter() - began) / 20_000 * 1e6)
        for worker in workers:
            worker.store.close()
    return scrapes, series, recording


def main() -> None:
    scrapes, series, recording = one_gateway()  # first, in a heap as small as a worker's
    rows, ratios = zip(*(against_the_library(processes) for processes in (8, 32)), strict=True)
    p95 = percentile(scrapes, 0.95)
    record = statistics.median(recording)
    text = f"""# Reading and recording figures

{machine()}; {versions("prometheus-client", "gevent")}. Repeat it with `make bench-metrics`.

## Our reader beside the library's collector

The same files, 500 histogram series of 12 buckets in each process's, a fifth of which moved since
the reading before; reading and rendering, in one run, the two in turn. Median of {REPEATS}
(least–greatest). *Cold* is our first reading, which parses every key. A *stretch* is the time from
one pause to the next, in which an event loop stands still; the library has no pauses. The texts are
the same to the byte.

| processes | library, ms | ours, ms | ratio | longest stretch, ms | ours cold, ms | its longest stretch, ms |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Goal: at least {GOAL_RATIO} × for both.

## A gateway of 8 workers

| what | measured | goal |
|---|---|---|
| one scrape of {series} series inside the process, each worker having counted since the last: median of {len(scrapes)} | {statistics.median(scrapes):.2f} ms | |
| the same, 95th percentile | **{p95:.2f} ms** | under {GOAL_SCRAPE_MS:g} ms |
| recording a finished request: request, duration, two token counts | **{spread(recording)} µs** | under {GOAL_RECORD_US:g} µs |
"""  # noqa: E501 - a row of a table is one line
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)
    print(text)
    missed = [
        name
        for name, good in (
            ("ratio", min(ratios) >= GOAL_RATIO),
            ("scrape", p95 < GOAL_SCRAPE_MS),
            ("record", record < GOAL_RECORD_US),
        )
        if not good
    ]
    if missed:
        raise SystemExit(f"Missed: {', '.join(missed)}.")


if __name__ == "__main__":
    main()
