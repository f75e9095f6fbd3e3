"""A backend's last hour and day, from samples of the counters."""

import pytest

from nexus.fleet.windows import Window, read_windows, write_windows
from nexus.health.windows import Windows
from nexus.metrics import families


class Collector:
    """Counters that are set by hand, read as those of a gateway are."""

    def __init__(self):
        self.attempts: dict[tuple[str, str], float] = {}
        self.ttft: dict[str, tuple[int, float]] = {}

    def add(self, backend: str, **outcomes: int) -> None:
        for outcome, number in outcomes.items():
            self.attempts[backend, outcome] = self.attempts.get((backend, outcome), 0) + number

    def samples(self, family):
        assert family is families.ATTEMPTS
        return [({"backend": b, "outcome": o}, value) for (b, o), value in self.attempts.items()]

    def by(self, label, family, part):
        assert (label, family) == ("backend", families.TTFT)
        return {b: pair[0 if part == "_count" else 1] for b, pair in self.ttft.items()}


def test_rates_are_of_what_says_something_of_the_backend():
    figures, windows = Collector(), Windows(started=100.0)
    figures.add(
        "b",
        ok=6,
        backend_error=2,
        invalid_request=9,
        client_disconnect=9,
        rate_limited=9,
        other=9,
        shutdown=9,
    )
    figures.ttft["b"] = (4, 2.0)
    lately = windows.sample(figures, now=110.0)["b"]
    expected = Window(
        seconds=10, attempts=8, error_rate=0.25, success_rate=0.75, average_ttft_ms=500.0
    )
    assert lately.last_hour == lately.last_day == expected


def test_the_hour_forgets_what_the_day_keeps():
    figures, windows = Collector(), Windows(started=0.0)
    figures.add("b", timeout=10)
    figures.ttft["b"] = (1, 9.0)
    for now in range(0, 7200, 5):
        windows.sample(figures, now=float(now))
    figures.add("b", ok=10)
    figures.ttft["b"] = (3, 10.0)
    lately = windows.sample(figures, now=7200.0)["b"]
    assert lately.last_hour == Window(
        seconds=3600, attempts=10, error_rate=0.0, success_rate=1.0, average_ttft_ms=500.0
    )
    assert (lately.last_day.seconds, lately.last_day.attempts, lately.last_day.error_rate) == (
        7200,
        20,
        0.5,
    )
    for now in range(7200, 7200 + 86400 + 1800, 300):
        lately = windows.sample(figures, now=float(now))["b"]
    assert lately.last_day.attempts == 0
    assert lately.last_day.error_rate is None
    assert 86400 <= lately.last_day.seconds < 86400 + 900


@pytest.mark.parametrize(
    ("outcomes", "first_tokens", "trouble"),
    [
        ({"client_disconnect": 3}, 0, "hangs"),
        ({"timeout": 1, "deadline_exceeded": 1, "client_disconnect": 1}, 0, "hangs"),
        ({"client_disconnect": 2}, 0, None),
        (
            {"client_disconnect": 3},
            1,
            None,
        ),  # a stream started: people stop responses that they have seen enough of
        ({"client_disconnect": 3, "ok": 1}, 0, None),
        ({"invalid_request": 5}, 0, "refuses_all"),
        ({"invalid_request": 4, "model_not_found": 1}, 0, "refuses_all"),
        ({"invalid_request": 4}, 0, None),
        ({"invalid_request": 50, "ok": 1}, 0, None),
        ({"rate_limited": 50}, 0, None),
    ],
)
def test_a_backend_that_serves_nothing_though_it_gets_requests(outcomes, first_tokens, trouble):
    figures, windows = Collector(), Windows(started=0.0)
    figures.add("b", ok=100)
    windows.sample(figures, now=60.0)
    figures.add("b", **outcomes)
    figures.ttft["b"] = (first_tokens, 0.1)
    assert windows.sample(figures, now=700.0)["b"].trouble == trouble


def test_what_is_written_is_what_is_read(tmp_path):
    figures = Collector()
    figures.add("b", ok=1)
    assert read_windows(tmp_path) == {}
    found = Windows(started=0.0).sample(figures, now=1.0)
    write_windows(tmp_path, found)
    assert read_windows(tmp_path) == found
    (tmp_path / "windows.json").write_text("{")
    assert read_windows(tmp_path) == {}
