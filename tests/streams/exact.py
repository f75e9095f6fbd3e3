"""One stream through the gateway, and the series that it moves."""

import http.client
import json
from typing import Any

from nexus.config import Config
from nexus.config.routing_records import CircuitBreaker, Routing
from tests.corpus import RECORDINGS
from tests.support.load import chat, run
from tests.support.metrics import moved

CONFIG = Config(routing=Routing(max_retries=0), circuit_breaker=CircuitBreaker(enabled=False))
NAMES = [f"r{number}" for number in range(len(RECORDINGS))]
MOVED = (
    "nexus_requests_total",
    "nexus_usage_total",
    "nexus_stream_ends_total",
    "nexus_stream_events_total",
    "nexus_tokens_total_sum",
    "nexus_token_details_total",
    "nexus_time_to_first_token_seconds_count",
    "nexus_time_per_output_token_seconds_count",
    "nexus_stream_longest_gap_seconds_count",
)


def stream(gateway, model: str, **more) -> tuple[int, bytes]:
    got: list[tuple[int, bytes]] = []
    run(
        gateway.port,
        [chat("x", model, stream=True, **more)],
        concurrency=1,
        seen=lambda _, s, c: got.append((s, c)),
    )
    return got[0]


def flat(before, after) -> dict[str, float]:
    return {
        f"{name.removeprefix('nexus_')}{{{','.join(v for _, v in sorted(labels))}}}": change
        for (name, labels), change in moved(before, after, MOVED).items()
    }


class Client:
    """A client of one stream, over the fast path or through Flask, which gets requests with a
    chunked body."""

    def __init__(self, port: int, model: str, *, flask: bool = False, **more: Any) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        body = json.dumps(chat("x", model, stream=True, **more).body).encode()
        headers = {"content-type": "application/json"}
        content: Any = iter([body]) if flask else body
        self._connection.request(
            "POST", "/v1/chat/completions", content, headers, encode_chunked=flask
        )
        self._response: http.client.HTTPResponse | None = None
        self.content = b""

    @property
    def response(self) -> http.client.HTTPResponse:
        if self._response is None:
            self._response = self._connection.getresponse()
        return self._response

    def read_until(self, expected: bytes) -> bytes:
        while expected not in self.content:
            piece = self.response.read1(65536)
            assert piece, self.content
            self.content += piece
        return self.content

    def read(self) -> bytes:
        self.content += self.response.read()
        return self.content

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
