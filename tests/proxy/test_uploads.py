"""Forms with files, with OpenAI's own client: stored, sent on byte for byte, and sent again."""

import contextlib
import hashlib
import http.client
import io
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import requests

from nexus.proxy.upload import IN_MEMORY
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

MB = 1024 * 1024
AUDIO = os.urandom(30 * MB)
SECONDS = len(AUDIO) // 16_000
FAMILIES = (
    "nexus_requests_started_total",
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_units_total",
    "nexus_upload_bytes_count",
    "nexus_upload_bytes_sum",
    "nexus_stream_ends_total",
    "nexus_upstream_attempts_total",
)


class Breaking:
    """A backend that reads 10 MiB of each upload and then closes; its model list is like that of
    any other."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.uploads = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(sock,), daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        with sock:
            data = sock.recv(65536)
            if data.startswith(b"GET "):
                body = b'{"object":"list","data":[{"id":"large","max_model_len":1}]}'
                head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
                sock.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
                return
            self.uploads += 1
            size = len(data)
            while data and size < 10 * MB:
                data = sock.recv(65536)
                size += len(data)


class Fleet:
    def __init__(self, gateway: Gateway, demo: Demo, breaking: Breaking) -> None:
        self.gateway, self.demo, self.breaking = gateway, demo, breaking
        self.client = openai.OpenAI(base_url=f"{gateway.base}/v1", api_key="unused", max_retries=0)
        self._before = gateway.settled()

    def moves(self) -> dict[str, float]:
        """What has moved since the last call, by family and label values."""
        before, self._before = self._before, self.gateway.settled()
        return {
            f"{name} {' '.join(value for _, value in sorted(labels))}".strip(): change
            for (name, labels), change in moved(before, self._before, FAMILIES).items()
        }

    def spooled(self) -> float:
        return self.gateway.scrape().value("nexus_spooled_bytes")


@pytest.fixture(scope="module")
def running(module_dir: Path) -> Iterator[Fleet]:
    breaking = Breaking()
    spool = module_dir / "spool"
    spool.mkdir()
    with Demo(module_dir, models=["scribe", "large", "painter"], pace=0) as demo:
        config = (
            backend_toml(demo, priority=2)
            + f'[[backends]]\nname = "breaking"\nurl = "{breaking.url}"\ntype = "vllm"\n'
            + 'priority = 1\ndialects = ["openai"]\n'
            + '[circuit_breaker]\nenabled = false\n[routing]\nstrategy = "priority_only"\n'
            + 'max_retries = 1\n[routing.aliases]\nwhisper = "scribe"\n'
        )
        server = f'spool_dir = "{spool}"\nmax_upload_bytes = {40 * MB}'
        with Gateway(module_dir, config, workers=1, server=server) as gateway:
            fleet = Fleet(gateway, demo, breaking)
            with fleet.client:
                yield fleet
    breaking.listener.close()
    assert not list(spool.iterdir()), "its files have no names"


@pytest.fixture
def fleet(running: Fleet) -> Iterator[Fleet]:
    running.moves()
    yield running
    assert until(lambda: running.spooled() == 0)


def audio(data: bytes = AUDIO) -> tuple[str, io.BytesIO]:
    return "a.wav", io.BytesIO(data)


def test_a_large_file_goes_to_the_next_backend_whole(fleet):
    """The first backend dies in the middle of it."""
    before = fleet.breaking.uploads
    request = requests.Request(
        "POST",
        f"{fleet.gateway.base}/v1/audio/transcriptions",
        files={"file": audio(), "model": (None, "large")},
    ).prepare()
    with requests.Session() as session:
        reply = session.send(request, timeout=60)
    assert (reply.status_code, reply.headers["x-nexus-backend"]) == (200, "demo")
    assert fleet.breaking.uploads == before + 1
    assert fleet.demo.last()["sha256"] == hashlib.sha256(request.body).hexdigest()
    assert fleet.moves() == {
        "nexus_requests_started_total transcriptions": 1,
        "nexus_requests_total demo large 200": 1,
        "nexus_upstream_attempts_total breaking backend_error": 1,
        "nexus_upstream_attempts_total demo ok": 1,
        "nexus_units_total transcriptions seconds": SECONDS,
        "nexus_upload_bytes_count": 1,
        "nexus_upload_bytes_sum": len(request.body),
    }


def test_an_alias_replaces_that_field_alone(fleet):
    said = fleet.client.audio.transcriptions.create(model="whisper", file=audio(b"x" * 5000))
    assert said.text == "This audio has 5000 bytes."
    body = fleet.demo.last()["body"]
    assert 'name="model"\r\n\r\nscribe\r\n' in body
    assert "whisper" not in body
    assert int(fleet.demo.last()["headers"]["content-length"]) == len(body.encode("latin-1"))


def test_a_stream_of_a_transcript(fleet):
    stream = fleet.client.audio.transcriptions.create(
        model="scribe", file=audio(b"x" * 32_000), stream=True
    )
    kinds = [event.type for event in stream]
    assert kinds == 5 * ["transcript.text.delta"] + ["transcript.text.done"]
    moves = fleet.moves()
    assert moves["nexus_units_total transcriptions seconds"] == 2
    assert moves["nexus_stream_ends_total demo complete"] == 1


def test_a_transcript_that_is_no_json(fleet):
    reply = requests.post(
        f"{fleet.gateway.base}/v1/audio/translations",
        files={
            "file": ("a.wav", b"x" * 10), "model": (None, "scribe"),
            "response_format": (None, "text"),
        },
        timeout=10,
    )  # fmt: skip
    assert (reply.headers["content-type"], reply.text) == (
        "text/plain",
        "This audio has 10 bytes.\n",
    )
    assert fleet.moves()["nexus_requests_started_total translations"] == 1


def test_images(fleet):
    edited = fleet.client.images.edit(
        model="painter", image=("a.png", io.BytesIO(b"png")), prompt="darker"
    )
    varied = requests.post(
        f"{fleet.gateway.base}/v1/images/variations",
        files={"image": ("a.png", b"png"), "model": (None, "painter")},
        timeout=10,
    ).json()
    assert (len(edited.data), len(varied["data"])) == (1, 1)
    moves = fleet.moves()
    assert moves["nexus_units_total image_edits images"] == 1
    assert moves["nexus_units_total image_variations images"] == 1


@pytest.mark.parametrize(
    ("files", "headers", "status", "code"),
    [
        ({"file": ("a", b"x")}, {}, 400, "invalid_request"),
        ({"model": (None, "nobody")}, {}, 404, "model_not_found"),
        ({"model": (None, "scribe")}, {"content-type": "multipart/form-data"}, 400,
         "body_malformed"),
        ({"model": (None, "scribe")}, {"content-type": "multipart/form-data; boundary=x"}, 400,
         "body_malformed"),
        ({"model": (None, "scribe")}, {"content-type": "application/json"}, 415,
         "unsupported_media_type"),
        ({"model": (None, "scribe")}, {"content-encoding": "gzip"}, 415, "unsupported_encoding"),
        ({"file": ("a", bytes(41 * MB))}, {}, 413, "body_too_large"),
    ],
)  # fmt: skip
def test_refusals(fleet, files, headers, status, code):
    reply = requests.post(
        f"{fleet.gateway.base}/v1/audio/transcriptions", files=files, headers=headers, timeout=30
    )
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


HEAD = (
    b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n"
    b"content-type: multipart/form-data; boundary=b\r\n\r\n"
)


def small_form(data: bytes, *, model: str = "scribe") -> bytes:
    return (
        b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\n%b\r\n'
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n%b\r\n--b--\r\n'
    ) % (model.encode(), data)


def status_of(sock: socket.socket) -> int:
    """The status of the next response, which is read to its end."""
    response = http.client.HTTPResponse(sock)
    response.begin()
    response.read()
    return response.status


def test_a_large_file_by_openais_client(fleet):
    said = fleet.client.audio.transcriptions.create(model="scribe", file=audio())
    assert said.text == f"This audio has {len(AUDIO)} bytes."
    assert fleet.moves()["nexus_units_total transcriptions seconds"] == SECONDS


def test_a_form_that_is_cut_anywhere(fleet):
    """It comes in two packets, of which each byte ends the first one once."""
    body = small_form(b"\r\n--", model="whisper")
    with socket.create_connection(("127.0.0.1", fleet.gateway.port), timeout=20) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(1, len(body)):
            sock.sendall(HEAD % len(body) + body[:at])
            sock.sendall(body[at:])
            assert status_of(sock) == 200, at
    sent = body.replace(b"whisper", b"scribe")
    assert fleet.demo.last()["sha256"] == hashlib.sha256(sent).hexdigest()
    assert fleet.moves()["nexus_upload_bytes_sum"] == len(body) * (len(body) - 1)


def test_a_client_that_leaves_frees_what_is_stored(fleet):
    [pid] = fleet.gateway.worker_pids()

    def open_files() -> list[str]:
        links = Path(f"/proc/{pid}/fd").iterdir()
        return [str(link.readlink()) for link in links if link.is_symlink()]

    def stored() -> int:
        return sum(f"{fleet.gateway.directory}/spool/" in name for name in open_files())

    assert stored() == 0
    before = len(open_files())
    with socket.create_connection(("127.0.0.1", fleet.gateway.port)) as sock:
        sock.sendall(HEAD % 20_000_000 + b"--b\r\n\r\n" + bytes(5 * MB))
        assert until(lambda: fleet.spooled() > 4 * MB)
        assert stored() == 1
    assert until(lambda: fleet.spooled() == stored() == 0)
    assert until(lambda: len(open_files()) <= before)
    fleet.moves()


@pytest.mark.parametrize("size", [IN_MEMORY - 1024, 2 * IN_MEMORY])
def test_many_uploads_at_once_take_little_memory(fleet, size):
    """All of them have come but for their last byte before the first one ends. The first size is
    the most that is kept in memory."""
    [pid] = fleet.gateway.worker_pids()

    def memory(kind: str) -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition(f"{kind}:")[2].split()[0]) * 1024

    body = small_form(bytes(size))
    count = 200
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak counts from now on
    before = memory("VmRSS")
    started = fleet.gateway.scrape().total("nexus_requests_started_total")
    with contextlib.ExitStack() as stack:
        address = "127.0.0.1", fleet.gateway.port
        socks = [
            stack.enter_context(socket.create_connection(address, timeout=120))
            for _ in range(count)
        ]
        for sock in socks:
            sock.sendall(HEAD % len(body) + body[:-1])
        assert until(
            lambda: fleet.gateway.scrape().total("nexus_requests_started_total") == started + count
        )
        if size > IN_MEMORY:
            assert until(lambda: fleet.spooled() > count * (len(body) - MB // 8))
        for sock in socks:
            sock.sendall(body[-1:])
        for sock in socks:
            assert status_of(sock) == 200
    assert memory("VmHWM") - before < 64 * MB
    assert fleet.moves()["nexus_requests_total demo scribe 200"] == count
