"""A backend whose events tell when they were sent, as a process: `python -m tests.support.timed
PORT`.

It writes to its output what it is asked and when its caller leaves, each with the request's id.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support.polling import until
from tests.support.processes import Process, free_port

MODEL = "timed"
MARK = b'"content":"'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n%s\r\n"


class Timed(Process):
    """The process, and what it wrote."""

    def __init__(self, directory: Path) -> None:
        self.name, self.port = MODEL, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__(
            [sys.executable, "-m", "tests.support.timed", str(self.port)],
            log=directory / "timed.log",
        )
        until(lambda: "listens" in self.output())

    def _told(self, what: str) -> list[list[str]]:
        lines = self.output().rpartition("\n")[0].splitlines()
        return [words for words in map(str.split, lines) if words[0] == what]

    def asked(self) -> Counter[str]:
        """How often each request id came."""
        return Counter(request_id for _, request_id in self._told("asked"))

    def left_at(self, request_id: str) -> float:
        """When, on the monotonic clock, the caller of a request was seen to leave."""
        return until(
            lambda: next(
                (float(at) for _, which, at in self._told("left") if which == request_id), 0.0
            )
        )


def sent_at(event: bytes) -> float | None:
    """When an event was sent, on the monotonic clock; None for those that do not tell."""
    at = event.find(MARK)
    stamp = event[at + len(MARK) : at + len(MARK) + 20] if at >= 0 else b""
    return int(stamp) / 1e9 if stamp.isdigit() else None


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            fields = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in head[1:])
            }
            body = await reader.readexactly(int(fields.get("content-length", 0)))
            if head[0].startswith("GET"):
                models = {
                    "object": "list",
                    "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "x"}],
                }
                _whole(writer, models)
            else:
                await _answer(reader, writer, json.loads(body), fields["x-request-id"])
    writer.close()


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ask: dict[str, Any], request_id: str
) -> None:
    """`pause` is the time before each event or answer, `max_tokens` how many events there are."""
    _tell("asked", request_id)
    leaves = asyncio.ensure_future(reader.read(1))
    streams = ask.get("stream", False)
    for number in range(ask["max_tokens"] if streams else 1):
        done, _ = await asyncio.wait([leaves], timeout=ask["pause"])
        if done:
            _tell("left", request_id, repr(time.monotonic()))
            raise ConnectionResetError
        if streams:
            if number == 0:
                writer.write(HEAD % (b"text/event-stream", b"transfer-encoding: chunked\r\n"))
            choice = {
                "index": 0,
                "delta": {"content": f"{time.monotonic_ns():020d}"},
                "finish_reason": None,
            }
            _event(writer, json.dumps(_frame([choice]), separators=(",", ":")).encode())
    # The next request of this connection must not be taken by the watch on this one.
    leaves.cancel()
    await asyncio.wait([leaves])
    if streams:
        _event(
            writer,
            json.dumps(_frame([{"index": 0, "delta": {}, "finish_reason": "stop"}])).encode(),
        )
        _event(writer, b"[DONE]")
        writer.write(b"0\r\n\r\n")
    else:
        message = {"role": "assistant", "content": "x"}
        _whole(
            writer,
            {
                **_frame([{"index": 0, "message": message, "finish_reason": "stop"}]),
                "object": "chat.completion",
            },
        )


def _frame(choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "x",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": choices,
    }


def _event(writer: asyncio.StreamWriter, data: bytes) -> None:
    data = b"data: " + data + b"\n\n"
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


def _whole(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
    content = json.dumps(answer).encode()
    writer.write(HEAD % (b"application/json", b"content-length: %d\r\n" % len(content)) + content)


def _tell(*words: str) -> None:
    print(*words, flush=True)


async def _listen(port: int) -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", port, backlog=512)
    _tell("listens")
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_listen(int(sys.argv[1])))
