"""Every fault at a backend: what the client gets, what each backend sees, which series move.

The table is walked for streams and whole responses, with one backend, with two, and with a fallback
model.
"""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
import pytest

from nexus.config import Config
from nexus.config.records import Server
from nexus.config.routing_records import CircuitBreaker, Routing
from nexus.errors import FAULTS
from tests.support.load import ParsedRequest, chat, run
from tests.support.metrics import moved
from tests.support.processes import ROOT, Demo, Workers, backend, free_port

pytestmark = pytest.mark.e2e

COUNTED = (
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_upstream_attempts_total",
    "nexus_retries_total",
    "nexus_fallbacks_total",
)
MAX_RETRIES = 1
ROUTING = Routing(
    strategy="priority_only", max_retries=MAX_RETRIES, fallbacks={"main": ["standby"]}
)
CONFIG = Config(
    server=Server(request_timeout_seconds=5, max_answer_bytes=1_000_000),
    routing=ROUTING,
    circuit_breaker=CircuitBreaker(enabled=False),
)
LIMITS = {
    "first_byte_timeout_seconds": 0.4,
    "idle_timeout_seconds": 0.4,
    "connect_timeout_seconds": 5.0,
    "stream_usage": False,
}


@dataclass(frozen=True)
class Case:
    """`fault` is the row of the table; `spec` what the demo backend does, or `place` where its
    address points."""

    fault: str
    spec: str = ""
    place: str = ""
    kind: str = "both"  # or "whole", "stream"
    status: int = 0  # that the client gets, where it is not the row's

    def __str__(self) -> str:
        return f"{self.fault}:{self.spec or self.place}"


CASES = [
    Case("connect_failed", place="closed"),
    Case("dns_failed", place="unknown"),
    Case("connect_timeout", place="full"),
    Case("tls_failed", place="plain"),
    Case("connection_lost", "close"),
    Case("connection_lost", "reset"),
    Case("connection_lost", "break_after=1", kind="whole"),
    Case("connection_lost", "break_after=1", kind="stream"),
    Case("connection_lost", "break_after=0", kind="stream"),
    Case("first_byte_timeout", "hang"),
    Case("first_byte_timeout", "stall_after=1", kind="stream"),
    Case("idle_timeout", "stall_after=1", kind="whole"),
    Case("deadline", "hang", place="patient"),
    Case("backend_key_unusable", place="key"),
    Case("malformed_answer", "malformed"),
    Case("malformed_answer", "status=200,body=html"),
    Case("malformed_answer", "status=200,body=empty"),
    Case("malformed_answer", "status=200,body=cut"),
    Case("malformed_answer", "status=204"),
    Case("answer_too_large", "status=200,body=large,size=2000000"),
    Case("backend_redirects", "status=301"),
    Case("backend_redirects", "status=307,location=/v2/chat"),
    Case("backend_5xx", "status=500"),
    Case("backend_5xx", "status=500,message=CUDA out of memory: not supported"),
    Case("backend_5xx", "status=500,body=stalled"),
    Case("backend_5xx", "status=502,body=dripped"),
    Case("backend_5xx", "status=503,body=html"),
    Case("backend_5xx", "status=599"),
    Case("error_event", "error_after=1", kind="stream"),
    Case("error_event", "status=200"),
    Case("backend_4xx", "error_after=1,error_code=400", kind="stream", status=400),
    Case("backend_4xx", "status=200,error_code=400", status=400),
    Case("backend_4xx", "error_after=1,error_code=501", kind="stream", status=400),
    Case("backend_rate_limited", "error_after=1,error_code=429", kind="stream", status=429),
    Case("backend_rate_limited", "status=200,error_code=429", status=429),
    Case("backend_busy", "error_after=1,error_code=503", kind="stream", status=503),
    Case("backend_refused_key", "error_after=1,error_code=401", kind="stream", status=401),
    Case("backend_rate_limited", "status=429", status=429),
    Case("backend_rate_limited", "status=408", status=408),
    Case("backend_busy", "status=503,retry_after=1", status=503),
    Case("backend_busy", "status=503,message=Loading model", status=503),
    Case("backend_busy", "status=529", status=529),
    Case("backend_busy", "status=500,message=the model is overloaded", status=503),
    Case("backend_refused_key", "status=401", status=401),
    Case("backend_refused_key", "status=402", status=402),
    Case("backend_refused_key", "status=403", status=403),
    Case("backend_lacks_model", "status=404", status=404),
    Case("context_exceeded", "status=400,kind=exceed_context_size_error", status=400),
    Case("context_exceeded", "status=500,message=input is too large to process", status=400),
    Case("backend_4xx", "status=400", status=400),
    Case("backend_4xx", "status=400,body=empty", status=400),
    Case("backend_4xx", "status=413", status=413),
    Case("backend_4xx", "status=422", status=422),
    Case("backend_4xx", "status=418", status=418),
    Case("backend_4xx", "status=501,message=This server does not support embeddings", status=400),
    Case("backend_4xx", "status=500,message=image input is not supported", status=400),
    Case("backend_4xx", "status=500,kind=invalid_request_error", status=400),
    Case("backend_4xx", "status=505", status=400),
]
NO_CONNECTION = {
    "connect_failed": ["nothing listens there"],
    "connect_timeout": ["does not respond; check that it is up"],
    "dns_failed": [
        "the name nobody.invalid is not known",
        "no name server responds for nobody.invalid",
    ],
    "tls_failed": ["does it speak TLS there"],
}
"""What the log says of each, and no client learns."""
ELSEWHERE = {
    "test_bad_input.py": {
        "invalid_json",
        "invalid_request",
        "body_cut_short",
        "body_too_slow",
        "body_too_large",
        "method_not_allowed",
        "unsupported_media_type",
        "model_not_found",
        "capability_mismatch",
    },
    "server/test_browsers.py": {"origin_refused"},
    "proxy/test_messages.py": {"dialect_not_spoken"},
    "proxy/test_translation.py": {"not_translatable", "response_not_stored"},
    "proxy/test_responses.py": {"response_unavailable", "websocket_unsupported"},
    "access/test_limits.py": {"rate_limit_exceeded", "limits_unavailable", "max_tokens_required"},
    "access/test_budgets.py": {"budget_in_flight", "insufficient_quota", "model_unpriced"},
    "access/test_gateway.py": {
        "invalid_api_key",
        "key_expired",
        "key_blocked",
        "ambiguous_credentials",
        "endpoint_not_allowed",
        "model_not_allowed",
    },
    "access/test_block_now.py": {"stream_key_blocked"},
    "server/test_encodings.py": {"unsupported_encoding"},
    "server/test_paths.py": {"endpoint_not_configured"},
    "test_raw_requests.py": {"body_malformed"},
    "test_client_disconnect.py": {"client_gone"},
    "test_queue.py": {"queue_full", "queue_timeout", "at_capacity"},
    "test_policies.py": {"routing_rejected"},
    "routing/test_router.py": {"no_backend", "no_healthy_backend", "fallback_exhausted"},
    "below": {
        "stream_reset",
        "stream_truncated",
        "stream_error",
        "stream_error_busy",
        "stream_error_limits_client",
        "stream_idle",
        "stream_deadline",
        "backend_refused_client",
        "backend_limits_client",
        "out_of_time",
    },
    "test_lifecycle.py": {"shutdown", "stopping"},
    "admin/test_views.py": {"internal"},
    "streams/test_life.py": {"stream_refused"},
    "test_wire.py": {"loop_detected"},
}


