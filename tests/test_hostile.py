"""A good client beside hostile ones: it loses nothing, and the gateway neither grows nor miscounts.

`make hostile` runs it longer; NEXUS_HOSTILE_SECONDS and NEXUS_HOSTILE_SEED set how long, and what
is killed when.
"""

import contextlib
import fcntl
import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from nexus.metrics.processes import memory_and_cpu
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml
from tests.test_chaos import balanced

pytestmark = [pytest.mark.e2e, pytest.mark.long]

SECONDS = float(os.environ.get("NEXUS_HOSTILE_SECONDS", "120"))
SEED = int(os.environ.get("NEXUS_HOSTILE_SEED", "1"))
SERVER = """
body_timeout_seconds = 5
client_timeout_seconds = 5
max_buffered_bytes = 67108864
max_concurrent_requests = 200
"""
KILL_EVERY_S = 20.0
PIPE_BYTES = 16 * 1024
GROWTH = 64 << 20
"""Bytes by which the largest process of the last third of the time may exceed that of the first."""
CHAT = "/v1/chat/completions"


def head(path: str, length: int, *more: str, method: str = "POST") -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        "host: 127.0.0.1",
        "content-type: application/json",
        *more,
    ]
    return ("\r\n".join([*lines, f"content-length: {length}"]) + "\r\n\r\n").encode()


class Hostile:
    """Clients that mean no good, each in a thread of its own until the end."""

    def __init__(self, gateway: Gateway, logs: int, rng: random.Random, end: float) -> None:
        self.gateway = gateway
        self.rng = rng
        self.end = end
        self.did: Counter[str] = Counter()
        self.worker_kills = 0
        self._logs = logs
        self._threads = [
            threading.Thread(target=self._repeat, args=(part,)) for part in self.parts()
        ]
        for thread in self._threads:
            thread.start()

    def parts(self) -> list[Callable[[], None]]:
        return [
            self.slow_body,
            self.slow_head,
            self.flood_operations,
            self.flood_clients,
            self.poison,
            self.bomb,
            self.ambiguous,
            self.never_read,
            self.read_the_log_now_and_then,
            self.kill,
        ]

    def _repeat(self, part: Callable[[], None]) -> None:
        while time.monotonic() < self.end:
            with contextlib.suppress(OSError):
                part()
                self.did[part.__name__] += 1
            time.sleep(0.2)

    def connect(self, port: int | None = None, *, receive_buffer: int = 0) -> socket.socket:
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(10)
        try:
            sock.connect(("127.0.0.1", port or self.gateway.port))
        except OSError:
            sock.close()
            raise
        return sock

    def send(self, data: bytes, *, read: bool = True) -> None:
        with self.connect() as sock:
            sock.sendall(data)
            if read:
                sock.recv(65536)

    def drip(self, start: bytes) -> None:
        """Twenty connections that send a byte each half second for as long as they may."""
        with contextlib.ExitStack() as opened:
            socks = [opened.enter_context(self.connect()) for _ in range(20)]
            for sock in socks:
                sock.sendall(start)
            for _ in range(30):
                time.sleep(0.5)
                for sock in socks:
                    with contextlib.suppress(OSError):
                        sock.sendall(b"x")

    def slow_body(self) -> None:
        self.drip(head(CHAT, 100_000))

    def slow_head(self) -> None:
        self.drip(b"POST /v1/chat/completions HTTP/1.1\r\nx-long: ")

    def flood_operations(self) -> None:
        self.hold(300, self.gateway.operations_port, seconds=3)

    def flood_clients(self) -> None:
        self.hold(100, self.gateway.port, seconds=1)

    def hold(self, count: int, port: int, *, seconds: float) -> None:
        """Keep as many connections open as can be had, up to `count`."""
        with contextlib.ExitStack() as opened:
            with contextlib.suppress(OSError):
                for _ in range(count):
                    opened.enter_context(self.connect(port))
            time.sleep(seconds)

    def poison(self) -> None:
        """A request that each backend responds to with 500."""
        body = json.dumps(
            {"model": "shared", "messages": [{"role": "user", "content": "poison"}]}
        ).encode()
        self.send(head(CHAT, len(body), "x-demo-fault: status=500") + body)

    def bomb(self) -> None:
        """Much work for a reader, and a name that two readers read differently."""
        many = b'{"model":"shared","messages":[' + b",".join([b"{}"] * 500_000) + b"]}"
        self.send(head(CHAT, len(many)) + many)
        twice = b'{"model":"shared","Model":"other","messages":[{"role":"user","content":"x"}]}'
        self.send(head(CHAT, len(twice)) + twice)
        deep = b'{"model":"shared","messages":' + b"[" * 100_000
        self.send(head(CHAT, len(deep)) + deep)

    def ambiguous(self) -> None:
        self.send(head(CHAT, 5, "transfer-encoding: chunked") + b"0\r\n\r\n")
        self.send(head(CHAT, 2, "content-length: 3") + b"{}")
        self.send(
            head("/admin/backends", 2, "origin: http://evil.example", "sec-fetch-site: cross-site")
            + b"{}"
        )

    def never_read(self) -> None:
        """Ask for much, over a small window, and read nothing."""
        ask = head("/assets/vendor/uPlot.iife.min.js", 0, method="GET") * 180
        body = json.dumps(
            {
                "model": "shared",
                "stream": True,
                "max_tokens": 20_000,
                "messages": [{"role": "user", "content": "x"}],
            }
        )
        stream = head(CHAT, len(body)) + body.encode()
        with contextlib.ExitStack() as opened:
            for number in range(10):
                sock = opened.enter_context(self.connect(receive_buffer=2048))
                with contextlib.suppress(OSError):
                    sock.sendall(ask if number % 2 else stream)
            time.sleep(8)

    def read_the_log_now_and_then(self) -> None:
        """The log's reader stands still for most of the time."""
        while self.read_log():
            pass
        time.sleep(15)

    def read_log(self) -> bool:
        try:
            return bool(os.read(self._logs, 65536))
        except BlockingIOError:
            return False

    def kill(self) -> None:
        time.sleep(KILL_EVERY_S)
        if time.monotonic() > self.end - KILL_EVERY_S:
            return  # so that the end is a quiet one
        if self.did["kill"] % 4 == 3:
            victim = health_pid(self.gateway)
        else:
            victim = self.rng.choice(self.gateway_workers())
            self.worker_kills += 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)

    def gateway_workers(self) -> list[int]:
        return until(lambda: children(master_pid(self.gateway)))

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def master_pid(gateway: Gateway) -> int:
    return next(pid for pid in children(gateway.pid) if "gunicorn" in command(pid))


