"""A backend that sends what a test tells it to, byte by byte if need be, over a real socket."""

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

Script = Callable[[dict[str, Any], socket.socket], None]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


class Replay:
    """Responds to each request by the script of its model, a GET with the list of these; `asked`
    keeps the bodies."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}
        self.asked: list[dict[str, Any]] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            with sock, sock.makefile("rb") as lines:
                length, get = 0, lines.readline().startswith(b"GET ")
                while (line := lines.readline()) not in (b"\r\n", b""):
                    name, _, value = line.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                if get:
                    whole(200, {"object": "list", "data": [{"id": name} for name in self.scripts]})(
                        {}, sock
                    )
                    return
                body = json.loads(lines.read(length))
                if not body:  # a probe that asks which paths there are
                    whole(404, {"error": {"message": "no such path"}})({}, sock)
                    return
                self.asked.append(body)
                self.scripts[body["model"]](body, sock)
        except (OSError, ValueError):
            pass

    def close(self) -> None:
        self._listener.close()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def in_packets(data: bytes, size: int, *, pause_at: int = 0, head: bytes = HEAD) -> Script:
    """The stream in a chunked body, its bytes with the chunks' framing cut into packets of `size`.

    With `pause_at` it pauses after so many bytes of the stream.
    """
    middle = pause_at or len(data) // 2
    first, second = (b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:middle], data[middle:]))
    first = head + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n" + first

    def send(_: dict[str, Any], sock: socket.socket) -> None:
        for part in (first, second + b"0\r\n\r\n"):
            for start in range(0, len(part), size):
                sock.sendall(part[start : start + size])
                if size < 100 and start % (size * 16) == 0:
                    time.sleep(0.0005)  # so that packets are not all put together again on the way
            if pause_at:
                time.sleep(0.1)

    return send


def whole(status: int, content: Any) -> Script:
    data = json.dumps(content).encode()

    def send(_: dict[str, Any], sock: socket.socket) -> None:
        sock.sendall(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%s" % (status, len(data), data)
        )

    return send