def test_every_row_is_walked():
    assert all((ROOT / "tests" / name).is_file() for name in ELSEWHERE if name != "below")
    walked = {case.fault for case in CASES}.union(*ELSEWHERE.values())
    assert walked == FAULTS.keys()


@pytest.fixture(scope="module")
def fleet(module_dir) -> Iterator[tuple[Workers, Demo, Demo]]:
    with (
        Demo(module_dir, name="first", models=["only", "shared", "main"], pace=300) as first,
        Demo(module_dir, name="second", models=["shared", "standby"], pace=0) as second,
        Workers(
            module_dir,
            CONFIG,
            fleet_of(first.url, second.url),
            environ={"BAD_KEY": "sk-two\nlines"},
        ) as workers,
    ):
        yield workers, first, second


def fleet_of(first: str, second: str, **limits):
    return [
        backend("first", first, "only", "shared", "main", priority=1, **{**LIMITS, **limits}),
        backend("second", second, "shared", "standby", **LIMITS),
    ]


@contextmanager
def struck(fleet: tuple[Workers, Demo, Demo], case: Case) -> Iterator[None]:
    """The first backend has the fault; the fleet is published anew, so that each case starts
    without a past."""
    workers, first, second = fleet
    first.fault(case.spec)
    config, backends = CONFIG, fleet_of(first.url, second.url)
    listener = None
    if case.place == "closed":
        backends = fleet_of(f"http://127.0.0.1:{free_port()}", second.url)
    elif case.place == "unknown":
        backends = fleet_of("http://nobody.invalid", second.url)
    elif case.place == "plain":
        backends = fleet_of(first.url.replace("http:", "https:"), second.url)
    elif case.place == "full":
        listener, held = full_listener()
        full = f"http://127.0.0.1:{listener.getsockname()[1]}"
        backends = fleet_of(full, second.url, connect_timeout_seconds=0.3)
    elif case.place == "patient":
        config = msgspec.structs.replace(CONFIG, server=Server(request_timeout_seconds=0.4))
        backends = fleet_of(first.url, second.url, first_byte_timeout_seconds=60.0)
    elif case.place == "key":
        backends = fleet_of(first.url, second.url)
        config_of_first = msgspec.structs.replace(backends[0].config, api_key_env="BAD_KEY")
        backends[0] = msgspec.structs.replace(backends[0], config=config_of_first)
    elif case.place == "limited":
        backends = fleet_of(first.url, second.url, total_timeout_seconds=0.3)
    workers.publish(config, backends)
    try:
        yield
    finally:
        first.fault("")
        if listener is not None:
            for sock in (listener, *held):
                sock.close()


