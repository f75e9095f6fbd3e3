"""How much of their prompts requests find in backends' caches, beside two routers in the same run.

Run it with `make bench-affinity`; it writes bench/results/affinity.md and affinity.svg. Three
simulated backends have a prefix cache of limited size, work on a bounded number of requests at
once, and take time for what was not cached. The caches are emptied before each workload.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench import rig
from bench.machine import machine

RESULTS = Path(__file__).parent / "results" / "affinity.md"
PICTURE = RESULTS.with_suffix(".svg")
REPEATS = int(os.environ.get("NEXUS_BENCH_REPEATS", "1"))
SCALE = float(os.environ.get("NEXUS_BENCH_SCALE", "1"))
BACKENDS, CLIENTS, BLOCKS, SLOTS, PREFILL_MS = 3, 12, 900, 4, 4.0
CORES = "0,1"
Message = dict[str, str]
Talk = Iterator[list[Message]]
"""The prompts of one conversation, each sent when the one before was answered."""


def text(seed: str, characters: int) -> str:
    """Words that only this seed gives."""
    rng = random.Random(seed)
    return "".join(f"{rng.getrandbits(32):08x} " for _ in range(characters // 9 + 1))[:characters]


def say(content: str, role: str = "user") -> Message:
    return {"role": role, "content": content}


def turns(run: str, first: list[Message], count: int, characters: int) -> Talk:
    """A conversation that grows by an answer and a question each turn."""
    messages = [*first, say(text(f"{run} question", characters))]
    for turn in range(count):
        yield messages
        answer = say(text(f"{run} answer {turn}", characters // 2), "assistant")
        messages = [*messages, answer, say(text(f"{run} question {turn}", characters))]


def chats(run: str) -> list[Talk]:
    """48 chats of 6 turns with a short system text that all share."""
    system = say(text("system", 600), "system")
    return [turns(f"{run} chat {n}", [system], 6, 1200) for n in range(round(48 * SCALE))]


def tenants(run: str) -> list[Talk]:
    """24 tenants with a system text of 20 KB each; six short chats of two turns for each."""
    found = []
    for chat in range(round(6 * SCALE)):
        for tenant in range(24):
            system = say(text(f"{run} tenant {tenant}", 20_000), "system")
            found.append(turns(f"{run} tenant {tenant} chat {chat}", [system], 2, 300))
    random.Random(run).shuffle(found)
    return found


def agents(run: str) -> list[Talk]:
    """12 tasks with a common trunk of 12 KB, from which five branches of four steps go off."""
    found = []
    for branch in range(round(5 * SCALE)):
        for task in range(12):
            trunk = say(text(f"{run} trunk {task}", 12_000))
            found.append(turns(f"{run} task {task} branch {branch}", [trunk], 4, 900))
    return found


def hot(run: str) -> list[Talk]:
    """One system text of 20 KB that all 240 requests share."""
    system = say(text(f"{run} hot", 20_000), "system")
    return [turns(f"{run} hot {n}", [system], 1, 1500) for n in range(round(240 * SCALE))]


WORKLOADS: dict[str, tuple[str, Callable[[str], list[Talk]]]] = {
    "a": ("chats of six turns", chats),
    "b": ("24 tenants, 20 KB each", tenants),
    "c": ("agents that branch", agents),
    "d": ("one hot prefix of 20 KB", hot),
    "e": ("chats; a backend lost, and back", chats),
}


@dataclass
class Run:
    """One workload through one gateway."""

    prompt: int = 0
    cached: int = 0
    took_s: float = 0.0
    failed: int = 0
    spread: float = 0.0
    ttfts_ms: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.cached / max(1, self.prompt)

    @property
    def requests(self) -> int:
        return len(self.ttfts_ms)

    def ttft_ms(self, share: float) -> float:
        if not self.ttfts_ms:
            return math.nan
        return sorted(self.ttfts_ms)[min(self.requests - 1, int(share * self.requests))]

    @property
    def rate(self) -> float:
        return self.requests / self.took_s


class Backends:
    """The simulated backends. They keep their ports."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.ports = [rig.free_port() for _ in range(BACKENDS)]
        self._running = [self._start(port) for port in self.ports]

    def _start(self, port: int) -> rig.Running:
        command = [
            sys.executable, "-m", "nexus", "demo-backend", "--name", f"b{port}",
            "--port", str(port), "--model", "m", "--kind", "vllm", "--pace", "0", "--length", "8",
            "--usage", "always", "--cache-blocks", str(BLOCKS), "--slots", str(SLOTS),
            "--prefill-ms", str(PREFILL_MS),
        ]  # fmt: skip
        return rig.start(f"b{port}", command, port, self._directory, core=CORES)

    def call(self, path: str, method: str = "POST") -> list[Any]:
        found = []
        for port in self.ports:
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
            with urllib.request.urlopen(request, timeout=5) as response:
                found.append(json.load(response))
        return found

    def lose(self, n: int) -> None:
        self._running[n].stop()

    def bring_back(self, n: int) -> None:
        self._running[n] = self._start(self.ports[n])

    def stop(self) -> None:
        for running in self._running:
            running.stop()


