"""A kind of backend is added by a record and one registration; everything else follows."""

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.load import chat
from tests.support.processes import ROOT, Gateway, clean_environ, get_json

pytestmark = pytest.mark.e2e

KEY = "sk-of-the-gateway"
KIND = """
from nexus.providers import PROVIDERS, Provider
from nexus.providers.probing import Model, ProbeResult

def probe(fetch):
    catalog = fetch("/catalog")
    return ProbeResult([Model(name=name) for name in catalog["names"]], catalog["slots"])

PROVIDERS["x-test"] = Provider(
    name="x-test", probe=probe, canonical_name=str.lower, cloud=True, own_api=True,
    key_header="x-api-key", key_prefix="", headers=(("x-version", "2"),),
    paths={"/v1/chat/completions": "/v1/talk"},
)
"""
"""Python runs `sitecustomize.py` at the start of every process, so all of the gateway's know it."""


class Server(ThreadingHTTPServer):
    """Serves the kind's API and keeps the heads of what it is asked."""

    daemon_threads = True

    def __init__(self) -> None:
        self.heads: list[tuple[str, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/inside"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._respond({"names": ["Tiny"], "slots": 3})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._respond({"choices": []})

    def _respond(self, body: object) -> None:
        self.server.heads.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def environ(module_dir: Path) -> dict[str, str]:
    (module_dir / "sitecustomize.py").write_text(KIND)
    return {"PYTHONPATH": os.pathsep.join([str(module_dir), str(ROOT)]), "X_KEY": KEY}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def gateway(module_dir: Path, environ: dict[str, str], server: Server) -> Iterator[Gateway]:
    backend = f'[[backends]]\nname = "b"\nurl = "{server.url}"\ntype = "x-test"\n'
    with Gateway(module_dir, backend + 'api_key_env = "X_KEY"\n', environ=environ) as gateway:
        yield gateway


def test_probe(gateway: Gateway, server: Server):
    path, headers = server.heads[0]
    assert (path, headers["x-api-key"], headers["x-version"]) == ("/inside/catalog", KEY, "2")
    assert "authorization" not in headers
    [model] = get_json(f"{gateway.base}/v1/models")["data"]
    assert model["id"] == "Tiny"
    assert gateway.scrape().series("nexus_backend_info", "type") == {("x-test",): 1}


def test_request(gateway: Gateway, server: Server):
    """The model is requested by another of its names, and with a key of the client's."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    headers = {"content-type": "application/json", "authorization": "Bearer client"}
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(chat("x", "TINY").body).encode(), headers
    )
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b'{"choices": []}')
    assert response.headers["x-nexus-backend-type"] == "cloud"
    connection.close()
    path, sent = next(head for head in server.heads if "talk" in head[0])
    assert (path, sent["x-api-key"], sent["x-version"]) == ("/inside/v1/talk", KEY, "2")
    assert "authorization" not in sent


def test_an_unknown_type_is_refused_with_the_list(module_dir: Path, environ: dict[str, str]):
    file = module_dir / "unknown.toml"
    file.write_text('[[backends]]\nname = "b"\nurl = "http://h"\ntype = "x-tset"\n')
    checked = subprocess.run(
        [sys.executable, "-m", "nexus", "config", "check", "-c", str(file)],
        env=clean_environ(**environ), capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert checked.returncode != 0
    assert "type = 'x-tset' is not allowed; it takes one of \"anthropic\"" in checked.stderr
    assert '"x-test"' in checked.stderr
