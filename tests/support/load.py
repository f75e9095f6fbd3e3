"""Many requests at once from this process, over keep-alive connections."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ask:
    """A request to send; `kind` is for the tally."""

    kind: str
    path: str
    body: dict[str, Any]


def chat(kind: str, model: str, *, stream: bool = False, **more: Any) -> Ask:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello there"}], "stream": stream, **more}
    return Ask(kind, "/v1/chat/completions", body)


def run(
    port: int,
    asks: Iterable[Ask],
    *,
    concurrency: int,
    seen: Callable[[Ask, int, bytes], None],
    pause_s: float = 0.0,
) -> None:
    """Send them all; `seen` gets each with its status (0 where the connection broke) and content, under a lock.

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
                connection.request(
                    "POST", ask.path, json.dumps(ask.body).encode(), {"content-type": "application/json"}
                )
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
