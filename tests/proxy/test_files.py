"""Files and batches, which all are at one backend, with OpenAI's own client."""

import hashlib
import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.access.limited import key_of, keys_toml
from tests.server.asking import Reply, ask
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

CONTENT = os.urandom(3 * 1024 * 1024)
LIMITS = """
[endpoints]
files = "kept"
[circuit_breaker]
enabled = false
[[limits]]
name = "two"
requests = "2/h"
match = {key = "two", endpoint = "files"}
"""
FAMILIES = (
    "nexus_requests_started_total",
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_http_rejected_total",
    "nexus_tokens_total_count",
    "nexus_retries_total",
    "nexus_upload_bytes_count",
    "nexus_upload_bytes_sum",
    "nexus_stream_ends_total",
    "nexus_upstream_attempts_total",
    "nexus_access_refused_total",
)


class Fleet:
    def __init__(self, gateway: Gateway, kept: Demo, other: Demo) -> None:
        self.gateway, self.kept, self.other = gateway, kept, other
        self.client = openai.OpenAI(
            base_url=f"{gateway.base}/v1", api_key=key_of("any"), max_retries=0
        )
        self._before = gateway.settled()

    def moves(self) -> dict[str, float]:
        """What has moved since the last call, by family and label values."""
        before, self._before = self._before, self.gateway.settled()
        return {
            f"{name} {' '.join(value for _, value in sorted(labels))}".strip(): change
            for (name, labels), change in moved(before, self._before, FAMILIES).items()
        }

    def ask(self, path: str, *, key: str = "any", **more: Any) -> Reply:
        return ask(self.gateway, path, authorization=f"Bearer {key_of(key)}", **more)


@pytest.fixture(scope="module")
def running(module_dir: Path) -> Iterator[Fleet]:
    with (
        Demo(module_dir, name="kept", pace=0) as kept,
        Demo(module_dir, name="other", pace=0) as other,
    ):
        keys = keys_toml("any", "two") + keys_toml("chats") + 'endpoints = ["chat_completions"]\n'
        config = f'[auth]\nmode = "keys"\n{LIMITS}{keys}{backend_toml(other, kept)}'
        server = f"max_upload_bytes = {4 * 1024 * 1024}"
        with Gateway(module_dir, config, workers=1, server=server) as gateway:
            fleet = Fleet(gateway, kept, other)
            with fleet.client:
                yield fleet
        assert not [path for path in other.tally()["requests"] if "files" in path]


@pytest.fixture
def fleet(running: Fleet) -> Iterator[Fleet]:
    running.moves()
    yield running
    if running.kept.child.poll() is None:
        running.kept.fault("")


def counted(endpoint: str, count: int) -> dict[str, float]:
    """What so many requests move that one attempt each has served."""
    return {
        f"nexus_requests_started_total {endpoint}": count,
        "nexus_requests_total kept unknown 200": count,
        "nexus_upstream_attempts_total kept ok": count,
    }


def test_the_life_of_a_file(fleet):
    files = fleet.client.files
    file = files.create(file=("batch.jsonl", io.BytesIO(CONTENT)), purpose="batch")
    assert (file.bytes, file.purpose) == (len(CONTENT), "batch")
    seen = fleet.kept.last()
    assert seen["target"] == "/v1/files"
    size = int(seen["headers"]["content-length"])
    assert fleet.moves() == {
        **counted("files", 1),
        "nexus_upload_bytes_count": 1,
        "nexus_upload_bytes_sum": size,
    }
    assert "authorization" not in seen["headers"], "the key is the gateway's"

    assert file.id in [one.id for one in files.list(limit=5, purpose="batch")]
    assert fleet.kept.last()["target"] == "/v1/files?limit=5&purpose=batch"
    assert files.retrieve(file.id) == file
    assert fleet.moves() == counted("files", 2)

    content = files.content(file.id).read()
    assert hashlib.sha256(content).digest() == hashlib.sha256(CONTENT).digest()
    assert fleet.moves() == {**counted("files", 1), "nexus_stream_ends_total kept complete": 1}

    assert files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match="No such file"):
        files.retrieve(file.id)
    assert fleet.moves() == {
        "nexus_requests_started_total files": 2,
        "nexus_requests_total kept unknown 200": 1,
        "nexus_requests_total kept unknown 404": 1,
        "nexus_errors_total invalid_request unknown": 1,
        "nexus_upstream_attempts_total kept ok": 1,
        "nexus_upstream_attempts_total kept invalid_request": 1,
    }


