"""Many streams at once through one gateway on one core: what each event costs, and how late it
comes.

Run it with `make bench-streams`; it writes bench/results/streams.md. A source sends events at a
known pace, each with the time at which it was sent; a sink reads them and takes the difference.
Both are on the other core.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import resource
import selectors
import socket
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from bench import rig
from bench.machine import machine, percentile, versions
from bench.throughput_gateways import DISTRIBUTION, under_the_distribution
from bench.throughput_report import distribution

RESULTS = Path(__file__).parent / "results" / "streams.md"
PACE = 50  # events a second in each stream
SECONDS = 6
REPEATS = 3
COUNTS = (200, 1000)
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
_SENT_AT = re.compile(rb'"(\d{20})"')
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"m","choices":'
    b'[{"index":0,"delta":{"content":"%020d"},"logprobs":null,"finish_reason":null}]}\n\n'
)
_DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"%020d"}}\n\n'
)
_MESSAGE_START = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","type":'
    b'"message","role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":'
    b'null,"usage":{"input_tokens":9,"output_tokens":1}}}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
    b'"content_block":{"type":"text","text":""}}\n\n'
)


def framed(event: bytes) -> bytes:
    """An event as a chunk of a response."""
    return b"%x\r\n%b\r\n" % (len(event), event)


def source(listener: socket.socket) -> None:
    """Streams for whoever asks, until the process is ended: an event for each stream every 20
    ms, spread evenly."""
    os.sched_setaffinity(0, {int(rig.LOAD_CORE)})
    selector = selectors.DefaultSelector()
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ)
    slots = 20  # the streams take turns within a period, a twentieth of them at a time
    streams: list[list[tuple[socket.socket, bytes]]] = [[] for _ in range(slots)]
    models = b'{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"x"}]}'
    period, started, turn, joined = 1 / PACE / slots, time.monotonic(), 0, 0
    while True:
        turn += 1
        due = started + turn * period
        while (left := due - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.fileobj is listener:
                    sock, _ = listener.accept()
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    selector.register(sock, selectors.EVENT_READ)
                    continue
                sock = key.fileobj
                try:
                    data = sock.recv(65536)
                except OSError:
                    data = b""
                if not data:
                    selector.unregister(sock)
                    for group in streams:
                        group[:] = [one for one in group if one[0] is not sock]
                    sock.close()
                elif data.startswith(b"POST"):
                    messages = data.startswith(b"POST /v1/messages")
                    sock.sendall(_HEAD + (framed(_MESSAGE_START) if messages else b""))
                    streams[joined % slots].append((sock, _DELTA if messages else _CHUNK))
                    joined += 1
                elif data.startswith(b"GET"):
                    sock.sendall(
                        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                        b"content-length: %d\r\n"
                        b"\r\n"
                        b"%s" % (len(models), models)
                    )
        for sock, event in streams[turn % slots]:
            with contextlib.suppress(OSError):
                sock.send(framed(event % time.monotonic_ns()))


def sink(port: int, count: int, path: str) -> dict[str, float]:
    """Open `count` streams, read them for a while, and give what was seen in the second half."""
    os.sched_setaffinity(0, {int(rig.LOAD_CORE)})
    said = [{"role": "user", "content": "Hello there"}]
    prompt = {"input" if path == RESPONSES else "messages": said}
    body = json.dumps({"model": "m", "stream": True, **prompt}).encode()
    ask = (
        b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (path.encode(), len(body), body)
    )
    selector = selectors.DefaultSelector()
    socks = []
    for number in range(count):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(ask)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
        socks.append(sock)
        if number % 20 == 19:
            time.sleep(0.02)
    late: list[int] = []
    begin, end = time.monotonic() + 2, time.monotonic() + 2 + SECONDS
    measured = False
    result: dict[str, float] = {}
    while (now := time.monotonic()) < end:
        if not measured and now >= begin:
            measured = True
            late.clear()
            print("begin", flush=True)
        for key, _ in selector.select(0.05):
            data = key.fileobj.recv(65536)
            seen = time.monotonic_ns()
            late += [seen - int(stamp) for stamp in _SENT_AT.findall(data)]
    print("end", flush=True)
    for sock in socks:
        sock.close()
    result["events"] = len(late)
    result["median_ms"] = statistics.median(late) / 1e6
    result["p99_ms"] = percentile(late, 0.99) / 1e6
    print(json.dumps(result), flush=True)
    return result


CHEAPEST, DEFAULT = "vLLM router, round_robin", "vLLM router, cache_aware"
GATEWAYS = {
    "nginx": rig.nginx_proxy,
    CHEAPEST: partial(rig.vllm_router, policy="round_robin"),
    DEFAULT: rig.vllm_router,
    "Nexus": rig.nexus,
    DISTRIBUTION: under_the_distribution,
}


def measure(
    gateway: rig.Running | None, port: int, count: int, path: str = CHAT
) -> dict[str, float]:
    """One run of a sink against a port; the gateway's processor time is that between its two
    marks."""
    import subprocess

    idle = gateway.memory() if gateway else 0
    child = subprocess.Popen(
        [sys.executable, "-m", "bench.streams", "sink", str(port), str(count), path],
        stdout=subprocess.PIPE,
        cwd=rig.ROOT,
    )
    assert child.stdout is not None
    assert child.stdout.readline().strip() == b"begin"
    before = gateway.cpu_s() if gateway else 0.0
    assert child.stdout.readline().strip() == b"end"
    after = gateway.cpu_s() if gateway else 0.0
    memory = (gateway.memory() if gateway else 0) - idle
    result = json.loads(child.stdout.readline())
    assert child.wait() == 0
    result["cpu_us"] = (after - before) / result["events"] * 1e6
    result["stream_kb"] = memory / count / 1024
    return result


def start_source() -> tuple[multiprocessing.Process, int]:
    """The source in a process of its own, and its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    feeder = multiprocessing.get_context("fork").Process(
        target=source, args=(listener,), daemon=True
    )
    feeder.start()
    return feeder, listener.getsockname()[1]


