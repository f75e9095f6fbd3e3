"""Clients of a balancer, in front of gateways that have a `Timed` backend."""

import asyncio
import contextlib
import http.client
import itertools
import json
import threading
import time
from collections import Counter
from typing import Any

from tests.support.balancers import Balancer
from tests.support.polling import until
from tests.support.timed import MODEL, Timed, sent_at

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
_numbers = itertools.count()


def body(*, pause: float = 0.0, events: int = 1, stream: bool = False) -> bytes:
    message = {"role": "user", "content": "Hello there"}
    ask = {
        "model": MODEL,
        "messages": [message],
        "stream": stream,
        "pause": pause,
        "max_tokens": events,
    }
    return json.dumps(ask).encode()


def new_id() -> str:
    return f"request-{next(_numbers)}"


def request(ask: bytes) -> bytes:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-id: {new_id()}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(ask)}\r\n\r\n"
    return head.encode() + ask


async def stream(
    server: Balancer | Timed, source: str, late: list[tuple[float, float]], ask: bytes
) -> bytes:
    """Read one to its end, and note of each event when it was sent and how much later it came."""
    tls = server.tls if isinstance(server, Balancer) else None
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", server.port, ssl=tls, local_addr=(source, 0), limit=2**20
    )
    writer.write(request(ask))
    content = rest = b""
    while data := await reader.read(65536):
        now = time.monotonic()
        content += data
        *events, rest = (rest + data).split(b"\n\n")
        late += [(at, now - at) for event in events if (at := sent_at(event)) is not None]
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return content


async def answers(balancer: Balancer, source: str, ask: bytes, count: int) -> list[bytes]:
    """The first line of each response to so many requests at once, before any is read on."""
    opened = [
        await asyncio.open_connection(
            "127.0.0.1", balancer.port, ssl=balancer.tls, local_addr=(source, 0)
        )
        for _ in range(count)
    ]
    for _, writer in opened:
        writer.write(request(ask))
        await writer.drain()
    lines = [await asyncio.wait_for(reader.readline(), 20) for reader, _ in opened]
    for _, writer in opened:
        writer.transport.abort()
    return lines


def ask_once(balancer: Balancer, **ask: Any) -> tuple[int, bytes]:
    with contextlib.closing(balancer.connect()) as client:
        client.request("POST", CHAT, body(**ask), JSON)
        answer = client.getresponse()
        return answer.status, answer.read()


class Asking(threading.Thread):
    """A request beside the test; `result` is its status and content."""

    def __init__(self, balancer: Balancer, **ask: Any) -> None:
        super().__init__()
        self.result: tuple[int, bytes] = (0, b"")
        self._balancer, self._ask = balancer, ask
        self.start()

    def run(self) -> None:
        self.result = ask_once(self._balancer, **self._ask)

    def whole(self) -> bool:
        self.join()
        return self.result[0] == 200 and b"data: [DONE]" in self.result[1]


class Load:
    """Plain requests without end from eight clients, half of which make a new connection for
    each."""

    PAUSE_S = 0.03

    def __init__(self, balancer: Balancer) -> None:
        self.ids: list[str] = []
        self.statuses: Counter[int] = Counter()
        self.broken: list[str] = []
        self._balancer = balancer
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(8)]

    def _ask(self, number: int) -> None:
        client = self._balancer.connect(source=f"127.0.2.{1 + number}")
        while not self._ending.wait(self.PAUSE_S):
            request_id = new_id()
            try:
                client.request("POST", CHAT, body(), {**JSON, "x-request-id": request_id})
                answer = client.getresponse()
                content, status = answer.read(), answer.status
            except (OSError, http.client.HTTPException) as error:
                content, status = repr(error).encode(), 0
            if number % 2 or not status:
                client.close()
            with self._lock:
                self.ids.append(request_id)
                self.statuses[status] += 1
                if status != 200:
                    self.broken.append(f"{request_id}: {status} {content.decode()}")
        client.close()

    def goes_on(self, requests: int = 50) -> None:
        """Wait for so many more responses."""
        served = self.statuses[200]
        until(lambda: self.statuses[200] > served + requests)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def assert_none_failed(self, backend: Timed) -> None:
        assert not self.broken, self.broken[:5]
        asked = backend.asked()
        assert {asked[request_id] for request_id in self.ids} == {1}, (
            "each reached the backend once"
        )