def nexus(
    directory: Path, ports: list[int], *, name: str, routing: str = "", workers: int = 2
) -> rig.Running:
    port = rig.free_port()
    place = directory / name
    place.mkdir(exist_ok=True)
    file, run_dir = place / "nexus.toml", Path(f"/dev/shm/nexus-bench-{port}")
    file.write_text(
        f'[server]\nhost = "127.0.0.1"\nport = {port}\nworkers = {workers}\n'
        f'run_dir = "{run_dir}"\n'
        '[health_check]\nlisten = "off"\ninterval_seconds = 1\n[logging]\nlevel = "warn"\n'
        + routing
        + "".join(
            f'[[backends]]\nname = "b{n}"\nurl = "http://127.0.0.1:{upstream}"\ntype = "vllm"\n'
            for n, upstream in enumerate(ports)
        )
    )
    command = [sys.executable, "-m", "nexus", "serve", "-c", str(file)]
    running = rig.start(name, command, port, directory, core=CORES, ready="/readyz")
    running.left = run_dir
    return running


def router(directory: Path, ports: list[int], *, kind: str, policy: str) -> rig.Running:
    version = {"vllm-router": "0.1.17", "sglang-router": "0.3.2"}[kind]
    program = rig.peer(kind, f"{kind}=={version}")
    launch = [str(program)]
    if kind == "sglang-router":
        launch = [str(program.parent / "python"), "-m", "sglang_router.launch_router"]
    port = rig.free_port()
    command = [
        *launch, "--host", "127.0.0.1", "--port", str(port), "--policy", policy,
        "--log-level", "warning" if kind == "vllm-router" else "warn",
        "--prometheus-port", str(rig.free_port()),
        "--worker-urls", *(f"http://127.0.0.1:{upstream}" for upstream in ports),
    ]  # fmt: skip
    return rig.start(f"{kind}-{policy}", command, port, directory, core=CORES, ready="/health")


OFF = "[routing.affinity]\nenabled = false\n"
WITH_ID = "session id"
"""To gateways of this name, clients send the id of their session as `x-session-id`."""
GATEWAYS: dict[str, Callable[[Path, list[int]], rig.Running]] = {
    "Nexus": partial(nexus, name="nexus"),
    "Nexus, four workers": partial(nexus, name="nexus-4", workers=4),
    "vLLM router, cache_aware": partial(router, kind="vllm-router", policy="cache_aware"),
    "SGLang router, cache_aware": partial(router, kind="sglang-router", policy="cache_aware"),
    "Nexus, round robin": partial(
        nexus, name="nexus-rr", routing='[routing]\nstrategy = "round_robin"\n'
    ),
    "Nexus, least load": partial(nexus, name="nexus-least", routing=OFF),
    f"Nexus, {WITH_ID}": partial(nexus, name="nexus-id"),
    f"vLLM router, consistent_hash, {WITH_ID}": partial(
        router, kind="vllm-router", policy="consistent_hash"
    ),
}


