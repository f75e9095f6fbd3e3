"""Many requests at once from this process, over keep-alive connections."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ParsedRequest:
    """A request to send; `kind` is for the tally."""

    kind: str
    path: str
    body: dict[str, Any]
    key: str | None = None


def chat(kind: str, model: str, *, stream: bool = False, **more: Any) -> ParsedRequest:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Hello there"}],
        "stream": stream,
        **more,
    }
    return ParsedRequest(kind, "/v1/chat/completions", body)


def run(
    port: int,
    asks: Iterable[ParsedRequest],
    *,
    concurrency: int,
    seen: Callable[[ParsedRequest, int, bytes], None],
    pause_s: float = 0.0,
) -> None:
    """Send them all; `seen` gets each with its status (0 where the connection broke) and content,
    under a lock.

    Each of the `concurrency` clients waits `pause_s` between two requests.
    """
    todo = iter(asks)
    lock = threading.Lock()

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            with lock:
                ask = next(todo, None)
            if ask is None:
                connection.close()
                return
            try:
                headers = {"content-type": "application/json"}
                if ask.key is not None:
                    headers["authorization"] = f"Bearer {ask.key}"
                connection.request("POST", ask.path, json.dumps(ask.body).encode(), headers)
                answer = connection.getresponse()
                status, content = answer.status, answer.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                status, content = 0, repr(error).encode()
            with lock:
                seen(ask, status, content)
            if pause_s:
                time.sleep(pause_s)

    threads = [threading.Thread(target=work) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Load:
    """About `rate` requests a second from many clients, until stopped; each with when it started,
    its status and time.

    `ask` makes the request number so and so of a client.
    """

    def __init__(
        self,
        port: int,
        *,
        rate: float,
        clients: int = 40,
        ask: Callable[[int], ParsedRequest] = lambda _: chat("chat", "shared", max_tokens=3),
    ) -> None:
        self.results: list[tuple[float, int, float]] = []
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._client, args=(port, clients / rate, ask))
            for _ in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def _client(self, port: int, pause_s: float, ask: Callable[[int], ParsedRequest]) -> None:
        began = [0.0]

        def asks() -> Iterator[ParsedRequest]:
            number = 0
            while not self._stopping.is_set():
                began[0] = time.monotonic()
                yield ask(number)
                number += 1

        def seen(_: ParsedRequest, status: int, __: bytes) -> None:
            self.results.append((began[0], status, time.monotonic() - began[0]))

        run(port, asks(), concurrency=1, seen=seen, pause_s=pause_s)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)
