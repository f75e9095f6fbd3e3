"""What goes wrong at a backend: what the client gets, what is tried instead, which series move."""

import json

import pytest

from tests.support.figures import moved
from tests.support.load import Ask, chat, run
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

COUNTED = (
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_upstream_attempts_total",
    "nexus_retries_total",
    "nexus_fallbacks_total",
)


@pytest.fixture(scope="module")
def gateway(module_dir):
    settings = {"first_byte_timeout_seconds": 0.5, "idle_timeout_seconds": 0.5}
    with (
        Demo(module_dir, name="alone", models=["alone"], pace=0) as alone,
        Demo(module_dir, name="first", models=["shared"], pace=300) as first,
        Demo(module_dir, name="second", models=["shared", "standby"], pace=0) as second,
        Gateway(
            module_dir,
            backend_toml(alone, first, second, **settings).replace(
                f'url = "{first.url}"', f'url = "{first.url}"\npriority = 1'
            )
            + '[routing]\nstrategy = "priority_only"\n[routing.fallbacks]\nlonely = ["standby"]\n',
        ) as gateway,
    ):
        gateway.demos = {"alone": alone, "first": first, "second": second}
        yield gateway


def ask(gateway, ask_: Ask) -> tuple[int, bytes]:
    got = []
    run(gateway.port, [ask_], concurrency=1, seen=lambda _, status, content: got.append((status, content)))
    return got[0]


def flat(changes) -> dict[str, float]:
    """Changes as `family{values in label order}` for reading."""
    return {f"{name}{{{','.join(v for _, v in sorted(labels))}}}": change for (name, labels), change in changes.items()}


FATAL = [
    # the fault of the only backend, the status for the client, error_type
    ("status=500", 502, "backend_error"),
    ("status=503", 502, "backend_error"),
    ("status=400", 400, "invalid_request"),
    ("status=404", 404, "invalid_request"),
    ("status=422", 422, "invalid_request"),
    ("status=418", 418, "invalid_request"),
    ("status=401", 401, "upstream_auth"),
    ("status=429", 429, "rate_limited"),
    ("status=301", 502, "backend_error"),
    ("close", 502, "backend_error"),
    ("reset", 502, "backend_error"),
    ("malformed", 502, "backend_error"),
    ("hang", 504, "timeout"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("fault", "status", "error_type"), FATAL, ids=[f[0] for f in FATAL])
def test_with_one_backend(gateway, fault, status, error_type, stream):
    gateway.demos["alone"].fault(fault)
    before = gateway.settled()
    got, content = ask(gateway, chat("x", "alone", stream=stream))
    assert got == status
    error = json.loads(content)["error"]
    assert error["code"] == "demo_fault" if status in (400, 401, 404, 418, 422, 429) else error["message"]
    label = "4xx" if status == 418 else str(status)
    assert flat(moved(before, gateway.settled(), COUNTED)) == {
        f"nexus_requests_total{{alone,alone,{label}}}": 1,
        f"nexus_errors_total{{{error_type},alone}}": 1,
        f"nexus_upstream_attempts_total{{alone,{error_type}}}": 1,
    }


def test_answer_without_a_body_is_a_success(gateway):
    gateway.demos["alone"].fault("status=204")
    before = gateway.settled()
    assert ask(gateway, chat("x", "alone")) == (204, b"")
    assert flat(moved(before, gateway.settled(), COUNTED)) == {
        "nexus_requests_total{alone,alone,2xx}": 1,
        "nexus_upstream_attempts_total{alone,ok}": 1,
    }


RETRIED = [row for row in FATAL if row[2] not in ("invalid_request", "upstream_auth")]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("fault", "_status", "error_type"), RETRIED, ids=[f[0] for f in RETRIED])
def test_with_another_backend(gateway, fault, _status, error_type, stream):
    """The client notices nothing; the attempts tell."""
    gateway.demos["first"].fault(fault)
    before = gateway.settled()
    got, content = ask(gateway, chat("x", "shared", stream=stream))
    assert got == 200, content
    assert flat(moved(before, gateway.settled(), COUNTED)) == {
        "nexus_requests_total{second,shared,200}": 1,
        f"nexus_upstream_attempts_total{{first,{error_type}}}": 1,
        f"nexus_retries_total{{first,{error_type}}}": 1,
        "nexus_upstream_attempts_total{second,ok}": 1,
    }


