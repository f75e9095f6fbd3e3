"""Probes over real sockets: what they find, how patient they are, and what they say when they
fail."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nexus.config import BackendConfig
from nexus.fleet.records import Model
from nexus.health.prober import Prober
from tests.support.certificates import Authority, Certificate

Answers = Callable[[str, str, bytes], tuple[int, Any]]
LIST = {"data": [{"id": "m"}]}


class Server(ThreadingHTTPServer):
    """Responds with what `answers(method, path, body)` gives: a status with JSON, or with bytes as
    they are."""

    daemon_threads = True

    def __init__(
        self, answers: Answers, context: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.answers = answers
        self.seen: list[tuple[str, str]] = []
        self.heads: list[dict[str, str]] = []
        self.connections = 0
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, 0), _Handler)
        if context is not None:
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        self.server.connections += 1
        super().setup()

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.seen.append((self.command, self.path))
        self.server.heads.append({name.lower(): value for name, value in self.headers.items()})
        status, answer = self.server.answers(self.command, self.path, body)
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("location", "https://elsewhere.test/v1/models")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET  # noqa: N815 - the library's names

    def log_message(self, *_: object) -> None:
        pass


def always(status: int, answer: Any) -> Answers:
    return lambda *_: (status, answer)


def config_of(server: Server, **settings: Any) -> BackendConfig:
    url = settings.pop("url", f"http://127.0.0.1:{server.server_address[1]}")
    return BackendConfig(**{"name": "b", "url": url, "type": "openai", **settings})


_open: list[Prober] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Probers keep connections; they are closed at the end of the test that made them."""
    yield
    while _open:
        _open.pop().close()


def made(config: BackendConfig, key: str = "secret") -> Prober:
    prober = Prober(config, {"KEY": key})
    _open.append(prober)
    return prober


def prober_of(server: Server, **settings: Any) -> Prober:
    return made(config_of(server, **settings))


def test_latency_ends_when_the_response_has_arrived():
    """Reading long lists of others, which have arrived meanwhile, must not count."""
    paused: list[float] = []

    def pause() -> None:
        paused.append(time.monotonic())
        time.sleep(0.01)

    with Server(always(200, LIST)) as server:
        prober = Prober(config_of(server), {}, pause=pause)
        _open.append(prober)
        started = time.monotonic()
        latency_s = prober.probe(10).latency_s
    assert latency_s is not None
    assert latency_s <= paused[0] - started


# What fails, in words


def test_a_type_that_is_not_the_servers():
    with Server(always(404, {})) as server:
        result = prober_of(server, type="ollama").probe(10)
    assert result.error == "/api/tags responded 404; is its type ollama?"


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (always(500, {}), "/v1/models responded 500"),
        (always(401, {}), "/v1/models responded 401"),
        (
            always(404, {}),
            "/v1/models responded 404; a path in url is used as written (base_path replaces it), "
            "and "
            "models of a "
            "server without this list go into [[backends.models]]",
        ),
        (
            always(307, {}),
            "/v1/models responded 307, a redirect to 'https://elsewhere.test/v1/models'; put the "
            "new "
            "address into url",
        ),
        (always(200, b"<html>"), "/v1/models responded with something that is not JSON"),
        (always(200, b"[" * 100_000), "/v1/models responded with JSON that is nested too deeply"),
        (always(200, b" " * (17 << 20)), "the response is over 16777216 bytes"),
        (always(200, {}), "the response has no list `data`"),
    ],
)
def test_a_bad_response(answers, said, caplog):
    with Server(answers) as server:
        result = prober_of(server).probe(10)
    assert (result.models, result.error) == (None, said)
    assert not caplog.records


