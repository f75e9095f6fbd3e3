"""What backends of all sorts are found to speak, and when they are asked again."""

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from nexus.config import BackendConfig
from nexus.health.prober import Prober
from nexus.providers import PROVIDERS
from tests.server.asking import JSON, ask
from tests.support.polling import until
from tests.support.processes import Gateway

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"


MESSAGE = {"type": "message", "content": [{"type": "text", "text": "hi"}]}


class Backend(ThreadingHTTPServer):
    """Lists the model `m`. It responds to `{}` with the status in `statuses`.

    Attributes:
        asked: The path and the body of each POST.
        version: What `/version` shows.
        up: Whether its list of models can be read.
    """

    daemon_threads = True

    def __init__(self, **statuses: int) -> None:
        self.statuses = {f"/v1/{name}": status for name, status in statuses.items()}
        self.asked: list[tuple[str, str]] = []
        self.version, self.up, self.probes = "1", True, 0
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Backend

    def do_GET(self) -> None:
        if self.path == "/version":
            return self._say(200, {"version": self.server.version})
        self.server.probes += 1
        return self._say(200 if self.server.up else 500, {"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.server.asked.append((self.path, body))
        status = self.server.statuses.get(self.path, 404) if body == "{}" else 200
        self._say(status, {"error": {"message": "no"}} if body == "{}" else MESSAGE)

    def _say(self, status: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


_open: list[Prober] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _open:
        _open.pop().close()


def prober_of(backend: Backend, **settings: object) -> Prober:
    _open.append(Prober(BackendConfig(name="b", url=backend.url, **settings), {}))
    return _open[-1]


def asked_after_a_probe(prober: Prober) -> set[str] | None:
    prober.probe(5)
    found = prober.ask_dialects(prober.config.provider.dialects, 5)
    return None if found is None else set(found)


@pytest.mark.parametrize(
    ("kind", "messages", "responses", "spoken"),
    [
        ("generic", 404, 404, {"openai"}),
        ("generic", 400, 404, {"openai", "anthropic"}),
        ("generic", 405, 422, {"openai", "responses"}),
        ("vllm", 404, 400, {"openai", "responses"}),
        ("vllm", 405, 404, {"openai"}),
        ("openai", 404, 400, {"openai", "responses"}),
        ("anthropic", 400, 404, {"anthropic"}),
        ("generic", 200, 401, {"openai"}),
        ("vllm", 500, 429, {"openai", "anthropic", "responses"}),
        ("anthropic", 401, 403, {"anthropic"}),
    ],
)
def test_the_status_shows_what_is_spoken(kind, messages, responses, spoken):
    with Backend(messages=messages, responses=responses) as backend:
        assert asked_after_a_probe(prober_of(backend, type=kind)) == spoken
        assert backend.asked == [(MESSAGES, "{}"), (RESPONSES, "{}")]


def test_what_is_configured_is_not_asked_for():
    with Backend(messages=400) as backend:
        prober = prober_of(backend, dialects=["openai"])
        assert asked_after_a_probe(prober) is None
        assert backend.asked == []


def test_a_backend_that_does_not_respond_is_taken_as_its_kind(caplog):
    caplog.set_level(logging.INFO, "nexus.health")
    prober = Prober(BackendConfig(name="b", url="http://127.0.0.1:9", type="vllm"), {})
    known = PROVIDERS["vllm"].dialects
    assert prober.ask_dialects(known, 1) == known
    assert [record.path for record in caplog.records] == [MESSAGES, RESPONSES]
    assert {record.taken_as for record in caplog.records} == {"spoken"}


def test_an_unclear_answer_is_logged_once(caplog):
    caplog.set_level(logging.INFO, "nexus.health")
    with Backend(messages=500, responses=400) as backend:
        prober = prober_of(backend)
        for _ in range(3):
            assert asked_after_a_probe(prober) == {"openai", "responses"}
            backend.up = False
            assert not prober.probe(5).success
            backend.up = True
    [record] = [one for one in caplog.records if "API" in one.message]
    assert (record.path, record.answer, record.taken_as) == (MESSAGES, 500, "not spoken")


def test_a_version_that_changed_is_asked_once_more():
    with Backend(messages=404, responses=404) as backend:
        prober = prober_of(backend, type="vllm")
        assert asked_after_a_probe(prober) == {"openai"}
        backend.statuses[MESSAGES] = 400
        assert [asked_after_a_probe(prober) for _ in range(3)] == [None, None, None]
        backend.version = "2"
        results = [asked_after_a_probe(prober) for _ in range(4)]
        assert results == [None, {"openai", "anthropic"}, None, None]
        assert len(backend.asked) == 4


def test_two_versions_behind_one_address_do_not_alternate():
    with Backend(messages=404) as backend:
        prober = prober_of(backend, type="vllm")
        assert asked_after_a_probe(prober) == {"openai"}
        for version in ("2", "1") * 5:
            backend.version = version
            assert asked_after_a_probe(prober) is None


def test_a_kind_without_versions_is_asked_after_a_failed_probe():
    with Backend(messages=404) as backend:
        prober = prober_of(backend)
        assert asked_after_a_probe(prober) == {"openai"}
        assert asked_after_a_probe(prober) is None
        backend.up = False
        assert not prober.probe(5).success
        backend.up, backend.statuses[MESSAGES] = True, 400
        assert asked_after_a_probe(prober) == {"openai", "anthropic"}
        assert asked_after_a_probe(prober) is None


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[tuple[Gateway, Backend]]:
    with Backend(messages=404, responses=404) as backend:
        config = (
            f'[[backends]]\nname = "b"\nurl = "{backend.url}"\ntype = "vllm"\ntranslate = false\n'
            "[circuit_breaker]\nenabled = false\n"
        )
        with Gateway(tmp_path, config, workers=2) as gateway:
            yield gateway, backend


@pytest.mark.e2e
def test_all_workers_route_by_what_was_found(fleet):
    gateway, backend = fleet
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()

    def statuses() -> set[int]:
        return {ask(gateway, MESSAGES, body=body, headers=JSON).status for _ in range(20)}

    until(lambda: statuses() == {404})
    backend.statuses[MESSAGES], backend.version = 400, "2"
    until(lambda: statuses() == {200})
    asked = [path for path, given in backend.asked if given == "{}"]
    assert asked == [MESSAGES, RESPONSES] * 2
    token = (gateway.run_dir / "admin.token").read_text()
    [state] = requests.get(
        f"{gateway.operations}/admin/backends",
        headers={"authorization": f"Bearer {token}"},
        timeout=10,
    ).json()["backends"]
    assert state["dialects"] == ["anthropic", "openai"]
