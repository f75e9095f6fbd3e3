"""What counts as a response, and what of a backend's words reaches the client: over the fast path
and through Flask.

Two backends: the first misbehaves as the request's header says, the second serves the model
`shared` as well.
"""

import json
import time
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest

from nexus.http.credentials import CREDENTIALS
from tests.support.load import chat
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

KEY = "sk-canary/0123456789"
COUNTED = (
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_upstream_attempts_total",
    "nexus_retries_total",
)
CONFIG = """
[routing]
strategy = "priority_only"
max_retries = 1
[queue]
enabled = false
[circuit_breaker]
enabled = false
"""
HTML = "status=200,body=html"


@pytest.fixture(scope="module")
def fleet(module_dir) -> Iterator[tuple[Gateway, Demo, Demo]]:
    with (
        Demo(module_dir, name="first", models=["only", "shared"], pace=100) as first,
        Demo(module_dir, name="second", models=["shared"], pace=0) as second,
        Gateway(
            module_dir,
            backend_toml(first, priority=1, api_key_env="FIRST_KEY", forward_authorization=True)
            + backend_toml(second, priority=2, forward_authorization=True)
            + CONFIG,
            server="max_answer_bytes = 1000000",
            environ={"FIRST_KEY": KEY},
        ) as gateway,
    ):
        yield gateway, first, second


@pytest.fixture(params=["fast path", "Flask"])
def way(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def well_again(fleet) -> Iterator[None]:
    """After each test the first backend is well, and the gateway knows it."""
    yield
    gateway, first, _ = fleet
    first.fault("")
    for model in ("only", "shared"):
        until(
            lambda model=model: (
                b"first" in ask(gateway, model, "fast path")[1]["x-nexus-backend"].encode()
            )
        )
    gateway.settled()


def ask(
    gateway: Gateway, model: str, way: str, *, stream: bool = False, **more: str
) -> tuple[int, dict[str, str], bytes]:
    body = json.dumps(chat("x", model, stream=stream).body).encode()
    connection = HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    headers = {"content-type": "application/json", **more}
    if way == "Flask":  # which serves what comes in chunks
        connection.request(
            "POST", "/v1/chat/completions", iter([body]), headers, encode_chunked=True
        )
    else:
        connection.request("POST", "/v1/chat/completions", body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


def flat(changes) -> dict[str, float]:
    return {
        f"{name}{{{','.join(v for _, v in sorted(labels))}}}": change
        for (name, labels), change in changes.items()
    }


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (HTML, "an HTML page, 'Tunnel offline'"),
        ("status=200,body=empty", "no body"),
        ("status=204", "no body"),
        ("status=205,body=empty", "no body"),
        ("status=200,body=cut", "what is not JSON"),
        ("status=200,body=large,size=1500000", "over 1000000 bytes"),
        ("status=500,message=CUDA out of memory", "CUDA out of memory"),
        ("status=500,body=stalled", "responded 500"),
        ("status=307,location=https://elsewhere/v1", "points to https://elsewhere/v1"),
    ],
)
def test_failure_of_a_backend(fleet, fault, words, stream, way):
    """Alone, its client gets a 502 with its words, which the log has as well; beside another
    one, nobody notices."""
    gateway, first, _ = fleet
    first.fault(fault)
    lines, before = len(gateway.lines("attempt failed")), gateway.settled()
    status, headers, content = ask(gateway, "only", way, stream=stream)
    assert (status, headers["content-type"]) == (502, "application/json")
    assert words in json.loads(content)["error"]["message"]
    attempts = 1 if "large" in fault or "307" in fault else 2
    assert flat(moved(before, gateway.settled(), COUNTED)) == {
        "nexus_requests_total{first,only,502}": 1,
        "nexus_errors_total{backend_error,only}": 1,
        "nexus_upstream_attempts_total{first,backend_error}": attempts,
        **({"nexus_retries_total{first,backend_error}": 1} if attempts > 1 else {}),
    }
    if "large" not in fault:
        assert all(words in line["why"] for line in gateway.lines("attempt failed")[lines:])
        before = gateway.settled()
        status, _, content = ask(gateway, "shared", way, stream=stream)
        assert (status, b'"error"' in content) == (200, False)
        assert flat(moved(before, gateway.settled(), COUNTED)) == {
            "nexus_requests_total{second,shared,200}": 1,
            "nexus_upstream_attempts_total{first,backend_error}": 1,
            "nexus_upstream_attempts_total{second,ok}": 1,
            "nexus_retries_total{first,backend_error}": 1,
        }


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("fault", ["status=200,body=nan", "status=200,body=unclosed"])
def test_what_is_a_response_all_the_same(fleet, fault, stream, way):
    """JSON as servers write it, and one whose end is that of the connection; to a request for a
    stream, too."""
    gateway, first, _ = fleet
    first.fault(fault)
    before = gateway.settled()
    status, _, content = ask(gateway, "only", way, stream=stream)
    assert (status, content[:1] + content[-1:]) == (200, b"{}")
    assert flat(moved(before, gateway.settled(), COUNTED)) == {
        "nexus_requests_total{first,only,200}": 1,
        "nexus_upstream_attempts_total{first,ok}": 1,
    }


