"""The workloads of `bench.affinity` in virtual time: what routing alone decides, on any machine.

Run it with `python -m bench.affinity_model`; it writes bench/results/affinity_model.md. Routing is
the gateway's own code, on real request bodies. The backends are those of the benchmark, and nothing
but them takes time. So runs are exact, and take seconds. The two router policies are models of what
the routers document and do.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

import msgspec

from bench.affinity import (
    BACKENDS,
    BLOCKS,
    CLIENTS,
    PREFILL_MS,
    SLOTS,
    WORKLOADS,
    Message,
    Run,
    Talk,
)
from nexus.config import BackendConfig, Config
from nexus.config.routing_records import Affinity, Routing
from nexus.dialects import openai
from nexus.dialects.base import PromptField, RequestForm
from nexus.fleet.prefix_table import PrefixTable
from nexus.fleet.records import Backend, Labels, Model, Snapshot
from nexus.http.headers import RequestHeaders
from nexus.proxy.session import SessionReader
from nexus.routing.context import Conditions, RouteQuery
from nexus.routing.router import choose
from nexus.routing.table import RouteTable
from nexus_demo.prefix_cache import PrefixCache

RESULTS = Path(__file__).parent / "results" / "affinity_model.md"
SEEDS = 8
OTHER_MS = 3.0
"""What a request takes beside its prompt, in the mean. Chance keeps clients out of step."""
_FORM = RequestForm(prompts=(PromptField(name="messages", messages=True),), task="chat")


class Request(msgspec.Struct):
    """A turn of a conversation: its number, its body, the time it was sent, and its backend."""

    talk: int
    turns: Talk
    messages: list[Message]
    body: bytes
    sent: float
    at: int = -1


Policy = Callable[[Request, Sequence[int], Sequence[int]], int]
"""Chooses one of the backends that are up. Also gets their loads."""


class Gateway:
    """The gateway's own routing. With `ids`, requests name their session.

    Chance goes on from run to run, so that it differs between runs that are otherwise alike.
    """

    _random = random.Random(1)

    def __init__(self, affinity: Affinity | None = None, *, ids: bool = False) -> None:
        self._ids = ids
        self._affinity = affinity or Affinity()
        self._tables: dict[tuple[int, ...], RouteTable] = {}
        self._prefixes = PrefixTable(None)

    def __call__(self, request: Request, up: Sequence[int], load: Sequence[int]) -> int:
        key = tuple(up)
        if key not in self._tables:
            self._tables[key] = _table(up, self._affinity)
        table = self._tables[key]
        parsed = openai.parse_request(request.body, _FORM)
        headers = RequestHeaders.of([("x-session-id", f"s{request.talk}")] if self._ids else [])
        session = SessionReader(headers, parsed, table.affinity, "m", seed=1)
        query = RouteQuery("m", parsed.needs, session=session if table.uses_affinity else None)
        now = Conditions(
            load=load.__getitem__,
            holders=self._prefixes.holders,
            repeats=self._prefixes.repeats,
            chance=self._random.random(),
        )
        choice = choose(table, query, tried=frozenset(), now=now)
        self._prefixes.add(choice.prefixes, choice.backend.column)
        return choice.backend.column


def _table(up: Sequence[int], affinity: Affinity) -> RouteTable:
    backends = tuple(
        Backend(
            config=BackendConfig(name=f"b{n}", url=f"http://127.0.0.1:{n + 1}", type="vllm"),
            label=f"b{n}",
            column=n,
            status="healthy" if n in up else "unhealthy",
            latency_ms=1.0,
            models=(Model(name="m"),),
        )
        for n in range(BACKENDS)
    )
    config = Config(routing=Routing(affinity=affinity))
    return RouteTable(
        Snapshot(revision=1, published_at=0, config=config, backends=backends, labels=Labels())
    )


def round_robin() -> Policy:
    count = itertools.count()
    return lambda _request, up, _load: up[next(count) % len(up)]


def session_hash() -> Policy:
    """As the vLLM router's `consistent_hash`, which is given an id of the session."""

    def choose(request: Request, up: Sequence[int], _load: Sequence[int]) -> int:
        return max(up, key=lambda n: blake2b(b"%d %d" % (request.talk, n)).digest())

    return choose


class PrefixTree:
    """As the SGLang router's `cache_aware`: the backend that got the longest start of the text if
    that is over 0.3 of it, else the one that got the least text. It balances only from 64 requests
    of difference on, which this load never has."""

    def __init__(self) -> None:
        self._known: dict[int, list[int]] = {}
        self._sizes = [0] * BACKENDS

    def __call__(self, request: Request, up: Sequence[int], _load: Sequence[int]) -> int:
        text = " ".join(message["content"] for message in request.messages)
        chain, chains = 0, []
        for at in range(0, len(text), 64):
            chain = hash((chain, text[at : at + 64]))
            chains.append(chain)
        picked = min(up, key=self._sizes.__getitem__)
        for n, one in enumerate(chains, 1):
            holders = [column for column in self._known.get(one, ()) if column in up]
            if not holders:
                break
            if n / len(chains) > 0.3:
                picked = holders[0]
        for one in chains:
            columns = self._known.setdefault(one, [])
            if picked not in columns:
                self._sizes[picked] += 64
                columns.append(picked)
        return picked


POLICIES: dict[str, Callable[[], Policy]] = {
    "Nexus": Gateway,
    "prefix tree": PrefixTree,
    "Nexus, least load": lambda: Gateway(Affinity(enabled=False)),
    "round robin": round_robin,
    "Nexus, session id": lambda: Gateway(ids=True),
    "hash of the session": session_hash,
}


