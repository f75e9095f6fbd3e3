"""Every endpoint that streams under every fault of a backend, and with clients that leave: over
the fast path and through Flask.

One test strikes all endpoints at once; each of them has models of its own.
"""

import http.client
import random
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pytest

from nexus.errors import FAULTS
from tests.access.limited import WAYS
from tests.streams.every_endpoint import ROWS, TEXT, Fleet, Row, running
from tests.support.polling import until

pytestmark = pytest.mark.e2e

AFTER = 5
"""Events of the backend after which a stream breaks: each endpoint has had content by then."""
FAMILIES = (
    "requests_started_total",
    "requests_total",
    "errors_total",
    "upstream_attempts_total",
    "retries_total",
    "stream_ends_total",
    "stream_events_total",
    "time_to_first_token_seconds_count",
    "tokens_total_sum",
    "key_tokens_total",
    "usage_total",
    "units_total",
    "key_requests_total",
    "translated_requests_total",
)
Moves = Counter[str]


class Reply(NamedTuple):
    status: int
    content: bytes
    whole: bool


@pytest.fixture(scope="module", params=WAYS)
def fleet(request, tmp_path_factory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("endpoints")
    with running(directory, WAYS[request.param], timeout_s=0.6) as fleet:
        yield fleet


def replies(fleet: Fleet, kind: str, rows: tuple[Row, ...]) -> list[Reply]:
    """What clients get that request a stream of each of these endpoints at once."""

    def read(row: Row) -> Reply:
        with row.sent(fleet.gateway, kind) as connection:
            response = connection.getresponse()
            try:
                return Reply(response.status, response.read(), True)
            except http.client.IncompleteRead as broken:
                return Reply(response.status, broken.partial, False)

    with ThreadPoolExecutor(len(rows)) as pool:
        return list(pool.map(read, rows))


@contextmanager
def struck(fleet: Fleet, spec: str) -> Iterator[None]:
    fleet.first.fault(spec)
    try:
        yield
    finally:
        fleet.first.fault("")


def moved_by(row: Row, kind: str, status: int, error: str, *attempts: str) -> Moves:
    """What a request moves that reached backends. `attempts` are a backend and an outcome each."""
    model, last = f"{row.name}_{kind}", f"{attempts[-1].split()[0]}_{row.api}"
    found = Counter(
        [
            f"requests_started_total {row.endpoint}",
            f"requests_total {last} {model} {status}",
            f"key_requests_total {row.name} {status} none",
        ]
    )
    if error:
        found[f"errors_total {error} {model}"] = 1
    for number, attempt in enumerate(attempts, 1):
        backend, outcome = attempt.split()
        found[f"upstream_attempts_total {backend}_{row.api} {outcome}"] += 1
        if number < len(attempts):
            found[f"retries_total {backend}_{row.api} {outcome}"] += 1
    if row.translation:
        found[f"translated_requests_total {last} {row.translation}"] = 1
    return found


def with_content(row: Row, kind: str, backend: str, pieces: int) -> Moves:
    """What a stream moves that broke off after so many pieces of its content."""
    model, at = f"{row.name}_{kind}", f"{backend}_{row.api}"
    found = Counter([f"time_to_first_token_seconds_count {at} {model}"])
    if row.piece:
        found[f"stream_events_total {at} {model}"] = row.before - row.pings + pieces
    if row.endpoint == "speech":
        found["units_total speech characters"] = len(TEXT)
    if not row.counts_tokens:
        found["usage_total none"] = 1
        return found
    # Anthropic's streams begin with one token of the completion.
    found[f"usage_total {'counted' if pieces > 1 or not row.prompt else 'reported'}"] = 1
    for type_, count in (("prompt", row.prompt), ("completion", pieces)):
        if count:
            found[f"tokens_total_sum {at} {model} {type_}"] = count
            found[f"key_tokens_total {row.name} none {type_}"] = count
    return found


BEFORE_CONTENT = (
    ("close", "connection_lost"),
    ("reset", "connection_lost"),
    ("malformed", "malformed_answer"),
    ("hang", "first_byte_timeout"),
    ("status=500", "backend_5xx"),
    ("break_after=0", "connection_lost"),
    ("stall_after=0", "first_byte_timeout"),
    ("error_after=0", "error_event"),
    ("break_after=1", "connection_lost"),
    ("stall_after=1", "first_byte_timeout"),
    ("error_after=1", "error_event"),
)


def without_content(spec: str) -> tuple[Row, ...]:
    """The endpoints whose streams have no content yet if this happens, and where it can."""
    return tuple(
        row
        for row in ROWS
        if (row.before or not spec.endswith("_after=1"))
        and (row.piece or not spec.startswith("error_after"))
    )


@pytest.mark.parametrize("kind", ["only", "shared"])
@pytest.mark.parametrize(("spec", "fault"), BEFORE_CONTENT)
def test_a_backend_fails_before_content(fleet, spec, fault, kind):
    """Another backend serves what it has, whole. Without one the client gets the fault's status."""
    rows, fault = without_content(spec), FAULTS[fault]
    with struck(fleet, spec):
        got = replies(fleet, kind, rows)
    found = fleet.moves(FAMILIES)
    failed = f"first {fault.error_type}"
    expected: Moves = Counter()
    for row, reply in zip(rows, got, strict=True):
        if kind == "shared":
            assert (reply.status, reply.whole, row.errors_in(reply.content)) == (200, True, 0)
            assert row.pieces_in(reply.content) >= AFTER
            expected += moved_by(row, kind, 200, "", failed, "second ok")
            expected[f"stream_ends_total second_{row.api} complete"] += 1
        else:
            own = row.passes_errors and fault.code in ("backend_5xx", "error_event")
            assert reply.status == (500 if own else fault.status)
            attempts = [failed] * (1 + fault.retry_same)
            expected += moved_by(row, kind, reply.status, fault.error_type, *attempts)
    if kind == "shared":  # what they move that end whole is not of interest here
        families = {name.split()[0] for name in expected}
        found = Counter({name: n for name, n in found.items() if name.split()[0] in families})
    assert found == expected


@pytest.mark.parametrize("kind", ["only", "shared"])
@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        (f"break_after={AFTER}", "stream_reset"),
        (f"stall_after={AFTER}", "stream_idle"),
        (f"error_after={AFTER}", "stream_error"),
        ("no_done", "stream_truncated"),
    ],
)
def test_a_backend_fails_after_content(fleet, spec, fault, kind):
    """The client is told within its stream, or it is cut; no other backend is tried."""
    rows = tuple(row for row in ROWS if row.piece or fault in ("stream_reset", "stream_idle"))
    fault = FAULTS[fault]
    with struck(fleet, spec):
        got = replies(fleet, kind, rows)
    found = fleet.moves(FAMILIES)
    expected: Moves = Counter()
    for row, reply in zip(rows, got, strict=True):
        pieces = AFTER - row.before if spec != "no_done" else row.pieces_in(reply.content)
        assert reply.status == 200
        assert row.pieces_in(reply.content) == pieces
        assert reply.whole is bool(row.piece)
        if row.piece:
            assert row.errors_in(reply.content) == 1
        expected += moved_by(row, kind, fault.status, fault.error_type, f"first {fault.error_type}")
        expected += with_content(row, kind, "first", pieces)
        expected[f"stream_ends_total first_{row.api} {fault.stream_end}"] += 1
        if fault.code == "stream_error":  # which is an event, too
            expected[f"stream_events_total first_{row.api} {row.name}_{kind}"] += 1
    assert found == expected