def full_listener() -> tuple[socket.socket, list[socket.socket]]:
    """A port that takes no connection: its queue is full, so the kernel drops what asks for one."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    held = []
    for _ in range(4):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())
        held.append(sock)
    return listener, held


def ask(workers: Workers, ask_: ParsedRequest) -> tuple[int, bytes]:
    got = []
    run(
        workers.port,
        [ask_],
        concurrency=1,
        seen=lambda _, status, content: got.append((status, content)),
    )
    return got[0]


def flat(changes) -> dict[str, float]:
    """Changes as `family{values in label order}` for reading."""
    return {
        f"{name}{{{','.join(v for _, v in sorted(labels))}}}": change
        for (name, labels), change in changes.items()
    }


def code_of(case: Case) -> str | int:
    """The code of the error that the client gets: ours, or the backend's where its response is
    passed on."""
    if not case.status or "body=" in case.spec:
        return case.fault
    code = dict(item.split("=") for item in case.spec.split(",")).get("error_code", "demo_fault")
    return int(code) if code.isdecimal() else code


def asked(demo: Demo, before: int = 0) -> int:
    return sum(demo.tally()["requests"].values()) - before


EACH = pytest.mark.parametrize(
    ("case", "stream"),
    [
        pytest.param(case, stream, id=f"{case}-{'stream' if stream else 'whole'}")
        for case in CASES
        for stream in (False, True)
        if case.kind in ("both", "stream" if stream else "whole")
    ],
)


@EACH
def test_with_one_backend(fleet, case, stream):
    """The client gets the row's answer, after as many attempts as the row allows."""
    workers, first, _ = fleet
    row = FAULTS[case.fault]
    attempts = 1 + MAX_RETRIES if row.retry_same else 1
    status = case.status or row.status
    reached, before, lines = asked(first), workers.settled(), len(workers.lines("request"))
    with struck(fleet, case):
        got, content = ask(workers, chat("x", "only", stream=stream))
        assert got == status
        error = json.loads(content)["error"]
        assert error["code"] == code_of(case)
        label = str(status) if status != 418 else "4xx"
        expected = {
            f"nexus_requests_total{{first,only,{label}}}": 1,
            f"nexus_errors_total{{{row.error_type},only}}": 1,
            f"nexus_upstream_attempts_total{{first,{row.error_type}}}": attempts,
        }
        if attempts > 1:
            expected[f"nexus_retries_total{{first,{row.error_type}}}"] = attempts - 1
        assert flat(moved(before, workers.settled(), COUNTED)) == expected
        assert asked(first, reached) == (0 if case.place and case.place != "patient" else attempts)
    line = workers.request_line(lines)
    assert (line["fault"], line["attempts"], line["status"]) == (case.fault, attempts, status)
    if case.fault in NO_CONNECTION:
        [why, *_] = [
            failed["why"]
            for failed in workers.lines("attempt failed")
            if failed["id"] == line["id"]
        ]
        assert any(words in why for words in NO_CONNECTION[case.fault]), why
        assert why not in error["message"], "an address is no client's business"


@EACH
def test_with_another_backend(fleet, case, stream):
    """Where another backend may help, the client notices nothing; the attempts tell."""
    workers, _, second = fleet
    row = FAULTS[case.fault]
    reached, before = asked(second), workers.settled()
    with struck(fleet, case):
        got, content = ask(workers, chat("x", "shared", stream=stream))
        changes = flat(moved(before, workers.settled(), COUNTED))
    if row.retry:
        assert got == 200, content
        assert (
            (content.count(b'"role"') == 1 and content.endswith(b"[DONE]\n\n"))
            if stream
            else json.loads(content)
        )
        assert b'"error"' not in content
        assert changes == {
            "nexus_requests_total{second,shared,200}": 1,
            f"nexus_upstream_attempts_total{{first,{row.error_type}}}": 1,
            f"nexus_retries_total{{first,{row.error_type}}}": 1,
            "nexus_upstream_attempts_total{second,ok}": 1,
        }
    else:
        assert got == (case.status or row.status)
        assert changes[f"nexus_upstream_attempts_total{{first,{row.error_type}}}"] == 1
        assert len(changes) == 3
    assert asked(second, reached) == row.retry