def says(sent: bytes) -> Iterator[int]:
    """A server that says this to whoever connects, and closes; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.recv(65536)
                    client.sendall(sent)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", "/v1/models: it closed the connection before its response was complete"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "/v1/models responded with invalid HTTP: "),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{",
            "/v1/models: it closed the connection before",
        ),
    ],
)
def test_what_is_no_response(sent, said):
    for port in says(sent):
        result = made(BackendConfig(name="b", url=f"http://127.0.0.1:{port}")).probe(10)
        assert (result.error or "").startswith(said)
        assert "(" not in (result.error or "")


def test_nobody_listens():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        result = made(BackendConfig(name="b", url=f"http://127.0.0.1:{port}")).probe(10)
    assert result.error == (
        f"127.0.0.1:{port} cannot be reached: nothing listens there; start the server, or correct "
        f"the url"
    )


def test_a_name_that_does_not_exist():
    result = made(BackendConfig(name="b", url="http://nobody.invalid")).probe(10)
    assert result.error in {  # as there is a name server here, or none
        "the name nobody.invalid is not known; correct the url, or the DNS",
        "no name server responds for nobody.invalid; check the DNS",
        "no name server responds for nobody.invalid in time; check the DNS "
        "(no response within 10 s)",
    }


def test_a_silent_backend():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        result = made(BackendConfig(name="b", url=url)).probe(0.3)
    assert (result.models, result.error) == (None, "no response within 0.3 s")


def test_a_key_that_no_header_may_have(caplog):
    with Server(always(200, LIST)) as server:
        result = made(config_of(server, api_key_env="KEY"), "sk-\u201cquoted\u201d").probe(10)
        assert not server.seen
    assert result.error is not None
    assert result.error.startswith("The value of $KEY has a character that no header can carry")
    assert not caplog.records


# Connections


def test_a_kept_connection_that_died_is_replaced():
    """The server ended its side: the probe is asked again over a new connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(2):
                client, _ = listener.accept()
                with client:
                    client.recv(65536)
                    content = json.dumps(LIST).encode()
                    client.sendall(
                        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(content), content)
                    )
                    client.recv(65536)  # it takes the next request, and closes

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        prober = made(BackendConfig(name="b", url=url, type="openai", keepalive_seconds=60))
        assert prober.probe(10).success
        assert prober.probe(10).success
        prober.close()
        thread.join(10)
        assert not thread.is_alive()


def test_ipv6():
    with Server(always(200, LIST), host="::1") as server:
        prober = prober_of(server, url=f"http://[::1]:{server.server_address[1]}")
        assert prober.probe(10).success
        assert server.heads[0]["host"] == f"[::1]:{server.server_address[1]}"


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({}, "/v1/models"),
        ({"url": "/v1beta/openai/"}, "/v1beta/openai/models"),
        ({"url": "/v2", "base_path": "/openai"}, "/openai/models"),
        (
            {"query": {"api-version": "2026-01-01", "a": "b c"}},
            "/v1/models?api-version=2026-01-01&a=b+c",
        ),
    ],
)
def test_where_the_models_are_requested(settings, path):
    with Server(always(200, LIST)) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}{settings.get('url', '')}"
        assert prober_of(server, **{**settings, "url": url, "api_key_env": "KEY"}).probe(10).success
        assert server.seen == [("GET", path)]
        assert server.heads[0]["authorization"] == "Bearer secret"


# Details


def ollama(models: dict[str, str], shown: Callable[[str], tuple[int, Any]]) -> Answers:
    """`models`: name → digest."""

    def answers(_: str, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/tags":
            return 200, {
                "models": [{"name": name, "digest": digest} for name, digest in models.items()]
            }
        return shown(json.loads(body)["model"])

    return answers


def can_see(_: str) -> tuple[int, Any]:
    return 200, {"capabilities": ["completion", "vision"]}


def seen(server: Server) -> int:
    return server.seen.count(("POST", "/api/show"))


def all_details(prober: Prober) -> tuple[Model, ...] | None:
    found = None
    while result := prober.more_details(10):
        found = result.models
    return found


def test_details_are_fetched_after_the_probe_and_kept_until_they_change():
    models = {f"m{n}": "v1" for n in range(70)}
    with Server(ollama(models, can_see)) as server:
        prober = prober_of(server, type="ollama")
        first = prober.probe(10)
        assert first.models is not None
        assert [model.name for model in first.models] == list(models)
        assert seen(server) == 0, "the list alone says that it is healthy"
        partly = prober.more_details(10)
        assert partly is not None
        assert sum(model.vision is True for model in partly.models or ()) == 64, (
            "published before all are there"
        )
        assert [model.vision for model in all_details(prober) or ()] == [True] * 70
        assert seen(server) == 70

        again = prober.probe(10)
        assert [model.vision for model in again.models or ()] == [True] * 70
        assert (prober.more_details(10), seen(server)) == (None, 70)

        models["m3"] = "v2"
        assert not (prober.probe(10).models or ())[3].vision
        assert [model.vision for model in all_details(prober) or ()] == [True] * 70
        assert seen(server) == 71, "that of the changed model alone"


def test_details_that_are_silent_or_refused_are_no_fault_of_the_backend():
    release = threading.Event()

    def shown(name: str) -> tuple[int, Any]:
        if name == "refused":
            return 500, {}
        if name == "silent":
            release.wait(20)
        return can_see(name)

    with Server(ollama({"refused": "1", "good": "1", "silent": "1", "last": "1"}, shown)) as server:
        prober = prober_of(server, type="ollama")
        assert prober.probe(10).success
        result = prober.more_details(0.3)
        assert result is not None
        assert [model.vision for model in result.models or ()] == [None, True, None, None]
        assert prober.more_details(0.3) is None, (
            "a backend that is silent is asked again at the next probe"
        )
        release.set()
        assert prober.probe(10).success
        assert [model.vision for model in all_details(prober) or ()] == [None, True, True, True]
        assert prober.probe(10).success
        assert prober.more_details(10) is None, "what was refused is not asked for again at once"


def test_a_detail_without_a_version_is_forgotten_when_a_probe_fails():
    """The server may be started anew with other settings."""
    slots = 4

    def answers(_: str, path: str, __: bytes) -> tuple[int, Any]:
        found = {"/health": {"status": "ok"}, "/v1/models": LIST, "/props": {"total_slots": slots}}
        return 200, found[path]

    with Server(answers) as server:
        prober = prober_of(server, type="llamacpp")
        assert prober.probe(10).capacity is None
        result = prober.more_details(10)
        assert result is not None
        assert result.capacity == 4
        slots = 8
        assert prober.probe(10).capacity == 4
        server.answers = always(503, {})
        assert not prober.probe(10).success
        server.answers = answers
        assert prober.probe(10).capacity is None
        result = prober.more_details(10)
        assert result is not None
        assert result.capacity == 8


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "private-ca")


