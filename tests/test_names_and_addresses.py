"""Backends by name: a name server that is silent or slow, and names that move; a real one
responses on loopback."""

import http.client
import json
import socket
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.certificates import Authority
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
        self._answer(
            {
                "object": "chat.completion",
                "choices": [{"message": {"role": "assistant", "content": "hi"}}],
            }
        )

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

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None = None) -> None:
        self.seen: list[tuple[str, str]] = []
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Backend)
        if context is not None:
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        pass  # a client that does not trust us, or left

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def backends(urls: dict[str, str], **settings: object) -> str:
    more = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    return "".join(
        f'\n[[backends]]\nname = "{name}"\nurl = "{url}"\ntype = "openai"\n{more}'
        for name, url in urls.items()
    )


def chat(gateway: Gateway, *, chunked: bool = False) -> int:
    """`chunked`: with a body that does not take the fast path."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
    connection = http.client.HTTPConnection(gateway.host, gateway.port, timeout=30)
    headers = {"content-type": "application/json"}
    try:
        sent = iter([body]) if chunked else body
        connection.request("POST", "/v1/chat/completions", sent, headers, encode_chunked=chunked)
        return connection.getresponse().status
    finally:
        connection.close()


def statuses(gateway: Gateway) -> dict[str, float]:
    samples = gateway.scrape().samples
    return {
        dict(labels)["backend"]: value
        for (name, labels), value in samples.items()
        if name == "nexus_backend_up"
    }


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
            return len(found) == 12 and all(
                "no name server responds" in error for error in found.values()
            )

        until(all_are_known_to_be_lost, within_s=40)
        for wanted in range(
            len(backend.seen), len(backend.seen) + 12, 4
        ):  # further rounds, each with 12 such names
            until(lambda wanted=wanted: len(backend.seen) >= wanted, within_s=30)
            assert {name for name, up in statuses(gateway).items() if up} == {"one", "two"}
        assert chat(gateway) == 200
        with urllib.request.urlopen(f"{gateway.base}/readyz") as answer:
            assert answer.status == 200


def errors(gateway: Gateway) -> dict[str, str]:
    """The backends whose last probe failed, and why."""
    return {
        backend["name"]: backend["error"]
        for backend in admin_backends(gateway)
        if backend["error"] is not None
    }


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
        Gateway(
            tmp_path, backends(urls), prefix=names.prefix(tmp_path), interval_s=600, timeout_s=10
        ) as gateway,
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
            f"moving.test:{port} cannot be reached: nothing listens there; start the server, or "
            f"correct the url"
        )


@pytest.fixture
def authorities(tmp_path: Path) -> list[Authority]:
    return [Authority(tmp_path, name) for name in ("ca-one", "ca-two")]


def test_tls_paths_queries_and_ipv6_together(tmp_path: Path, authorities: list[Authority]):
    """By requests, over the fast path and through Flask, and by probes; a new CA bundle is taken
    up by both."""
    one, two = authorities
    bundle, client = tmp_path / "bundle.pem", one.issue("client")
    bundle.write_bytes(one.ca.read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(one.ca)
    server_certificate = one.issue("server", "IP:::1")
    context.load_cert_chain(server_certificate.cert, server_certificate.key)
    files = {
        "ca_file": str(bundle),
        "client_cert_file": str(client.cert),
        "client_key_file": str(client.key),
    }
    with Backend("::1", free_port(), context) as backend:
        url = f"https://[::1]:{backend.server_address[1]}"
        config = (
            backends({"beta": f"{url}/v1beta/openai"}, **files)
            + backends(
                {"second": f"{url}/v2"},
                base_path="/openai",
                max_connection_age_seconds=0.2,
                **files,
            )
            + '[backends.query]\napi-version = "1"\n[routing]\nstrategy = "round_robin"\n'
        )
        with Gateway(tmp_path, config, host="::1", workers=1) as gateway:
            assert f"http://[::1]:{gateway.port}/v1" in gateway.output()
            assert gateway.operations == f"http://[::1]:{gateway.operations_port}"
            assert f"operations http://[::1]:{gateway.operations_port}/metrics" in gateway.output()
            until(lambda: statuses(gateway) == {"beta": 1, "second": 1})
            assert [chat(gateway, chunked=chunked) for chunked in (False, False, True, True)] == [
                200
            ] * 4
            asked = [path for method, path in backend.seen if method == "POST" and "chat" in path]
            assert sorted(asked) == [
                "/openai/chat/completions?api-version=1",
                "/openai/chat/completions?api-version=1",
                "/v1beta/openai/chat/completions",
                "/v1beta/openai/chat/completions",
            ]
            probed = {path for method, path in backend.seen if method == "GET"}
            assert probed == {"/openai/models?api-version=1", "/v1beta/openai/models"}

            # The server goes over to another CA, and the bundle is exchanged: no reload, no
            # restart.
            new = two.issue("server", "IP:::1")
            context.load_cert_chain(new.cert, new.key)
            until(lambda: statuses(gateway)["second"] == 0)
            assert errors(gateway)["second"].endswith("name that CA in ca_file")
            bundle.write_bytes(two.ca.read_bytes())
            until(lambda: statuses(gateway)["second"] == 1)
            until(lambda: [chat(gateway) for _ in range(4)] == [200] * 4, within_s=20)