@EACH
def test_with_a_fallback_model(fleet, case, stream):
    """The same where only another model can stand in, and that is reported."""
    workers, _, second = fleet
    row = FAULTS[case.fault]
    reached, before = asked(second), workers.settled()
    with struck(fleet, case):
        got, content = ask(workers, chat("x", "main", stream=stream))
        changes = flat(moved(before, workers.settled(), COUNTED))
    if row.retry:
        assert got == 200, content
        assert changes == {
            "nexus_requests_total{second,standby,200}": 1,
            "nexus_fallbacks_total{main,standby}": 1,
            f"nexus_upstream_attempts_total{{first,{row.error_type}}}": 1,
            f"nexus_retries_total{{first,{row.error_type}}}": 1,
            "nexus_upstream_attempts_total{second,ok}": 1,
        }
    else:
        assert got == (case.status or row.status)
        assert changes[f"nexus_errors_total{{{row.error_type},main}}"] == 1
        assert len(changes) == 3
    assert asked(second, reached) == row.retry


@pytest.mark.parametrize("model", ["only", "shared", "main"])
@pytest.mark.parametrize(
    ("fault", "spec"),
    [
        ("stream_reset", "break_after=5"),
        ("stream_idle", "stall_after=5"),
        ("stream_error", "error_after=5"),
        ("stream_error", "error_after=5,error_code=400"),
        ("stream_error_busy", "error_after=5,error_code=429"),
        ("stream_truncated", "no_done=1"),
        ("stream_deadline", "stall_after=5"),
    ],
)
def test_stream_that_breaks_after_its_first_content(fleet, fault, spec, model):
    """The client saw 200 and an error in the stream; it is counted by what became of it, and
    never tried again."""
    workers, _, _ = fleet
    row = FAULTS[fault]
    before, lines = workers.settled(), len(workers.lines("request"))
    with struck(fleet, Case(fault, spec, place="limited" if fault == "stream_deadline" else "")):
        got, content = ask(workers, chat("x", model, stream=True))
        assert got == 200
        events = [line.removeprefix(b"data: ") for line in content.split(b"\n\n") if line]
        errors = [json.loads(event)["error"] for event in events if b'"error"' in event]
        assert len(errors) == 1
        assert errors[0]["message"]
        assert flat(moved(before, workers.settled(), (*COUNTED, "nexus_stream_ends_total"))) == {
            f"nexus_requests_total{{first,{model},{row.status}}}": 1,
            f"nexus_errors_total{{{row.error_type},{model}}}": 1,
            f"nexus_upstream_attempts_total{{first,{row.error_type}}}": 1,
            f"nexus_stream_ends_total{{first,{row.stream_end}}}": 1,
        }
    line = workers.request_line(lines)
    assert (line["fault"], line["end"]) == (fault, row.stream_end)


def test_a_clients_own_key_that_is_refused_is_not_tried_elsewhere(fleet):
    workers, first, second = fleet
    workers.publish(CONFIG, fleet_of(first.url, second.url, forward_authorization=True))
    first.fault("status=401")
    before, lines = workers.settled(), len(workers.lines("request"))
    assert urllib_request(workers, "shared", {"authorization": "Bearer wrong"})[0] == 401
    assert flat(moved(before, workers.settled(), COUNTED)) == {
        "nexus_requests_total{first,shared,401}": 1,
        "nexus_errors_total{upstream_auth,shared}": 1,
        "nexus_upstream_attempts_total{first,upstream_auth}": 1,
    }
    assert workers.request_line(lines)["fault"] == "backend_refused_client"
    first.fault("")


def test_a_clients_own_key_is_not_in_the_log(fleet):
    workers, first, second = fleet
    workers.publish(CONFIG, fleet_of(first.url, second.url, forward_authorization=True))
    key = "sk-canary-of-the-client"
    first.fault(f"status=500,message=the key {key} broke it")
    failed = len(workers.lines("attempt failed"))
    urllib_request(workers, "shared", {"authorization": f"Bearer {key}"})
    [line] = workers.lines("attempt failed")[failed:]
    assert line["why"].endswith("the key*** broke it")
    assert key not in workers.output()
    first.fault("")