@pytest.mark.parametrize("spec", ["hang", "stall_after=0", f"stall_after={AFTER}"])
def test_clients_leave(fleet, spec):
    """The backend's connection is closed, what was sent is charged, and nothing is left."""
    within = spec == f"stall_after={AFTER}"
    with ExitStack() as clients:
        for row in ROWS:
            connection = clients.enter_context(row.sent(fleet.gateway, "second", fault=spec))
            content, pieces = b"", AFTER - row.before if within else 0
            response = connection.getresponse() if pieces else None
            while response is not None and row.pieces_in(content) < pieces:
                content += response.read1(65536)
        until(lambda: fleet.second.tally()["open"] == len(ROWS))
    until(lambda: fleet.second.tally()["open"] == 0)
    found = fleet.moves(FAMILIES)
    expected: Moves = Counter()
    for row in ROWS:
        expected += moved_by(row, "second", 499, "client_disconnect", "second client_disconnect")
        if within:
            expected += with_content(row, "second", "second", AFTER - row.before)
            expected[f"stream_ends_total second_{row.api} client_disconnect"] += 1
    assert found == expected


def test_clients_leave_at_random_bytes(fleet):
    """Each request counts once, whole or left, and nothing is left of any."""
    chance, clients = random.Random(1), 12

    def leave(row: Row) -> None:
        for _ in range(clients):
            with row.sent(fleet.gateway, "second") as connection:
                connection.sock.recv(chance.randrange(1, 4000), socket.MSG_WAITALL)

    with ThreadPoolExecutor(len(ROWS)) as pool:
        list(pool.map(leave, ROWS))
    until(lambda: fleet.second.tally()["open"] == 0)
    found = fleet.moves(FAMILIES)
    for row in ROWS:
        request = f"requests_total second_{row.api} {row.name}_second"
        whole, gone = found[f"{request} 200"], found[f"{request} 499"]
        assert whole + gone == clients
        assert found[f"errors_total client_disconnect {row.name}_second"] == gone