def main() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    feeder, upstream = start_source()
    results: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        makers = GATEWAYS
        for repeat in range(REPEATS):
            for count in COUNTS:
                results.setdefault(("direct", count), []).append(measure(None, upstream, count))
                for name, make in makers.items():
                    gateway = make(directory, upstream)
                    try:
                        found = measure(gateway, gateway.port, count)
                    finally:
                        gateway.stop()
                    results.setdefault((name, count), []).append(found)
                    print(f"{repeat} {name:24} {count:5} streams: {found}", flush=True)
    feeder.kill()
    RESULTS.write_text(report(results))
    print(RESULTS.read_text())


def report(results: dict[tuple[str, int], list[dict[str, float]]]) -> str:
    def median(name: str, count: int, key: str) -> float:
        return statistics.median(run[key] for run in results[name, count])

    def cell(name: str, count: int, key: str) -> str:
        values = [run[key] for run in results[name, count]]
        return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"

    lines = [
        "# Streams",
        "",
        f"Measured by `make bench-streams` on {machine()}; "
        f"{versions('gevent', 'gunicorn', 'httptools')}, vLLM router 0.1.17. *{DISTRIBUTION}* runs "
        f"under {distribution()}.",
        f"Each stream has {PACE} events a second of some 200 bytes, one gateway process on one "
        f"core, source and sink on the",
        f"other; {REPEATS} repeats in turn, median (least–most). Added latency is the event's way "
        f"through the gateway, less that of the",
        "same run without one.",
        "",
        "| gateway | streams | events/s | CPU µs per event | added latency, median ms | added "
        "latency, p99 ms | memory per stream, KiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for count in COUNTS:
        for name in GATEWAYS:
            added = [
                max(0.0, median(name, count, key) - median("direct", count, key))
                for key in ("median_ms", "p99_ms")
            ]
            lines.append(
                f"| {name} | {count} | {median(name, count, 'events') / SECONDS:,.0f} | "
                f"{cell(name, count, 'cpu_us')} | "
                f"{added[0]:.2f} | {added[1]:.2f} | {median(name, count, 'stream_kb'):.0f} |"
            )
    lines.append("")
    for count in COUNTS:
        for name in ("Nexus", DISTRIBUTION):
            cheapest, default = [
                median(name, count, "cpu_us") / median(router, count, "cpu_us")
                for router in (CHEAPEST, DEFAULT)
            ]
            verdict = "met" if cheapest < 1 else "missed"
            lines.append(
                f"- {count} streams: {name} takes {cheapest:.2f} × the vLLM router's processor "
                f"time per event at `round_robin` (goal: below 1; {verdict}), {default:.2f} × at "
                "`cache_aware`, its default."
            )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    if sys.argv[1:2] == ["sink"]:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2
        )
        sink(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        main()