@pytest.fixture(scope="module")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other-ca"), "other-ca")


def served_by(certificate: Certificate, *, clients: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert, certificate.key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    return context


def test_a_private_ca(authority, other_authority):
    with Server(always(200, LIST), served_by(authority.issue("server"))) as server:
        host = f"127.0.0.1:{server.server_address[1]}"
        url = f"https://{host}"
        assert prober_of(server, url=url, ca_file=str(authority.ca)).probe(10).success
        result = prober_of(server, url=url).probe(10)
        wanted = (
            f"TLS with {host} failed: the CA that signed its certificate is not known; name that "
            f"CA "
            f"in ca_file"
        )
        assert result.error == wanted
        assert prober_of(server, url=url, ca_file=str(other_authority.ca)).probe(10).error == wanted


def test_a_certificate_for_another_name(authority):
    certificate = authority.issue("elsewhere", "DNS:elsewhere.test")
    with Server(always(200, LIST), served_by(certificate)) as server:
        host = f"127.0.0.1:{server.server_address[1]}"
        result = prober_of(server, url=f"https://{host}", ca_file=str(authority.ca)).probe(10)
    assert result.error == (
        f"TLS with {host} failed: its certificate is not for this address; use a name that it is "
        f"for in the url"
    )


def test_a_client_certificate(authority, other_authority):
    context = served_by(authority.issue("server"), clients=authority.ca)
    ours, strange = authority.issue("client"), other_authority.issue("client")
    with Server(always(200, LIST), context) as server:
        host = f"127.0.0.1:{server.server_address[1]}"
        settings = {"url": f"https://{host}", "ca_file": str(authority.ca)}
        pair = {"client_cert_file": str(ours.cert), "client_key_file": str(ours.key)}
        assert prober_of(server, **settings, **pair).probe(10).success
        assert prober_of(server, **settings, client_cert_file=str(ours.both())).probe(10).success
        without = prober_of(server, **settings).probe(10).error or ""
        # The reset that follows the server's alert may overtake it.
        assert "client_cert_file" in without
        refused = (
            prober_of(server, **settings, client_cert_file=str(strange.both())).probe(10).error
            or ""
        )
        assert "client_cert_file" in refused


def test_tls_where_there_is_none():
    with Server(always(200, LIST)) as server:
        host = f"127.0.0.1:{server.server_address[1]}"
        assert prober_of(server, url=f"https://{host}").probe(10).error == (
            f"TLS with {host} failed: it does not speak TLS at this port; is its url http://?"
        )


@pytest.mark.parametrize("named_in", ["ca_file", "SSL_CERT_FILE"])
def test_replaced_files_count_from_the_next_connection_on(
    authority, other_authority, tmp_path, monkeypatch, named_in
):
    bundle = tmp_path / "bundle.pem"
    settings = {"ca_file": str(bundle)} if named_in == "ca_file" else {}
    if not settings:
        monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    bundle.write_bytes(other_authority.ca.read_bytes())
    with Server(always(200, LIST), served_by(authority.issue("server"))) as server:
        url = f"https://127.0.0.1:{server.server_address[1]}"
        prober = prober_of(server, url=url, **settings)
        assert not prober.probe(10).success
        bundle.write_bytes(authority.ca.read_bytes())
        assert prober.probe(10).success
        bundle.write_bytes(b"half a file")
        server.answers = always(200, {"data": [{"id": "after"}]})
        assert [model.name for model in prober.probe(10).models or ()] == ["after"], (
            "what was good stays"
        )
