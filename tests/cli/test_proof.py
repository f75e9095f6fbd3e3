"""Commands send the operators' token only to the gateway whose run directory they can read."""

import contextlib
import subprocess
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from nexus.fleet.identity_proof import CHALLENGE, PROOF, proof
from tests.support.processes import Demo, Gateway, backend_toml, clean_environ

pytestmark = pytest.mark.e2e

TOKEN = "operators-own-token-0123456789"


class Impostor(BaseHTTPRequestHandler):
    """Something else on the gateway's port: asks for the token, and passes challenges on to the
    real gateway."""

    real = ""
    heads: list[str] = []

    def do_GET(self):
        Impostor.heads.append(str(self.headers))
        shown = ""
        if challenge := self.headers.get(CHALLENGE):
            request = urllib.request.Request(f"{self.real}/livez", headers={CHALLENGE: challenge})
            with (
                contextlib.suppress(urllib.error.URLError),
                urllib.request.urlopen(request, timeout=5) as answer,
            ):
                shown = answer.headers[PROOF]
        self.send_response(200 if self.path == "/livez" else 401)
        self.send_header(PROOF, shown or "")
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self):
        self.do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    directory = tmp_path_factory.mktemp("proof")
    protect = '[admin]\nprotect = ["dashboard", "metrics"]\n'
    with (
        Demo(directory, pace=0) as demo,
        Gateway(
            directory, backend_toml(demo) + protect, environ={"NEXUS_ADMIN_TOKEN": TOKEN}
        ) as gateway,
    ):
        yield gateway


def nexus(*words, file, **environ):
    return subprocess.run(
        [sys.executable, "-m", "nexus", *words, "-c", str(file)],
        capture_output=True, text=True, timeout=60, env=clean_environ(**environ),
    )  # fmt: skip


def test_the_gateway_proves_itself_by_both_ports(gateway):
    key = (gateway.run_dir / "admin.token").read_text()
    for port in (gateway.port, gateway.operations_port):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/livez", headers={CHALLENGE: "abc"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.headers[PROOF] == proof(key, "abc", port)
    for words in (("history",), ("stats",), ("backends", "list"), ("status",)):
        found = nexus(*words, file=gateway.file, NEXUS_ADMIN_TOKEN=TOKEN)
        assert found.returncode == (1 if words == ("history",) else 0), found.stderr
    found = nexus("stats", file=gateway.file)
    assert (found.returncode, "requires the admin token" in found.stderr) == (2, True)


@pytest.mark.parametrize(
    "words",
    [("stats",), ("history",), ("status",), ("backends", "list"), ("backends", "drain", "demo")],
)
def test_an_impostor_gets_no_token(gateway, tmp_path, words):
    """The run directory is the real gateway's, whose port is another one; the impostor has the
    configured ports."""
    Impostor.heads.clear()
    Impostor.real = gateway.operations
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Impostor) as clients,
        ThreadingHTTPServer(("127.0.0.1", 0), Impostor) as operations,
    ):
        for server in (clients, operations):
            Thread(target=server.serve_forever, daemon=True).start()
        file = tmp_path / "nexus.toml"
        file.write_text(
            f'[server]\nhost = "127.0.0.1"\nport = {clients.server_port}\n'
            f'run_dir = "{gateway.run_dir}"\n'
            f'[health_check]\nlisten = "127.0.0.1:{operations.server_port}"\n'
        )
        found = nexus(*words, file=file, NEXUS_ADMIN_TOKEN=TOKEN)
        for server in (clients, operations):
            server.shutdown()
    assert found.returncode == 2
    assert "does not prove to be this gateway and was sent no token" in found.stderr
    assert Impostor.heads
    own = (gateway.run_dir / "admin.token").read_text()
    assert not [
        head
        for head in Impostor.heads
        if TOKEN in head or own in head or "authorization" in head.lower()
    ]


def test_an_address_that_the_user_names_gets_the_token(gateway):
    environ = {"NEXUS_ADMIN_TOKEN": TOKEN, "NEXUS_OPERATIONS_URL": gateway.operations}
    found = nexus("backends", "list", file=gateway.file, **environ)
    assert found.returncode == 0, found.stderr