class Simulation:
    """One run: clients, a policy, and backends, in milliseconds of virtual time."""

    def __init__(self, policy: Policy, talks: list[Talk], *, disturb: bool) -> None:
        self.run = Run()
        self._policy = policy
        self._talks = talks
        self._disturb = disturb
        self._now = 0.0
        self._random = random.Random(len(talks))
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._up = list(range(BACKENDS))
        self._load = [0] * BACKENDS
        self._waiting: list[deque[Request]] = [deque() for _ in range(BACKENDS)]
        self._working: list[list[Request]] = [[] for _ in range(BACKENDS)]
        self._caches = [_cache() for _ in range(BACKENDS)]
        self._talking = deque(enumerate(talks))

    def _after(self, ms: float, then: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now + ms, next(self._order), then))

    def go(self) -> Run:
        for _ in range(CLIENTS):
            self._next()
        while self._events:
            self._now, _, then = heapq.heappop(self._events)
            then()
        self.run.took_s = self._now / 1000
        seen = [cache.seen for cache in self._caches]
        self.run.spread = max(seen) / max(1.0, statistics.mean(seen))
        return self.run

    def _next(self) -> None:
        """A free client sends the next turn of the conversation that has waited longest."""
        while self._talking:
            talk, turns = self._talking.popleft()
            if (messages := next(turns, None)) is not None:
                body = json.dumps({"model": "m", "messages": messages, "stream": True}).encode()
                self._send(Request(talk, turns, messages, body, self._now))
                return

    def _send(self, request: Request) -> None:
        at = request.at = self._policy(request, self._up, self._load)
        self._load[at] += 1
        self._waiting[at].append(request)
        self._start(at)

    def _start(self, at: int) -> None:
        while self._waiting[at] and len(self._working[at]) < SLOTS:
            request = self._waiting[at].popleft()
            self._working[at].append(request)
            cached, prefill_s = self._caches[at].read({"messages": request.messages})
            ms = self._random.expovariate(1 / OTHER_MS) + prefill_s * 1000
            self._after(ms, lambda r=request, c=cached, m=prefill_s: self._end(r, c, m))

    def _end(self, request: Request, cached: int, prefill_s: float) -> None:
        at = request.at
        if request not in self._working[at]:
            return  # it was lost, and sent again
        self._working[at].remove(request)
        self._load[at] -= 1
        run = self.run
        run.ttfts_ms.append(self._now - request.sent)
        run.prompt += cached + round(prefill_s * 1000 / PREFILL_MS) * 64
        run.cached += cached
        self._talking.append((request.talk, request.turns))
        if self._disturb:
            turns = len(self._talks) * 6
            if run.requests == turns // 3:
                self._lose(0)
            elif run.requests == turns * 2 // 3:
                self._caches[0] = _cache()
                self._up = list(range(BACKENDS))
        self._start(at)
        self._next()

    def _lose(self, at: int) -> None:
        self._up = [n for n in self._up if n != at]
        lost = [*self._working[at], *self._waiting[at]]
        self._working[at], self._load[at] = [], 0
        self._waiting[at].clear()
        for request in lost:
            self._send(request)


def _cache() -> PrefixCache:
    return PrefixCache(BLOCKS, prefill_s=PREFILL_MS / 1000, slots=SLOTS)


HEAD = f"""# Affinity in virtual time

Made by `python -m bench.affinity_model`, on any machine alike. The workloads, the {BACKENDS}
backends, and the {CLIENTS} clients are those of [`make bench-affinity`](affinity.md). Only the
backends take time, and the routing of Nexus is the gateway's own code. Means of {SEEDS} runs.

*Hash of the session* is a model of the vLLM router's `consistent_hash`, with an id in each request.
Compare it with *Nexus, session id*, where clients send one, too. *Prefix tree* is a model of the
SGLang router's `cache_aware`. It and *Nexus* have only the prompt to go by.

One unlimited cache would have these shares, and no router can exceed them: 0.73 in (a) and (e),
0.90 in (b), 0.87 in (c), 0.92 in (d). In (b), each tenant's system text must be computed once. That
is true of 24 of 288 requests, so no 95th percentile is below the 316 ms that this takes. In (c), 12
of 240 compute a trunk, which takes 200 ms. In (d), one backend that serves all requests finds more
in its cache, but takes three times as long.
"""


def main() -> None:
    lines = [HEAD]
    for key, (title, talks) in WORKLOADS.items():
        lines += [
            f"## ({key}) {title}",
            "",
            "| policy | cached share | TTFT median ms | TTFT p95 ms | requests/s | spread |",
            "|---|---|---|---|---|---|",
        ]
        for name, make in POLICIES.items():
            runs = [
                Simulation(make(), talks(f"{seed} {key}"), disturb=key == "e").go()
                for seed in range(SEEDS)
            ]
            share, median, p95, rate, spread = (
                statistics.mean(values)
                for values in zip(
                    *[(r.share, r.ttft_ms(0.5), r.ttft_ms(0.95), r.rate, r.spread) for r in runs],
                    strict=True,
                )
            )
            lines.append(
                f"| {name} | {share:.2f} | {median:.0f} | {p95:.0f} | {rate:.0f} | {spread:.2f} |"
            )
            print(f"({key}) {lines[-1]}", flush=True)
        lines.append("")
    RESULTS.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