def health_pid(gateway: Gateway) -> int:
    return until(
        lambda: next((pid for pid in children(gateway.pid) if "nexus.health" in command(pid)), 0)
    )


def largest(gateway: Gateway) -> tuple[int, int]:
    """The most resident bytes and descriptors that any process of the gateway has now."""
    sizes = [(0, 0)]
    for pid in [*children(master_pid(gateway)), health_pid(gateway)]:
        with contextlib.suppress(OSError):
            if used := memory_and_cpu(pid):
                sizes.append((used[0], len(list(Path(f"/proc/{pid}/fd").iterdir()))))
    return max(memory for memory, _ in sizes), max(fds for _, fds in sizes)


class Good:
    """The OpenAI client with its own retries, whole responses and streams in turn."""

    def __init__(self, gateway: Gateway, end: float) -> None:
        self.served = 0
        self.broken_streams = 0
        self.failures: list[str] = []
        self._client = openai.OpenAI(
            base_url=f"{gateway.base}/v1", api_key="unused", max_retries=5, timeout=60
        )
        self._threads = [
            threading.Thread(target=self._work, args=(end, number)) for number in range(4)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, end: float, number: int) -> None:
        while time.monotonic() < end:
            number += 1
            try:
                self._ask(stream=number % 3 == 0)
                self.served += 1
            except (openai.APIConnectionError, openai.APIError) as error:
                broke = number % 3 == 0 and not isinstance(error, openai.APIStatusError)
                if broke:
                    self.broken_streams += (
                        1  # by the kill of its worker, which no retry of the client's can undo
                    )
                else:
                    self.failures.append(repr(error))
            except Exception as error:
                if number % 3 == 0 and "incomplete" in str(error):
                    self.broken_streams += 1
                else:
                    self.failures.append(repr(error))
            time.sleep(0.2)

    def _ask(self, *, stream: bool) -> None:
        messages = [{"role": "user", "content": "hello"}]
        create = self._client.chat.completions.create
        if stream:
            chunks = list(create(model="shared", messages=messages, max_tokens=20, stream=True))  # type: ignore[call-overload]
            assert any(chunk.choices and chunk.choices[0].finish_reason for chunk in chunks)
        else:
            assert (
                create(model="shared", messages=messages, max_tokens=20).choices[0].message.content
            )  # type: ignore[call-overload]

    def join(self) -> None:
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()
        self._client.close()


def test_a_good_client_beside_hostile_ones(tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    with (
        Demo(tmp_path, name="one", models=["shared"], pace=0) as one,
        Demo(tmp_path, name="two", models=["shared"], pace=0) as two,
        Gateway(
            tmp_path, backend_toml(one, two), workers=2, interval_s=1, server=SERVER, stderr=writing
        ) as gateway,
    ):
        os.close(writing)
        end = time.monotonic() + SECONDS
        good = Good(gateway, end)
        hostile = Hostile(gateway, reading, random.Random(SEED), end)
        sizes = []
        while time.monotonic() < end:
            sizes.append(largest(gateway))
            time.sleep(1)
        hostile.join()
        good.join()
        while hostile.read_log():
            pass
        quiet = until(lambda: balanced(gateway), within_s=60)
        third = len(sizes) // 3
        early, late = (
            tuple(map(max, zip(*part, strict=True))) for part in (sizes[:third], sizes[-third:])
        )
        print(
            f"seed {SEED}: served {good.served}, failed {good.failures}, streams cut by a kill "
            f"{good.broken_streams}, "
            f"hostile {dict(hostile.did)}, largest process first {early} and last {late}, "
            f"log lines dropped {quiet.total('nexus_log_lines_dropped_total')}"
        )
        assert not good.failures
        assert good.broken_streams <= 2 * hostile.worker_kills
        assert good.served > SECONDS
        assert min(hostile.did[part.__name__] for part in hostile.parts()) > 0, hostile.did
        assert late[0] <= early[0] + GROWTH
        assert late[1] <= early[1] + 200
        assert quiet.total("nexus_log_lines_dropped_total") > 0
        assert quiet.value("nexus_accounting_imbalance") == 0
        assert quiet.total("nexus_pending_requests") == 0
    os.close(reading)
