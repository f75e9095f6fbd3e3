"""Backends that list names without a bound, or send names and texts that would steer a terminal."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.cli.test_terminal import HOSTILE, OBEYED
from tests.support.polling import until
from tests.support.processes import Gateway, clean_environ

pytestmark = pytest.mark.e2e

MIB = 1 << 20
LONG = "x" * MIB
LISTS = {
    "/long/models": [LONG],
    "/many/models": [f"model-{number}" for number in range(20_000)],
    "/steering/models": [*HOSTILE[:-1], "plain"],
}
TEXT = "".join(HOSTILE[:-1])


class Backend(BaseHTTPRequestHandler):
    """Lists what its path says, and responds to every chat with one event."""

    def do_GET(self):
        self._answer(
            "application/json",
            json.dumps({"object": "list", "data": [{"id": n} for n in LISTS[self.path]]}),
        )

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        choice = {"index": 0, "delta": {"content": TEXT}, "finish_reason": "stop"}
        self._answer(
            "text/event-stream", f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n"
        )

    def _answer(self, content_type, content):
        self.send_response(200)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def gateway(module_dir):
    with ThreadingHTTPServer(("127.0.0.1", 0), Backend) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        config = "".join(
            f'[[backends]]\nname = "{name}"\nurl = "http://127.0.0.1:{server.server_port}/{name}"\n'
            f'type = "generic"\n'
            for name in ("long", "many", "steering")
        )
        with Gateway(
            module_dir, config, workers=1, server="max_request_bytes = 4000000"
        ) as gateway:
            until(lambda: all(said(gateway, name) for name in ("long", "many")))
            yield gateway
        server.shutdown()


def said(gateway, name):
    """What the log says of a backend that is unhealthy."""
    return [
        line["why"] for line in gateway.lines("backend is now unhealthy") if line["backend"] == name
    ]


def nexus(gateway, *words):
    found = subprocess.run(
        [sys.executable, "-m", "nexus", *words, "-c", str(gateway.file)],
        capture_output=True, timeout=60, env=clean_environ(),
    )  # fmt: skip
    return (found.stdout + found.stderr).decode()


def test_names_and_lists_without_a_bound_are_kept_nowhere(gateway):
    assert "1048576 characters; the limit is 256" in said(gateway, "long")[0]
    assert "20000 models; the limit is 10000" in said(gateway, "many")[0]
    before = size_of(gateway.run_dir)
    body = json.dumps({"model": LONG, "messages": [{"role": "user", "content": "x"}]}).encode()
    request = urllib.request.Request(
        f"{gateway.base}/v1/chat/completions",
        data=body,
        headers={"content-type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    with refused.value as error:
        assert error.code == 404
        assert len(error.read()) < 10_000
    scrape = gateway.settled()
    assert scrape.value("nexus_requests_total", model="unknown", backend="none", status="404") == 1
    # Names that cannot be printed are no models. On a busy host a probe may fail for once.
    until(lambda: gateway.scrape().value("nexus_models_available") == 1)
    assert size_of(gateway.run_dir) - before < MIB
    assert max(map(len, gateway.output().splitlines())) < 10_000
    assert "model-0" not in nexus(gateway, "models")


def size_of(directory):
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "words",
    [
        ("models",),
        ("models", "--json"),
        ("status",),
        ("backends", "list"),
        ("stats",),
        ("history",),
        ("route", "explain", HOSTILE[0]),
        ("chat", "plain", "hello"),
        ("chat", "plain", "hello", "--json"),
        ("chat", HOSTILE[0], "hello"),
        ("doctor", "--no-request"),
    ],
    ids=lambda words: " ".join(words[:1]),
)
def test_no_command_prints_what_a_terminal_obeys(gateway, words):
    shown = nexus(gateway, *words)
    assert shown.strip()
    assert not set(shown) & set(OBEYED) - {"\n"}
    if words[:2] == ("chat", "plain"):
        assert r"\u001b]0;pwned\u0007" in shown
    assert not set(gateway.output()) & set(OBEYED) - {"\n"}
