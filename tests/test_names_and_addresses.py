"""Backends by name: a name server that is silent or slow, and names that move; a real one answers on loopback."""

import http.client
import json
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.names import NameServer
from tests.support.polling import until
from tests.support.processes import Gateway, free_port

pytestmark = pytest.mark.e2e


class _Backend(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer({"object": "list", "data": [{"id": "m"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer({"object": "chat.completion", "choices": [{"message": {"role": "assistant", "content": "hi"}}]})

    def _answer(self, body: object) -> None:
        assert isinstance(self.server, Backend)
        self.server.seen.append((self.command, self.path))
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class Backend(ThreadingHTTPServer):
    """A backend with one model, at any address. `seen`: the method and path of each request."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int) -> None:
        self.seen: list[tuple[str, str]] = []
        super().__init__((host, port), _Backend)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def backends(urls: dict[str, str], **settings: object) -> str:
    more = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    return "".join(
        f'\n[[backends]]\nname = "{name}"\nurl = "{url}"\ntype = "openai"\n{more}' for name, url in urls.items()
    )


def chat(gateway: Gateway) -> int:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    try:
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        return connection.getresponse().status
    finally:
        connection.close()


def statuses(gateway: Gateway) -> dict[str, float]:
    samples = gateway.scrape().samples
    return {dict(labels)["backend"]: value for (name, labels), value in samples.items() if name == "nexus_backend_up"}


@pytest.fixture
def names() -> Iterator[NameServer]:
    server = NameServer("127.83.0.1", {})
    yield server
    server.close()


def test_a_silent_name_server_takes_out_its_own_names_only(tmp_path: Path, names: NameServer):
    names.silent = True
    port = free_port()
    urls = {f"named_{n}": f"http://host-{n}.test:{port}" for n in range(12)}
    urls |= {"one": f"http://127.0.0.1:{port}", "two": f"http://127.0.0.1:{port}/v1"}
    with (
        Backend("127.0.0.1", port) as backend,
        Gateway(tmp_path, backends(urls), prefix=names.prefix(tmp_path), interval_s=0.5) as gateway,
    ):

        def all_are_known_to_be_lost() -> bool:
            found = errors(gateway)
            return len(found) == 12 and all("no name server answers" in error for error in found.values())

        until(all_are_known_to_be_lost, within_s=40)
        for wanted in range(len(backend.seen), len(backend.seen) + 12, 4):  # further rounds, each with 12 such names
            until(lambda wanted=wanted: len(backend.seen) >= wanted, within_s=30)
            assert {name for name, up in statuses(gateway).items() if up} == {"one", "two"}
        assert chat(gateway) == 200
        with urllib.request.urlopen(f"{gateway.base}/readyz") as answer:
            assert answer.status == 200


def errors(gateway: Gateway) -> dict[str, str]:
    """The backends whose last probe failed, and why."""
    return {backend["name"]: backend["error"] for backend in admin_backends(gateway) if backend["error"] is not None}


def admin_backends(gateway: Gateway) -> list[dict[str, str]]:
    token = (gateway.run_dir / "admin.token").read_text()
    request = urllib.request.Request(
        f"{gateway.operations}/admin/backends", headers={"authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: list[dict[str, str]] = json.load(answer)["backends"]
        return found


def test_sixty_names_that_are_slow_to_look_up(tmp_path: Path, names: NameServer):
    names.delay_s, port = 2.0, free_port()
    names.records = {f"host-{n}.test": "127.0.0.1" for n in range(60)}
    urls = {f"b{n}": f"http://host-{n}.test:{port}" for n in range(60)}
    with (
        Backend("127.0.0.1", port),
        Gateway(tmp_path, backends(urls), prefix=names.prefix(tmp_path), interval_s=600, timeout_s=10) as gateway,
    ):
        until(lambda: sum(statuses(gateway).values()) == 60, within_s=30)
        assert chat(gateway) == 200


def test_a_name_that_moves_is_followed_by_requests_and_probes(tmp_path: Path, names: NameServer):
    """Also under steady traffic, which leaves no connection idle."""
    port = free_port()
    names.records = {"moving.test": "127.83.1.1"}
    config = backends({"b": f"http://moving.test:{port}"}, max_connection_age_seconds=1.0)
    with (
        Backend("127.83.1.1", port) as old,
        Backend("127.83.1.2", port) as new,
        Gateway(tmp_path, config, prefix=names.prefix(tmp_path), interval_s=0.2) as gateway,
    ):
        assert chat(gateway) == 200
        assert {command for command, _ in old.seen} == {"GET", "POST"}
        names.records = {"moving.test": "127.83.1.2"}

        def moved(command: str) -> bool:
            assert chat(gateway) == 200
            return command in {found for found, _ in new.seen}

        until(lambda: moved("POST") and moved("GET"), within_s=20)

        def old_is_left() -> bool:
            before, so_far = len(old.seen), len(new.seen)
            while len(new.seen) < so_far + 10:
                assert chat(gateway) == 200
            return len(old.seen) == before

        until(old_is_left, within_s=20)

        names.records = {"moving.test": "127.83.1.9"}  # where nobody listens
        until(lambda: statuses(gateway) == {"b": 0}, within_s=20)
        assert errors(gateway)["b"] == (
            f"moving.test:{port} cannot be reached: nothing listens there; start the server, or correct the url"
        )
