"""2,000 requests of mixed kinds over 4 workers: every series exact, in `/metrics`, in
`/v1/stats`, in Prometheus."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.load import ParsedRequest, chat, run
from tests.support.metrics import Scrape, scrape
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml, get_json
from tests.support.prometheus import Prometheus

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

REQUESTS = 2000
CONFIG = """
[routing]
max_retries = 0  # each failure of the flaky backend is a client's
[circuit_breaker]
enabled = false
[routing.aliases]
"gpt-4" = "shared"
[routing.fallbacks]
"absent" = ["shared"]
"""


@dataclass
class Outcome:
    gateway: Gateway
    demos: dict[str, Demo]
    tally: Counter[tuple[str, int]]
    tokens: Counter[str]
    scrape: Scrape


def asks() -> Iterator[ParsedRequest]:
    for number in range(REQUESTS):
        match number % 8:
            case 0 | 1:
                yield chat("chat", "shared")
            case 2:
                yield chat("stream", "shared", stream=True, stream_options={"include_usage": True})
            case 3:
                yield ParsedRequest(
                    "embeddings", "/v1/embeddings", {"model": "shared", "input": ["a", "b"]}
                )
            case 4:
                yield chat("unknown", f"made-up-{number}")
            case 5:
                yield chat("flaky", "flaky")
            case 6:
                yield chat("alias", "gpt-4")
            case _:
                yield chat("fallback", "absent")


@pytest.fixture(scope="module")
def outcome(module_dir: Path) -> Iterator[Outcome]:
    with (
        Demo(module_dir, name="demo-a", models=["shared"], pace=0) as a,
        Demo(module_dir, name="demo/b", models=["shared"], pace=0) as b,
        Demo(
            module_dir, name="flaky", models=["flaky"], pace=0, fault="status=500,rate=0.33,seed=5"
        ) as flaky,
        Gateway(module_dir, backend_toml(a, b, flaky) + CONFIG, workers=4) as gateway,
    ):
        tally: Counter[tuple[str, int]] = Counter()
        tokens: Counter[str] = Counter()

        def seen(ask: ParsedRequest, status: int, content: bytes) -> None:
            tally[ask.kind, status] += 1
            if status == 200:
                line = content.decode().strip()
                if ask.kind == "stream":
                    assert line.endswith("data: [DONE]"), line[-300:]
                    line = line.split("data: ")[-2]
                usage = json.loads(line)["usage"]
                tokens["prompt"] += usage["prompt_tokens"]
                tokens["completion"] += usage.get("completion_tokens", 0)

        run(gateway.port, asks(), concurrency=50, seen=seen)
        until(lambda: gateway.scrape().total("nexus_requests_total") == REQUESTS)
        yield Outcome(gateway, {d.name: d for d in (a, b, flaky)}, tally, tokens, gateway.scrape())


def test_clients_saw_what_was_meant(outcome):
    each = REQUESTS // 8
    failed = outcome.demos["flaky"].tally()["statuses"]["500"]
    assert 0 < failed < each
    assert outcome.tally == {
        ("chat", 200): 2 * each,
        ("stream", 200): each,
        ("embeddings", 200): each,
        ("unknown", 404): each,
        ("flaky", 200): each - failed,
        ("flaky", 502): failed,
        ("alias", 200): each,
        ("fallback", 200): each,
    }


def test_series_are_exact(outcome):
    each, s = REQUESTS // 8, outcome.scrape
    failed = outcome.demos["flaky"].tally()["statuses"]["500"]
    assert s.series("nexus_requests_total", "model", "status") == {
        ("shared", "200"): 6 * each,
        ("unknown", "404"): each,
        ("flaky", "200"): each - failed,
        ("flaky", "502"): failed,
    }
    assert s.series("nexus_errors_total", "error_type", "model") == {
        ("model_not_found", "unknown"): each,
        ("backend_error", "flaky"): failed,
    }
    assert s.series("nexus_fallbacks_total", "from_model", "to_model") == {
        ("absent", "shared"): each
    }
    assert s.series("nexus_request_duration_seconds_count", "model", "backend") == s.series(
        "nexus_requests_total", "model", "backend"
    )
    assert s.series("nexus_requests_started_total", "endpoint") == {
        ("chat_completions",): 7 * each,
        ("embeddings",): each,
    }
    assert s.total("nexus_tokens_total_count", type="prompt") == 7 * each - failed - 0
    assert s.total("nexus_tokens_total_count", type="completion") == 6 * each - failed
    assert s.total("nexus_tokens_total_sum", type="prompt") == outcome.tokens["prompt"]
    assert s.total("nexus_tokens_total_sum", type="completion") == outcome.tokens["completion"]
    assert s.total("nexus_pending_requests") == 0
    assert s.total("nexus_requests_lost_total") == 0


def test_backends_counted_the_same(outcome):
    by_backend = outcome.scrape.series("nexus_requests_total", "backend")
    labels = {"demo-a": "demo_a", "demo/b": "demo_b", "flaky": "flaky"}
    for name, label in labels.items():
        assert by_backend[label,] == sum(outcome.demos[name].tally()["requests"].values())
        assert by_backend[label,] > 0
    assert by_backend["none",] == REQUESTS // 8
    assert set(by_backend) == {("none",), *((label,) for label in labels.values())}


def test_fleet_gauges(outcome):
    s = outcome.scrape
    assert s.value("nexus_backends_total") == 3
    assert s.value("nexus_backends_healthy") == 3
    assert s.value("nexus_models_available") == 2
    assert s.series("nexus_backend_up", "backend") == {
        ("demo_a",): 1,
        ("demo_b",): 1,
        ("flaky",): 1,
    }
    assert s.value("nexus_health_process_up") == 1
    names = {labels for (name, labels) in s.samples if name == "nexus_model_info"}
    assert frozenset({("model", "gpt_4"), ("name", "gpt-4")}) in names
    for name in ("demo_a", "demo_b", "flaky"):
        assert s.value("nexus_backend_latency_seconds_count", backend=name) >= 1


def test_every_worker_and_the_health_process_agree(outcome):
    """New connections reach different workers; the counters of requests are the same from all of
    them."""
    wanted = {
        k: v
        for k, v in outcome.scrape.samples.items()
        if k[0].startswith(("nexus_requests", "nexus_errors"))
    }
    for base in [outcome.gateway.base] * 12 + [outcome.gateway.operations]:
        found = scrape(base).samples
        assert {k: found.get(k) for k in wanted} == wanted


def test_stats_are_the_same_metrics(outcome):
    for base in (outcome.gateway.base, outcome.gateway.operations):
        stats = get_json(f"{base}/v1/stats")
        s = outcome.scrape
        errors = s.total("nexus_errors_total")
        assert stats["requests"] == {
            "total": REQUESTS,
            "success": REQUESTS - errors,
            "errors": errors,
        }
        by_backend = {entry["id"]: entry["requests"] for entry in stats["backends"]}
        assert by_backend == {
            k: v for (k,), v in s.series("nexus_requests_total", "backend").items()
        }
        assert {entry["id"]: entry["name"] for entry in stats["backends"]}["demo_b"] == "demo/b"
        by_model = {entry["name"]: entry["requests"] for entry in stats["models"]}
        assert by_model == {k: v for (k,), v in s.series("nexus_requests_total", "model").items()}
        for entry in stats["backends"]:
            total_s = s.total("nexus_request_duration_seconds_sum", backend=entry["id"])
            assert entry["average_latency_ms"] == pytest.approx(
                total_s / entry["requests"] * 1000, abs=0.001
            )
        assert stats["uptime_seconds"] >= 1


def test_series_stay_within_the_bound(outcome):
    """Each family has as many series as `nexus metrics bound` allows it, or fewer; and nothing
    is shown that is not in the table."""
    shown = json.loads(
        subprocess.run(
            [
                sys.executable,
                "-m",
                "nexus",
                "metrics",
                "bound",
                "-c",
                str(outcome.gateway.file),
                "--json",
            ],
            capture_output=True,
            check=True,
        ).stdout
    )["families"]
    found: Counter[str] = Counter()
    for name, _ in outcome.scrape.samples:
        family = next(
            f
            for f in (name, *(name.removesuffix(s) for s in ("_bucket", "_sum", "_count")))
            if f in shown
        )
        found[family] += 1
    assert all(count <= shown[family] for family, count in found.items())


def test_accounts_are_balanced(outcome):
    s = outcome.scrape
    assert s.value("nexus_accounting_imbalance") == 0
    assert s.value("nexus_workers") == 4
    assert s.total("nexus_worker_restarts_total") == 0
    assert s.value("nexus_unknown_models_total") == REQUESTS // 8
    assert s.value("nexus_run_directory_usable") == 1
    assert s.value("nexus_scrape_duration_seconds") > 0
    roles = Counter(
        dict(labels)["role"]
        for name, labels in s.samples
        if name == "nexus_process_resident_memory_bytes"
    )
    assert roles == {"worker": 4, "health": 1}


def test_promtool_accepts_it(outcome):
    """It finds fault with nothing but the two names that existing dashboards use."""
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=outcome.scrape.text, text=True, capture_output=True
    )
    complaints = [line for line in (checked.stdout + checked.stderr).splitlines() if line]
    assert {line.split()[0] for line in complaints} == {
        "nexus_backends_total",
        "nexus_tokens_total",
    }


def test_prometheus_scrapes_it(outcome, tmp_path):
    with Prometheus(tmp_path, f"127.0.0.1:{outcome.gateway.port}", faster=15) as prometheus:
        by_status = until(
            lambda: prometheus.query("sum by (model, status) (nexus_requests_total)"), within_s=30
        )
        assert by_status == outcome.scrape.series("nexus_requests_total", "model", "status")
        assert prometheus.query("sum(nexus_requests_total)") == {(): REQUESTS}
        assert prometheus.query(
            "sum(nexus_requests_total) - sum(nexus_request_duration_seconds_count)"
        ) == {(): 0}
        assert set(prometheus.query("nexus_backends_healthy").values()) == {3}
