"""The benchmark's own gateways start, and its report stands when one of them is missing."""

import json
import urllib.request

import pytest

from bench.throughput_gateways import GATEWAYS
from bench.throughput_load import CONNECTIONS
from bench.throughput_report import report

OURS = ["Nexus", "Nexus through Flask", "Nexus without metrics"]
RUN = {
    "rate": 100.0,
    "median_ms": 1.0,
    "p99_ms": 2.0,
    "cpu_ms": 0.1,
    "memory_mb": 50.0,
    "worker_mb": 50.0,
    "start_s": 1.0,
    "gateway_us": 100.0,
    "load_us": 50.0,
}


@pytest.mark.e2e
@pytest.mark.parametrize("name", OURS)
def test_a_gateway_of_the_benchmark_serves(name, tmp_path, demo):
    gateway = GATEWAYS[name](tmp_path, demo.port)
    try:
        body = {"model": "demo-small", "messages": [{"role": "user", "content": "hi"}]}
        request = urllib.request.Request(
            f"http://127.0.0.1:{gateway.port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.status == 200
            assert json.load(response)["choices"]
        counted = "nexus_requests_total" in scrape(gateway.port)
        assert counted == (name != "Nexus without metrics")
    finally:
        gateway.stop()


def scrape(port: int) -> str:
    """The samples of the gateway, without the lines of help and type."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("lacking", [None, "Nexus without metrics", "LiteLLM", "Portkey"])
def test_the_report_names_what_is_left_out(lacking):
    runs = [dict.fromkeys(CONNECTIONS, RUN)]
    results = {name: runs for name in ("direct", *GATEWAYS) if name != lacking}
    missing = {} if lacking is None else {lacking: "it does not start"}
    text = report(results, missing, [{1: RUN, 2: RUN}])
    assert ("is left out: it does not start" in text) == (lacking is not None)
    assert ("Metrics cost" in text) == (lacking != "Nexus without metrics")