def test_the_bytes_that_were_sent_are_those_that_came(fleet):
    body = b"any bytes: " + os.urandom(700_000)
    headers = {"content-type": "application/x-anything"}
    reply = fleet.ask("/files", body=body, headers=headers)
    assert reply.status == 400, "the backend takes forms only"
    seen = fleet.kept.last()
    assert seen["sha256"] == hashlib.sha256(body).hexdigest()
    assert (seen["target"], seen["headers"]["content-type"]) == (
        "/v1/files",
        "application/x-anything",
    )


def test_an_empty_file(fleet):
    file = fleet.client.files.create(file=("empty", b""), purpose="user_data")
    assert fleet.client.files.content(file.id).read() == b""


def test_the_life_of_a_batch(fleet):
    batches = fleet.client.batches
    batch = batches.create(
        completion_window="24h", endpoint="/v1/chat/completions", input_file_id="file-1"
    )
    assert batches.retrieve(batch.id).status == "in_progress"
    assert batch.id in [one.id for one in batches.list(limit=3)]
    assert batches.cancel(batch.id).status == "cancelling"
    moves = fleet.moves()
    size = moves.pop("nexus_upload_bytes_sum")
    assert size > 50
    assert moves == {**counted("batches", 4), "nexus_upload_bytes_count": 1}


def test_content_that_breaks_off_is_cut(fleet):
    file = fleet.client.files.create(file=("a", CONTENT), purpose="batch")
    fleet.moves()
    fleet.kept.fault("break_after=5")
    with pytest.raises(openai.APIConnectionError):
        fleet.client.files.content(file.id).read()
    assert fleet.moves() == {
        "nexus_requests_started_total files": 1,
        "nexus_requests_total kept unknown 502": 1,
        "nexus_errors_total stream_interrupted unknown": 1,
        "nexus_upstream_attempts_total kept stream_interrupted": 1,
        "nexus_stream_ends_total kept upstream_reset": 1,
    }


@pytest.mark.parametrize(("fault", "status"), [("close", 502), ("status=500", 502)])
def test_no_other_backend_is_tried(fleet, fault, status):
    fleet.kept.fault(fault)
    with pytest.raises(openai.InternalServerError) as caught:
        fleet.client.files.create(file=("a", b"x"), purpose="batch")
    assert caught.value.status_code == status
    moves = fleet.moves()
    assert moves["nexus_requests_total kept unknown 502"] == 1
    assert moves["nexus_upstream_attempts_total kept backend_error"] == 1
    assert not any(name.startswith("nexus_retries") for name in moves)


def test_a_key_is_checked_before_the_body(fleet):
    """No byte of the body is sent."""
    for key, status, error in (("nobody", 401, "unauthorized"), ("chats", 403, "forbidden")):
        head = (
            "POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n"
            f"content-type: multipart/form-data; boundary=b\r\nauthorization: Bearer {key_of(key)}"
            "\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", fleet.gateway.port), timeout=20) as sock:
            sock.sendall(head.encode())
            assert sock.recv(65536).startswith(f"HTTP/1.1 {status} ".encode())
        moves = fleet.moves()
        assert moves["nexus_requests_started_total files"] == 1
        assert moves[f"nexus_requests_total none unknown {status}"] == 1
        assert moves[f"nexus_errors_total {error} unknown"] == 1


def test_limits_hold(fleet):
    statuses = [fleet.ask("/v1/files", key="two", method="GET", body=None).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert fleet.ask("/v1/batches", key="two", method="GET", body=None).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("PUT", "/v1/files", 405, "method_not_allowed"),
        ("POST", "/v1/files/file-1", 405, "method_not_allowed"),
        ("DELETE", "/v1/batches/batch-1", 405, "method_not_allowed"),
        ("GET", "/v1/files/file-1/more", 404, "not_found"),
        ("GET", "/v1/files/..", 404, "not_found"),
    ],
)
def test_what_does_not_exist(fleet, method, path, status, code):
    reply = fleet.ask(path, method=method, body=b"")
    assert (reply.status, reply.code) == (status, code)


def test_a_body_over_the_limit(fleet):
    headers = {"content-type": "multipart/form-data; boundary=b", "expect": "100-continue"}
    reply = fleet.ask("/v1/files", body=bytes(5 * 1024 * 1024), headers=headers)
    assert (reply.status, reply.code) == (413, "body_too_large")
    assert until(lambda: fleet.gateway.scrape().value("nexus_spooled_bytes") == 0)


def test_a_backend_that_is_down(fleet):
    """It stays so until the end of this module."""
    fleet.kept.stop()
    assert until(lambda: fleet.gateway.scrape().value("nexus_backends_healthy") == 1)
    reply = fleet.ask("/v1/files", method="GET", body=None)
    assert (reply.status, reply.code) == (503, "no_healthy_backend")
    assert b"Backend kept, which serves /v1/files, is not healthy" in reply.content
