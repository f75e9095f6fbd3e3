"""Where the time of one plain request goes inside the gateway: everything is real but the sockets,
which cost nothing.

Run it with `python -m bench.request`; it prints microseconds by part.
"""

from __future__ import annotations

import contextlib
import cProfile
import logging
import pstats
import socket
import tempfile
import timeit
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from msgspec.structs import replace

from nexus.access.keys import digest
from nexus.config import BackendConfig, Config
from nexus.config.access_records import Auth, Key
from nexus.config.budget_records import Budget
from nexus.config.cost_records import Costs, Price
from nexus.config.limit_records import Limit
from nexus.config.routing_records import Affinity, Routing
from nexus.fleet.records import Backend, Labels, Model, Snapshot
from nexus.fleet.run_directory import RunDirectory
from nexus.fleet.slot_lease import SlotLease
from nexus.http.client_watch import DisconnectWatch
from nexus.http.connection_pool import Connection
from nexus.metrics.recorder import Recorder
from nexus.metrics.recovery import recover_slot
from nexus.metrics.store import Store
from nexus.proxy.engine import Engine
from nexus.proxy.fleet_view import View
from nexus.runtime.log import configure
from nexus.server.fast_path import FastPath
from nexus.server.request_head import HeadLimits, RequestHeadParser
from nexus.server.stream_relay import BufferedWriter

REQUESTS = 20_000
PARTS = {
    "the request's head": ("request_head.py:parse",),
    "checks: body, model, stream, needs": ("checks.py:parse",),
    "choosing a backend and reserving it": ("_admit",),
    "the backend's request head": ("request_template.py:head",),
    "the backend's response": ("response_parser.py:feed", "usage_of"),
    "releasing the reservation": ("admission.py:release",),
    "the response's head": ("_head",),
    "metrics: started and finished": ("request_started", "exchange.py:finish"),
}
BODY = b'{"model":"m","messages":[{"role":"user","content":"Hello, how are you today?"}]}'
ASK = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nauthorization: Bearer x\r\n"
    b"content-type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
USAGE = b'{"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21},"x":"'
CONTENT = USAGE + b"x" * (498 - len(USAGE)) + b'"}'
ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 23 Nov 2026 20:36:41 GMT\r\n"
    b"Content-Type: application/json\r\n"
    b"Content-Length: %d\r\nConnection: keep-alive\r\n\r\n%b" % (len(CONTENT), CONTENT)
)


KEY = "sk-nx-of-a-benchmark-that-nobody-else-has"
WITH_KEY = ASK.replace(b"Bearer x", b"Bearer " + KEY.encode())
_KEYS = Config(auth=Auth(mode="keys"), keys=[Key(id="k", sha256=[digest(KEY)])])
_LIMITED = replace(
    _KEYS,
    limits=[
        Limit(name="requests", each=["key"], requests="1000000000/s"),
        Limit(name="tokens", each=["key"], tokens="1000000000/s"),
    ],
)
_BUDGETED = replace(
    _LIMITED,
    costs=Costs(price=[Price(input="1", output="10")]),
    budgets=[Budget(name="all", usd="9000000", each=["key"], reserve_output=100)],
)
EXTRAS = {
    "more with a key": _KEYS,
    "more with a key and two limits": _LIMITED,
    "more with a key, two limits, and a budget": _BUDGETED,
}


_TURN = '{"role":"user","content":"%s"}' % ("Nothing is like the start of a prompt. " * 105)
PROMPT = b'{"model":"m","messages":[%b]}' % _TURN.encode()
WITH_PROMPT = ASK.replace(BODY, PROMPT).replace(b" %d\r" % len(BODY), b" %d\r" % len(PROMPT))
WITH_SESSION = WITH_PROMPT.replace(b"\r\n\r\n", b"\r\nx-session-id: a8f2c7d0\r\n\r\n")
_WITHOUT_AFFINITY = Config(routing=Routing(affinity=Affinity(enabled=False)))


class _Socket:
    def __init__(self) -> None:
        self._pair = (
            socket.socketpair()
        )  # a descriptor with nothing to read, as of an idle connection

    def send(self, data: bytes) -> int:
        return len(data)

    def recv(self, _: int) -> bytes:
        return ANSWER

    def fileno(self) -> int:
        return self._pair[0].fileno()

    def close(self) -> None:
        pass


class _Watch(DisconnectWatch):
    sock = _Socket()

    def wait_readable(self, *_: Any) -> None:
        pass