@pytest.mark.parametrize("spec", ["status=429,retry_after=40", "status=200,error_code=429"])
def test_a_clients_own_limit_is_nobody_elses(fleet, spec):
    """One client's key has spent its quota: the next client is served by the same backend at
    once."""
    workers, first, second = fleet
    workers.publish(CONFIG, fleet_of(first.url, second.url, forward_authorization=True))
    first.fault(spec)
    lines = len(workers.lines("request"))
    assert urllib_request(workers, "only", {"authorization": "Bearer poor"})[0] == 429
    assert workers.request_line(lines)["fault"] == "backend_limits_client"
    first.fault("")
    assert urllib_request(workers, "only", {"authorization": "Bearer rich"})[0] == 200


def test_a_clients_own_limit_within_a_stream_speaks_against_no_backend(fleet):
    workers, first, second = fleet
    config = msgspec.structs.replace(CONFIG, circuit_breaker=CircuitBreaker(failures=1))
    workers.publish(config, fleet_of(first.url, second.url, forward_authorization=True))
    first.fault("error_after=5,error_code=429")
    before = workers.settled()
    for _ in range(2):
        assert (
            urllib_request(workers, "only", {"authorization": "Bearer poor"}, stream=True)[0] == 200
        )
    row = FAULTS["stream_error_limits_client"]
    assert flat(moved(before, workers.settled(), (*COUNTED, "nexus_stream_ends_total"))) == {
        f"nexus_requests_total{{first,only,{row.status}}}": 2,
        f"nexus_errors_total{{{row.error_type},only}}": 2,
        f"nexus_upstream_attempts_total{{first,{row.error_type}}}": 2,
        f"nexus_stream_ends_total{{first,{row.stream_end}}}": 2,
    }
    first.fault("")


def test_a_backend_is_not_blamed_for_time_that_another_took(fleet):
    """The first one hangs until its limit; what is left is too little for the second, which is
    well."""
    workers, first, second = fleet
    config = msgspec.structs.replace(
        CONFIG,
        server=Server(request_timeout_seconds=0.8),
        circuit_breaker=CircuitBreaker(failures=1),
    )
    workers.publish(config, fleet_of(first.url, second.url))
    first.fault("hang")
    second.fault("delay=0.39")
    backends = fleet_of(first.url, second.url, first_byte_timeout_seconds=0.6)
    workers.publish(config, backends)
    lines = len(workers.lines("request"))
    assert urllib_request(workers, "shared", {})[0] == 504
    assert workers.request_line(lines)["fault"] == "out_of_time"
    first.fault("")
    second.fault("")
    stats = {entry["id"]: entry["circuit"] for entry in workers.stats()["backends"]}
    assert (stats["first"], stats["second"]) == ("open", "closed")


def urllib_request(
    workers: Workers, model: str, headers: dict[str, str], *, stream: bool = False
) -> tuple[int, dict[str, str], bytes]:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", workers.port, timeout=30)
    connection.request(
        "POST",
        "/v1/chat/completions",
        json.dumps(chat("x", model, stream=stream).body),
        {"content-type": "application/json", **headers},
    )
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


def test_what_the_client_learns_about_trying_again(fleet):
    """OpenAI's clients retry 5xx by themselves: where that is of no use they are told so, else
    when it is."""
    workers, first, second = fleet
    workers.publish(CONFIG, fleet_of(first.url, second.url))
    first.fault("status=500")
    status, headers, _ = urllib_request(workers, "only", {})
    assert (status, headers["x-should-retry"], headers.get("retry-after")) == (502, "false", None)
    first.fault("status=429,retry_after=7")
    status, headers, content = urllib_request(workers, "only", {})
    assert (status, headers["retry-after"]) == (429, "7"), (
        "it is not worth waiting for here; the client is told when"
    )
    assert json.loads(content)["error"]["code"] == "demo_fault"
    workers.publish(CONFIG, fleet_of(first.url, second.url))
    first.fault("status=429")
    status, headers, _ = urllib_request(workers, "only", {})
    assert (status, headers["retry-after"]) == (429, "1"), (
        "where the backend does not say, for as long as it is left alone"
    )
    first.fault("")


def test_busy_everywhere_gives_the_backends_own_response(fleet):
    workers, first, second = fleet
    workers.publish(CONFIG, fleet_of(first.url, second.url))
    for demo in (first, second):
        demo.fault("status=429,retry_after=7")
    got, content = ask(workers, chat("x", "shared"))
    for demo in (first, second):
        demo.fault("")
    assert got == 429
    assert json.loads(content)["error"]["code"] == "demo_fault"