@pytest.mark.parametrize("body", ["stalled", "dripped"])
@pytest.mark.parametrize("status", [500, 429, 404])
def test_body_of_a_failed_response_is_not_waited_for(fleet, status, body, way):
    gateway, first, _ = fleet
    first.fault(f"status={status},body={body}")
    started = time.monotonic()
    assert ask(gateway, "shared", way)[0] == 200
    assert time.monotonic() - started < 20, "which is far less than its end would take"


@pytest.mark.parametrize(("status", "shown"), [(400, 400), (422, 422), (501, 400)])
def test_client_error_whose_body_does_not_come(fleet, status, shown, way):
    gateway, first, _ = fleet
    first.fault(f"status={status},body=stalled")
    got, _, content = ask(gateway, "shared", way)
    assert got == shown
    assert json.loads(content)["error"]["message"].startswith(f"Backend first responded {status}")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "status=501,message=This server does not support embeddings",
            "This server does not support embeddings",
        ),
        ("status=500,message=image input is not supported", "image input is not supported"),
        ("status=413", "/v1/chat/completions fails as asked"),
    ],
)
def test_clients_own_mistake_is_sent_once_and_reported_in_the_backends_words(
    fleet, fault, message, way
):
    gateway, first, _ = fleet
    first.fault(fault)
    before = gateway.settled()
    status, _, content = ask(gateway, "shared", way)
    assert json.loads(content)["error"]["message"] == message
    assert flat(moved(before, gateway.settled(), COUNTED)) == {
        f"nexus_requests_total{{first,shared,{status}}}": 1,
        "nexus_errors_total{invalid_request,shared}": 1,
        "nexus_upstream_attempts_total{first,invalid_request}": 1,
    }
    assert 400 <= status < 500


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (401, 401),
        (402, 402),
        (400, 400),
        (404, 404),
        (429, 429),
        (500, 502),
        (200, 502),
        (503, 503),
    ],
)
def test_gateways_own_key_is_in_nothing_that_comes_back(fleet, status, shown, stream, way):
    gateway, first, _ = fleet
    first.fault(f"status={status},body=echo")
    got, headers, content = ask(gateway, "only", way, stream=stream)
    assert got == shown
    assert b"wrong key: Bearer ***" in content
    assert KEY.encode() not in content
    assert KEY not in str(headers)
    assert KEY not in gateway.output()


def test_credentials_reach_the_backend_that_they_are_for_whichever_is_tried(fleet, way):
    """The first gets the gateway's key alone; the second, which is tried after it, the client's
    alone."""
    gateway, first, second = fleet
    first.fault("status=500")
    clients = dict.fromkeys(CREDENTIALS, "sk-of-the-client")
    assert ask(gateway, "shared", way, **clients)[0] == 200
    got = [{name: demo.last()["headers"].get(name) for name in clients} for demo in (first, second)]
    assert got == [dict.fromkeys(clients) | {"authorization": f"Bearer {KEY}"}, clients]


def test_gateways_own_key_is_masked_within_a_stream(fleet, way):
    gateway, first, _ = fleet
    first.fault("error_after=5,body=echo")
    status, _, content = ask(gateway, "only", way, stream=True)
    assert status == 200
    assert b"wrong key: Bearer ***" in content
    assert KEY.encode() not in content
    assert KEY not in gateway.output()


@pytest.mark.parametrize(
    "fault", ["status=503,message=Loading model", "status=529", "status=500,message=overloaded"]
)
def test_busy_backend_says_when_to_come_back(fleet, fault, way):
    gateway, first, _ = fleet
    first.fault(fault)
    status, headers, content = ask(gateway, "only", way)
    assert status in (503, 529)
    assert headers["retry-after"] == "1"
    assert headers.get("x-should-retry") != "false"
    assert json.loads(content)["error"]["code"] == "demo_fault"
    assert ask(gateway, "shared", way)[0] == 200


@pytest.mark.parametrize("status", [401, 403, 429])
def test_a_client_is_not_blamed_for_the_gateways_own_key(fleet, way, status):
    """The client's key does not go to a backend for which the gateway has one of its own."""
    gateway, first, _ = fleet
    first.fault(f"status={status}")
    answered, headers, _ = ask(gateway, "shared", way, authorization="Bearer the-client")
    assert (answered, headers["x-nexus-backend"]) == (200, "second")
    assert first.last()["headers"]["authorization"] == f"Bearer {KEY}"


def test_empty_lines_without_an_end_are_bounded(fleet, way):
    """Where a stream was requested, they could still become one."""
    gateway, first, _ = fleet
    first.fault("status=200,body=blank")
    answered, _, content = ask(gateway, "only", way, stream=True)
    assert (answered, json.loads(content)["error"]["code"]) == (502, "answer_too_large")