def fast_path(
    config: Config | None = None, ask: bytes = ASK, *, backends: Sequence[str] = ("up",)
) -> FastPath:
    """The fast path of a busy worker whose client and backends are always ready, and cost
    nothing."""
    logging.getLogger("nexus").setLevel(logging.WARNING)
    run_dir = RunDirectory(tempfile.mkdtemp())
    run_dir.prepare()
    slot_lease = SlotLease.lease(run_dir.new_generation())
    recover_slot(slot_lease)
    slot_lease.open_limit_table().set_ready()  # as the health process does, with its ledger
    fleet_of = tuple(
        Backend(
            config=BackendConfig(name=name, url=f"http://127.0.0.1:{n + 1}", type="vllm"),
            label=name,
            column=n,
            status="healthy",
            latency_ms=1.0,
            models=(Model(name="m", context_length=32768),),
        )
        for n, name in enumerate(backends)
    )
    labels = Labels(models={"m": "m"}, backends={name: name for name in backends})
    view = View.of(
        Snapshot(
            revision=1,
            published_at=0,
            config=config or Config(),
            backends=fleet_of,
            labels=labels,
        )
    )
    fleet: Any = SimpleNamespace(current=lambda: view, subscribe=lambda _: None)
    engine = Engine(
        fleet=fleet,
        recorder=Recorder(Store(slot_lease), slot_lease),
        load=slot_lease.table,
        row=slot_lease.row,
        circuits=slot_lease.circuits,
        limit_table=slot_lease.open_limit_table,
        share_table=slot_lease.open_share_table,
        ring=slot_lease.history.ring(0),
        environ={},
    )
    sock: Any = _Socket()
    connection = Connection(sock, reused=False)
    notifier: Any = SimpleNamespace(early=False)
    connection.notifier = notifier
    engine.connections._connect = lambda *_: connection  # type: ignore[method-assign]
    made = object.__new__(FastPath)
    made.__dict__.update(
        _client=sock,
        _timeout_s=60.0,
        _engine=engine,
        _heads=RequestHeadParser(HeadLimits(100, 16380, 8190)),
        _keep_alive=lambda: True,
        _watch=_Watch(None),
        _writer=BufferedWriter(sock),
    )
    due: list[Any] = []
    engine.history.batch_with(due.append)
    for _ in range(800):  # as many requests as end in the time that they are shown after
        assert made.serve(ask) == b""
    due.pop()()
    return made


def _microseconds(serve: Callable[[bytes], object], ask: bytes = ASK) -> float:
    """What one request takes."""
    return min(timeit.repeat(lambda: serve(ask), number=REQUESTS, repeat=5)) / REQUESTS * 1e6


def main() -> None:
    serve = fast_path().serve
    whole = _microseconds(serve)
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(REQUESTS):
        serve(ASK)
    profile.disable()
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, Any]] = pstats.Stats(
        profile
    ).stats  # type: ignore[attr-defined]
    total = max(cumulative for _, _, _, cumulative, _ in stats.values())
    shown = 0.0
    for part, names in PARTS.items():
        share = 0.0
        for (file, _, function), (_, _, _, cumulative, _) in stats.items():
            if "nexus" in file and any(
                name in (function, f"{file.rpartition('/')[2]}:{function}") for name in names
            ):
                share += cumulative / total
        if not share:
            raise RuntimeError(f"no function of PARTS is called any more for: {part}")
        shown += share
        print(f"| {part} | {share * whole:.1f} |")
    print(f"| what holds them together | {(1 - shown) * whole:.1f} |")
    print(f"| **all** | **{whole:.1f}** |")
    for kind in ("pretty", "json"):
        with Path("/dev/null").open("w") as nowhere, contextlib.redirect_stderr(nowhere):
            configure(level="info", kind=kind)
            logged = _microseconds(serve)
        print(f"| more with a line in the log ({kind}) | {logged - whole:.1f} |")
    for name, config in EXTRAS.items():
        more = _microseconds(fast_path(config, WITH_KEY).serve, WITH_KEY) - whole
        print(f"| {name} | {more:.1f} |")
    print_affinity()


def print_affinity() -> None:
    """What affinity takes for a prompt of 4 KiB and three backends."""
    fleet = ("a", "b", "c")
    without = fast_path(_WITHOUT_AFFINITY, WITH_PROMPT, backends=fleet)
    least = _microseconds(without.serve, WITH_PROMPT)
    for name, ask in (("a prompt of 4 KiB", WITH_PROMPT), ("the id of a session", WITH_SESSION)):
        more = _microseconds(fast_path(None, ask, backends=fleet).serve, ask) - least
        print(f"| more with affinity, by {name} | {more:.1f} |")


if __name__ == "__main__":
    main()
