"""Under our gunicorn worker, its stock gevent and gthread ones, and waitress: the same requests
give the same metrics."""

import sys
from collections import Counter

import pytest

from tests.support.load import ParsedRequest, chat, run
from tests.support.metrics import scrape
from tests.support.polling import until
from tests.support.processes import Demo, Process, backend_toml, clean_environ, free_port

pytestmark = pytest.mark.e2e

SERVERS = {
    "ours": ["-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app"],
    "gevent": ["-m", "gunicorn", "-c", "gunicorn.conf.py", "-k", "gevent", "wsgi:app"],
    "gthread": [
        "-m",
        "gunicorn",
        "-c",
        "gunicorn.conf.py",
        "-k",
        "gthread",
        "--threads",
        "16",
        "wsgi:app",
    ],
    "waitress": ["-m", "waitress", "--threads=16", "--listen=127.0.0.1:{port}", "wsgi:app"],
}


@pytest.mark.parametrize("server", SERVERS)
def test_same_metrics(server, tmp_path):
    port = free_port()
    environ = clean_environ(
        NEXUS_RUN_DIR=str(tmp_path / "run"),
        NEXUS_PORT=str(port),
        NEXUS_HOST="127.0.0.1",
        NEXUS_WORKERS="2",
        NEXUS_CONFIG=str(tmp_path / "nexus.toml"),
        NEXUS_HEALTH_LISTEN="off",
    )
    with (
        Demo(tmp_path, pace=0) as demo,
        Demo(tmp_path, name="bad", models=["bad"], fault="status=500") as bad,
    ):
        (tmp_path / "nexus.toml").write_text(
            backend_toml(demo, bad)
            + "[routing]\nmax_retries = 0\n[circuit_breaker]\nenabled = false\n"
        )
        command = [sys.executable, *(word.format(port=port) for word in SERVERS[server])]
        with (
            Process(
                [sys.executable, "-m", "nexus.health"], log=tmp_path / "health.log", environ=environ
            ),
            Process(command, log=tmp_path / "server.log", environ=environ) as process,
        ):
            base = f"http://127.0.0.1:{port}"
            # Each worker takes up the fleet at its next request, and serves others meanwhile with
            # the one that it knew.
            until(lambda: all(scrape(base).value("nexus_backends_healthy") == 2 for _ in range(16)))
            tally: Counter[tuple[str, int]] = Counter()
            asks = [
                chat("chat", "demo-small"),
                chat("stream", "demo-small", stream=True, stream_options={"include_usage": True}),
                ParsedRequest(
                    "embeddings", "/v1/embeddings", {"model": "demo-small", "input": "x"}
                ),
                chat("unknown", "nope"),
                chat("bad", "bad"),
                ParsedRequest("invalid", "/v1/completions", {"model": "demo-small"}),
            ] * 20

            def seen(ask: ParsedRequest, status: int, _: bytes) -> None:
                tally[ask.kind, status] += 1

            run(port, asks, concurrency=8, seen=seen)
            assert tally == {
                ("chat", 200): 20,
                ("stream", 200): 20,
                ("embeddings", 200): 20,
                ("unknown", 404): 20,
                ("bad", 502): 20,
                ("invalid", 400): 20,
            }
            until(lambda: scrape(base).total("nexus_requests_total") == 120)
            found = scrape(base)
            assert found.series("nexus_requests_total", "model", "backend", "status") == {
                ("demo_small", "demo", "200"): 60,
                ("unknown", "none", "404"): 20,
                ("unknown", "none", "400"): 20,
                ("bad", "bad", "502"): 20,
            }
            assert found.series("nexus_errors_total", "error_type") == {
                ("model_not_found",): 20,
                ("backend_error",): 20,
                ("invalid_request",): 20,
            }
            assert found.total("nexus_tokens_total_count", type="completion") == 40
            assert found.total("nexus_pending_requests") == 0
            assert "Traceback" not in process.output()
            assert "stay in its memory" not in process.output()