def ask(
    connection: http.client.HTTPConnection, messages: list[Message], session: str
) -> tuple[float, int, int] | None:
    """Milliseconds to the first content of a stream, prompt tokens, and cached ones; None if it
    fails."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps({"model": "m", "messages": messages, **options})
    headers = {"content-type": "application/json", "x-session-id": session}
    began, first, usage = time.monotonic(), None, None
    try:
        connection.request("POST", "/v1/chat/completions", body, headers)
        for line in connection.getresponse():
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            if first is None and event["choices"] and event["choices"][0]["delta"].get("content"):
                first = (time.monotonic() - began) * 1000
    except (OSError, ValueError, KeyError, http.client.HTTPException):
        connection.close()
        return None
    if first is None or usage is None:
        return None
    return first, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


class Clients:
    """Twelve clients that send all conversations. These go on side by side: a conversation's next
    turn comes after a turn of the others that wait."""

    def __init__(self, port: int, talks: list[Talk], *, sessions: bool) -> None:
        self.run = Run()
        self._port, self._sessions = port, sessions
        self._waiting = deque(enumerate(talks))
        self._lock = threading.Lock()

    @property
    def done(self) -> int:
        return self.run.requests + self.run.failed

    def work(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while True:
            with self._lock:
                if not self._waiting:
                    connection.close()
                    return
                number, talk = self._waiting.popleft()
            messages = next(talk, None)
            if messages is None:
                continue
            found = ask(connection, messages, f"s{number}" if self._sessions else "")
            with self._lock:
                self._waiting.append((number, talk))
                if found is None:
                    self.run.failed += 1
                else:
                    self.run.ttfts_ms.append(found[0])
                    self.run.prompt += found[1]
                    self.run.cached += found[2]


def measure(
    gateway: rig.Running, backends: Backends, talks: list[Talk], *, disturb: bool, sessions: bool
) -> Run:
    """Send all conversations; with `disturb`, chats lose a backend after a third of their
    turns, and have it back, with an empty cache, after two thirds."""
    backends.call("/demo/forget")
    clients = Clients(gateway.port, talks, sessions=sessions)
    threads = [threading.Thread(target=clients.work) for _ in range(CLIENTS)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    if disturb:
        for share, change in ((1 / 3, backends.lose), (2 / 3, backends.bring_back)):
            while clients.done < share * 6 * len(talks):
                time.sleep(0.005)
            change(0)
    for thread in threads:
        thread.join()
    run = clients.run
    run.took_s = time.monotonic() - began
    seen = [tally["blocks"]["seen"] for tally in backends.call("/demo/tally", "GET")]
    run.spread = max(seen) / max(1.0, statistics.mean(seen))
    return run


def main() -> None:
    results: dict[str, dict[str, list[Run]]] = {}
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        backends = Backends(directory)
        try:
            for repeat in range(REPEATS):
                for name, start in GATEWAYS.items():
                    gateway = start(directory, backends.ports)
                    try:
                        for key, (_, talks) in WORKLOADS.items():
                            run = measure(
                                gateway,
                                backends,
                                talks(f"{repeat} {key}"),
                                disturb=key == "e",
                                sessions=name.endswith(WITH_ID),
                            )
                            results.setdefault(name, {}).setdefault(key, []).append(run)
                            print(
                                f"{name:42} {key} cached {run.share:.2f}, "
                                f"TTFT {run.ttft_ms(0.5):.0f} and {run.ttft_ms(0.95):.0f} ms, "
                                f"{run.rate:.0f}/s, spread {run.spread:.2f}, "
                                f"{run.requests} ok, {run.failed} failed",
                                flush=True,
                            )
                    finally:
                        gateway.stop()
        finally:
            backends.stop()
    RESULTS.write_text(report(results))
    PICTURE.write_text(picture(results))
    print(RESULTS.read_text())


def middle(runs: list[Run], of: Callable[[Run], float]) -> float:
    return statistics.median(map(of, runs))


def report(results: dict[str, dict[str, list[Run]]]) -> str:
    runs_made = f"Medians of {REPEATS} runs." if REPEATS > 1 else "One run."
    lines = [
        "# Affinity",
        "",
        f"Measured by `make bench-affinity` on {machine()}; vLLM router 0.1.17, SGLang router",
        f"0.3.2. {BACKENDS} simulated backends, each with a prefix cache of {BLOCKS} blocks of 256",
        f"characters, {SLOTS} requests at once, and {PREFILL_MS:g} ms for each block that is not",
        f"cached; {CLIENTS} clients. Nexus has two workers, one for each core, where a row",
        f"does not say four. Caches are empty before each workload. {runs_made}",
        "",
        f"In rows with *{WITH_ID}*, clients send the id of their session in `x-session-id`. The",
        "vLLM router needs it for `consistent_hash`; Nexus uses it by default. Compare these two",
        "with each other. In all other rows clients send no id, and gateways have only the prompt",
        "to go by.",
        "",
        "![cached share and time to first token](affinity.svg)",
        "",
        "*Spread* is the most loaded backend's part of all prompt blocks, to an equal part.",
    ]
    for key, (title, _) in WORKLOADS.items():
        lines += [
            "",
            f"## ({key}) {title}",
            "",
            "| gateway | cached share | TTFT median ms | TTFT p95 ms | requests/s | spread "
            "| failed |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, by_workload in results.items():
            runs = by_workload[key]
            cells = [
                name,
                f"{middle(runs, lambda run: run.share):.2f}",
                f"{middle(runs, lambda run: run.ttft_ms(0.5)):.0f}",
                f"{middle(runs, lambda run: run.ttft_ms(0.95)):.0f}",
                f"{middle(runs, lambda run: run.rate):.0f}",
                "" if key == "e" else f"{middle(runs, lambda run: run.spread):.2f}",
                str(sum(run.failed for run in runs)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


COLOURS = ("#2563eb", "#7c3aed", "#f59e0b", "#16a34a", "#cbd5e1", "#94a3b8", "#93c5fd", "#fcd34d")
WIDTH, HEIGHT = 900, 190


def picture(results: dict[str, dict[str, list[Run]]]) -> str:
    """Bars of the cached share above, of the 95th percentile of the first token below."""
    worst = max(
        middle(runs, lambda run: run.ttft_ms(0.95))
        for by_workload in results.values()
        for runs in by_workload.values()
    )
    height = 2 * HEIGHT + 126
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12"><rect width="{WIDTH}" height="{height}" '
        'fill="#fff"/>',
        *_bars(
            results, 0, "cached share of prompt tokens", lambda run: run.share, most=1.0, form=".2f"
        ),
        *_bars(
            results,
            1,
            "first token, 95th percentile, ms",
            lambda run: run.ttft_ms(0.95),
            most=worst,
            form=".0f",
        ),
    ]
    for which, name in enumerate(results):
        x, y = 10 + which % 3 * 300, 2 * HEIGHT + 82 + which // 3 * 16
        parts.append(
            f'<rect x="{x}" y="{y - 10}" width="10" height="10" fill="{COLOURS[which]}"/>'
            f'<text x="{x + 15}" y="{y}">{name}</text>'
        )
    return "".join([*parts, "</svg>\n"])


def _bars(
    results: dict[str, dict[str, list[Run]]],
    chart: int,
    title: str,
    of: Callable[[Run], float],
    *,
    most: float,
    form: str,
) -> Iterator[str]:
    group, bottom = WIDTH / len(WORKLOADS), (chart + 1) * (HEIGHT + 30)
    bar = group / (len(results) + 2)
    yield f'<text x="10" y="{bottom - HEIGHT - 8}" font-weight="bold">{title}</text>'
    for at, (key, (workload, _)) in enumerate(WORKLOADS.items()):
        for which, by_workload in enumerate(results.values()):
            value = middle(by_workload[key], of)
            x, top = at * group + (which + 1) * bar, bottom - value / most * (HEIGHT - 30)
            yield (
                f'<rect x="{x:.1f}" y="{top:.1f}" width="{bar - 2:.1f}" '
                f'height="{bottom - top:.1f}" fill="{COLOURS[which]}"/>'
                f'<text x="{x + bar / 2 - 1:.1f}" y="{top - 3:.1f}" font-size="8" '
                f'text-anchor="middle">{value:{form}}</text>'
            )
        middle_x = at * group + group / 2
        yield (
            f'<text x="{middle_x:.1f}" y="{bottom + 14}" font-size="11" text-anchor="middle">'
            f"({key}) {workload}</text>"
        )


if __name__ == "__main__":
    main()