def test_the_clients_own_fault_is_not_retried(gateway):
    gateway.demos["first"].fault("status=400")
    before = gateway.settled()
    assert ask(gateway, chat("x", "shared"))[0] == 400
    assert flat(moved(before, gateway.settled(), ("nexus_upstream_attempts_total",))) == {
        "nexus_upstream_attempts_total{first,invalid_request}": 1
    }


@pytest.mark.parametrize(
    ("fault", "status", "error_type"),
    [
        ("break_after=5", 502, "stream_interrupted"),
        ("stall_after=5", 504, "timeout"),
        ("error_after=5", 502, "stream_interrupted"),
        ("no_done=1", 502, "stream_interrupted"),
    ],
)
def test_stream_that_breaks_after_its_first_content(gateway, fault, status, error_type):
    """The client saw 200 and an error in the stream; it is counted by what became of it, and never retried."""
    gateway.demos["first"].fault(fault)
    before = gateway.settled()
    got, content = ask(gateway, chat("x", "shared", stream=True))
    assert got == 200
    events = [line.removeprefix(b"data: ") for line in content.split(b"\n\n") if line]
    errors = [json.loads(event)["error"] for event in events if b'"error"' in event]
    assert len(errors) == 1
    assert errors[0]["message"]
    assert flat(moved(before, gateway.settled(), COUNTED)) == {
        f"nexus_requests_total{{first,shared,{status}}}": 1,
        f"nexus_errors_total{{{error_type},shared}}": 1,
        f"nexus_upstream_attempts_total{{first,{error_type}}}": 1,
    }


@pytest.mark.parametrize("fault", ["break_after=1", "error_after=1", "stall_after=1"])
def test_stream_that_breaks_before_any_content(gateway, fault):
    """Only the role had come: another backend serves, and the client sees one clean stream."""
    gateway.demos["first"].fault(fault)
    got, content = ask(gateway, chat("x", "shared", stream=True))
    assert got == 200
    assert content.endswith(b"data: [DONE]\n\n")
    assert content.count(b'"role"') == 1
    assert b'"error"' not in content


def test_answer_cut_short_is_tried_again(gateway):
    gateway.demos["first"].fault("break_after=1")
    got, content = ask(gateway, chat("x", "shared"))
    assert got == 200
    assert json.loads(content)["choices"]


def test_fallback_model_serves(gateway):
    before = gateway.settled()
    got, content = ask(gateway, chat("x", "lonely"))
    assert got == 200
    assert json.loads(content)["model"] == "standby"
    assert flat(moved(before, gateway.settled(), COUNTED)) == {
        "nexus_requests_total{second,standby,200}": 1,
        "nexus_fallbacks_total{lonely,standby}": 1,
        "nexus_upstream_attempts_total{second,ok}": 1,
    }


def test_busy_everywhere_gives_the_backends_own_answer(gateway):
    for name in ("first", "second"):
        gateway.demos[name].fault("status=429,retry_after=7")
    got, content = ask(gateway, chat("x", "shared"))
    gateway.demos["second"].fault("")
    assert got == 429
    assert json.loads(content)["error"]["code"] == "demo_fault"


def test_connections_survive_a_backends_restart(gateway, module_dir):
    """A kept connection that died meanwhile is replaced without the client or another backend noticing."""
    gateway.demos["first"].fault("")
    assert ask(gateway, chat("x", "shared"))[0] == 200
    old = gateway.demos["first"]
    old.stop()
    with Demo(module_dir, name="first", models=["shared"], pace=0, port=old.port):
        before = gateway.settled()
        assert [ask(gateway, chat("x", "shared"))[0] for _ in range(4)] == [200] * 4
        attempts = moved(before, gateway.settled(), ("nexus_upstream_attempts_total",))
        assert flat(attempts) == {"nexus_upstream_attempts_total{first,ok}": 4}
