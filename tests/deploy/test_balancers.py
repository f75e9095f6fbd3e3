"""nginx, haproxy and Apache, started with the files of deploy/ in front of real gateways."""

import asyncio
import contextlib
import http.client
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus.config.access_records import Identity
from nexus.proxy.endpoints import ENDPOINTS
from tests.proxy.test_responses import WEBSOCKET
from tests.support.balancers import PUBLIC, Apache, Balancer, Haproxy, Nginx
from tests.support.clients import CHAT, JSON, Asking, Load, answers, ask_once, body, new_id, stream
from tests.support.metrics import Scrape
from tests.support.polling import until
from tests.support.processes import ROOT, Gateway, backend_toml, clean_environ
from tests.support.timed import MODEL, Timed

pytestmark = pytest.mark.e2e

NOT_APACHE = [Nginx, Haproxy]
"""Apache has no limits for each address, and notices a disconnect only when it writes."""


@pytest.fixture(scope="module")
def backend(module_dir: Path) -> Iterator[Timed]:
    with Timed(module_dir) as backend:
        yield backend


@pytest.fixture(scope="module")
def gateways(module_dir: Path, backend: Timed) -> Iterator[list[Gateway]]:
    with contextlib.ExitStack() as stack:
        gateways = []
        for name in ("gateway-1", "gateway-2"):
            (module_dir / name).mkdir()
            gateways.append(Gateway(module_dir / name, backend_toml(backend), ready=False))
            stack.enter_context(gateways[-1])
        for gateway in gateways:
            gateway.wait_ready()
        yield gateways


@pytest.fixture(scope="module", params=[Nginx, Haproxy, Apache])
def kind(request: pytest.FixtureRequest) -> type[Nginx | Haproxy | Apache]:
    return request.param


@pytest.fixture(scope="module")
def balancer(
    kind: type[Nginx | Haproxy | Apache], module_dir: Path, gateways: list[Gateway]
) -> Iterator[Balancer]:
    with kind(module_dir / kind.__name__, gateways) as balancer:
        yield balancer


@pytest.fixture(scope="module")
def before_one(
    kind: type[Nginx | Haproxy | Apache], module_dir: Path, gateways: list[Gateway]
) -> Iterator[Balancer]:
    with kind(module_dir / f"{kind.__name__}-one", gateways[:1]) as balancer:
        yield balancer


# What clients reach


def test_the_files_are_taken_without_a_complaint(balancer: Balancer, before_one: Balancer):
    for each in (balancer, before_one):
        assert not [line for line in each.verdict.splitlines() if "warn" in line.lower()]


def test_no_client_can_say_who_it_is():
    nginx = (ROOT / "deploy/nginx/proxy.conf").read_text()
    haproxy = (ROOT / "deploy/haproxy/nexus.cfg").read_text()
    apache = (ROOT / "deploy/apache/proxy.conf").read_text()
    assert "http-request del-header x-forwarded- -m beg\n" in haproxy
    for name in (Identity().user, Identity().teams):
        assert f'proxy_set_header {name} "";' in nginx
        assert f"RequestHeader unset {name}\n" in apache
        assert name.lower().startswith("x-forwarded-")


PRIVATE = [
    "/",
    "/metrics",
    "/v1/stats",
    "/v1/history",
    "/v1/live",
    "/assets/dashboard.js",
    "/admin/backends",
    "/openapi.json",
    "/health",
    "/livez",
    "/readyz",
    "/readyz?verbose",
    "/v1/%73tats",
    "/v1//stats",
    "//metrics",
    "/v1/models/../stats",
    "/v1/models/..%2fstats",
    "/%6detrics",
    "/V1/STATS",
    "/v1/chat/completions/../../stats",
]


def test_what_is_for_operators_is_not_there_for_clients(
    balancer: Balancer, gateways: list[Gateway]
):
    before = sum(gateway.scrape().total("nexus_http_rejected_total") for gateway in gateways)
    for path in PRIVATE:
        status, _, content = balancer.get(path)
        assert status == 404, path
        assert json.loads(content)["error"]["code"] in ("not_found", "model_not_found"), path
    assert (
        sum(gateway.scrape().total("nexus_http_rejected_total") for gateway in gateways) == before
    )


def test_every_endpoint_is_there_for_clients(balancer: Balancer):
    """The gateway itself says what is wrong with an empty request."""
    with contextlib.closing(balancer.connect()) as client:
        for endpoint in ENDPOINTS:
            if not endpoint.by_model:
                client.request(endpoint.methods[0], endpoint.path.replace("{id}", "resp_1"))
                answer = client.getresponse()
                assert answer.read()
                assert answer.headers["x-request-id"], "the gateway's, not the balancer's"
                continue
            said = 400, "invalid_request"
            if JSON["content-type"] not in endpoint.content_types:
                said = 415, "unsupported_media_type"
            short = endpoint.path.removeprefix("/v1")
            before = ("", "/openai/v1", "/openai/deployments/any")
            for path in (endpoint.path, *(prefix + short for prefix in before)):
                client.request("POST", path, b"{}", JSON)
                answer = client.getresponse()
                found = answer.status, json.loads(answer.read())["error"]["code"]
                assert (path, *found) == (path, *said)
            for path in endpoint.other_paths:
                client.request("POST", path, b"{}", JSON)
                answer = client.getresponse()
                assert (answer.status, len(answer.read()) > 0) == (said[0], True)
    for path in ("/v1/key", "/v1/models", "/models", f"/v1/models/{MODEL}"):
        assert balancer.get(path)[0] == 200
    for path in ("/v1/models/org/other", "/v1/models/org%2Fother"):
        status, _, content = balancer.get(path)
        assert (status, b"'org/other'" in content) == (404, True), path


def test_a_slow_body_does_not_reach_a_gateway(balancer: Balancer, gateways: list[Gateway]):
    """The balancer keeps it until it is there: so it holds nothing at the gateway."""
    before = served(balancer)
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: 9999\r\n\r\n"
    )
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            slow = stack.enter_context(contextlib.closing(balancer.connect()))
            slow.connect()
            slow.sock.sendall(head.encode() + b"x")
        for _ in range(4):
            assert ask_once(balancer)[0] == 200
        for gateway in gateways:
            gateway.settled()
        assert sum(served(balancer)) == sum(before) + 4


def served(balancer: Balancer) -> list[float]:
    """How many requests each gateway has started, as its port for operators shows."""
    contents = [
        balancer.get("/metrics", port=port, source="127.0.0.1")[2] for port in balancer.operators
    ]
    return [Scrape(content.decode()).total("nexus_requests_started_total") for content in contents]


def test_each_gateway_has_its_own_port_for_operators(balancer: Balancer, gateways: list[Gateway]):
    for number, gateway in enumerate(gateways):
        before = served(balancer)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", gateway.port)) as client:
            client.request("POST", CHAT, body(), JSON)
            assert client.getresponse().read()
        gateway.settled()
        assert [now - then for now, then in zip(served(balancer), before, strict=True)] == [
            number == 0,
            number == 1,
        ]


@pytest.mark.parametrize("source", ["127.0.0.1", PUBLIC])
def test_the_operators_port_is_for_those_that_it_names(
    balancer: Balancer, before_one: Balancer, source: str
):
    known = source != PUBLIC
    for port in balancer.operators:
        assert balancer.get("/metrics", port=port, source=source)[0] == (200 if known else 403)
    (port,) = before_one.operators
    for path, allowed in (("/", 200), ("/v1/stats", 200), ("/admin/backends", 401)):
        assert before_one.get(path, port=port, source=source)[0] == (allowed if known else 403)


def logged(balancer: Balancer, request_id: str) -> list[tuple[str, str, str]]:
    """Client, path and status of each line that the balancer has logged of a request."""
    lines = [line for line in map(json.loads, balancer.lines()) if line["request_id"] == request_id]
    return [(line["client"], line["path"], str(line["status"])) for line in lines]


@pytest.mark.parametrize("given", ['one-"of-theirs"', "not one", ""])
def test_request_ids(balancer: Balancer, backend: Timed, gateways: list[Gateway], given: str):
    """A client's own is taken where it can be one; it, or a new one, arrives everywhere."""
    before = backend.asked()
    with contextlib.closing(balancer.connect()) as client:
        client.request("POST", CHAT, body(), {**JSON, **({"x-request-id": given} if given else {})})
        answer = client.getresponse()
        answer.read()
    shown = answer.getheader("x-request-id", "")
    assert (
        shown == given if given.startswith("one") else re.fullmatch(r"[0-9A-Za-z@_-]{24,36}", shown)
    )
    until(lambda: backend.asked() - before == {shown: 1})
    until(
        lambda: [
            line for gateway in gateways for line in gateway.lines("request") if line["id"] == shown
        ]
    )
    assert until(lambda: logged(balancer, shown))[-1] == (PUBLIC, CHAT, "200")


def test_errors_of_the_balancer_have_request_ids(balancer: Balancer):
    _, headers, _ = balancer.get("/metrics")
    assert re.fullmatch(r"[0-9A-Za-z@_-]{24,36}", headers["x-request-id"])


LONG = b"a" * 9000
UNREADABLE = {
    b"POST %b HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n": (400, "bad_request"),
    b"POST nothing HTTP/1.1\r\nhost: x\r\n\r\n": (400, "bad_request"),
    b"TRACE %b HTTP/1.1\r\nhost: x\r\n\r\n": (405, "bad_request"),
    b"POST %b?" + LONG + b" HTTP/1.1\r\nhost: x\r\n\r\n": (414, "bad_request"),
    b"POST %b HTTP/1.1\r\nhost: x\r\na: " + LONG + b"\r\n\r\n": (431, "head_too_large"),
    b"POST %b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: x\r\n\r\n": (501, "bad_request"),
    b"POST %b HTTP/7.1\r\nhost: x\r\n\r\n": (505, "bad_request"),
}
"""Request → what nginx itself responds."""


@pytest.mark.parametrize("kind", [Nginx, Apache], indirect=True)  # haproxy has a page of its own
@pytest.mark.parametrize("request_", UNREADABLE, ids=[str(code) for code, _ in UNREADABLE.values()])
def test_what_it_cannot_read_gets_an_error_in_openais_form(balancer: Balancer, request_: bytes):
    with contextlib.closing(balancer.connect()) as client:
        client.connect()
        client.sock.sendall(request_.replace(b"%b", CHAT.encode()))
        answer = http.client.HTTPResponse(client.sock)
        answer.begin()
        found = answer.status, json.loads(answer.read())["error"]["code"]
    assert answer.headers["content-type"] == "application/json"
    if isinstance(balancer, Nginx):
        assert found == UNREADABLE[request_]
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
    else:  # it has fewer kinds, and no id before it has read the head
        assert 400 <= found[0] <= 501
        assert "null" not in answer.headers.get("x-request-id", "")


def test_the_log_has_what_was_asked_for_if_the_balancer_refuses(balancer: Balancer):
    with contextlib.closing(balancer.connect()) as client:
        client.request("POST", "/metrics?a=b", b"{}", JSON | {"x-request-id": (id_ := new_id())})
        answer = client.getresponse()
        assert (answer.status, len(answer.read()) > 0) == (404, True)
    [line] = until(lambda: [one for one in map(json.loads, balancer.lines()) if id_ in str(one)])
    assert (line["method"], line["path"], str(line["status"])) == ("POST", "/metrics", "404")


def test_a_client_that_asks_for_a_websocket_hears_what_to_do(balancer: Balancer):
    with contextlib.closing(balancer.connect()) as client:
        client.request("GET", "/v1/responses", headers=WEBSOCKET)
        answer = client.getresponse()
        found = answer.status, json.loads(answer.read())["error"]["code"]
    assert found == (426, "websocket_unsupported")
    if not isinstance(balancer, Apache):  # it drops the header
        assert answer.headers["upgrade"] == "HTTP/1.1"


def test_a_body_over_the_limit(balancer: Balancer):
    with contextlib.closing(balancer.connect()) as client:
        client.putrequest("POST", CHAT)
        client.putheader("content-length", str(32 * 1024 * 1024 + 1))
        client.endheaders()
        with contextlib.suppress(OSError):  # it may have answered and closed by now
            client.send(bytes(64 * 1024))  # a balancer that buffers may wait for a buffer of it
        answer = client.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]["code"]) == (
            413,
            "body_too_large",
        )


# Streams


STREAMS, EVENTS, PAUSE_S = 200, 14, 0.25


def lateness_of_streams(server: Balancer | Timed) -> float:
    """Open them all, read them to their ends, and give how much later than they were sent 99 of
    100 events came at most, in seconds, of those that were sent while all were open."""
    late: list[tuple[float, float]] = []
    opened = 0.0

    async def all_of_them() -> list[bytes]:
        nonlocal opened
        ask = body(pause=PAUSE_S, events=EVENTS, stream=True)
        tasks = []
        for number in range(STREAMS):  # from as many addresses as keeps each below the limit
            tasks.append(
                asyncio.ensure_future(stream(server, f"127.0.1.{1 + number % 5}", late, ask))
            )
            await asyncio.sleep(PAUSE_S * 4 / STREAMS)
        opened = time.monotonic()
        return list(await asyncio.gather(*tasks))

    contents = asyncio.run(all_of_them())
    assert all(
        content.startswith(b"HTTP/1.1 200") and b"data: [DONE]" in content for content in contents
    )
    assert len(late) == STREAMS * EVENTS
    measured = [late_s for sent, late_s in late if sent > opened]
    assert len(measured) > STREAMS, "events were sent while all streams were open"
    return statistics.quantiles(measured, n=100)[98]


def test_200_streams_come_as_they_are_sent(balancer: Balancer, backend: Timed):
    """A balancer that buffers holds an event back at least until the next one is sent.

    Where something else has the processors, the streams are late without a balancer too.
    """
    percentiles = []
    for _ in range(3):
        late_s = lateness_of_streams(balancer)
        if late_s < PAUSE_S:
            return
        percentiles.append((late_s, lateness_of_streams(backend)))
        if late_s < 5 * percentiles[-1][1]:
            return
    raise AssertionError(f"99th percentiles, with the balancer and without: {percentiles} s")


def test_a_client_that_leaves_a_stream_is_gone_at_the_backend(balancer: Balancer, backend: Timed):
    request_id = new_id()
    client = asking(balancer, request_id, pause=0.1, stream=True)
    answer = client.getresponse()
    for _ in range(5):
        assert answer.readline().startswith(b"data: ")
        answer.readline()
    left = time.monotonic()
    answer.close()
    client.close()
    assert backend.left_at(request_id) >= left, "it went on until then"


@pytest.mark.parametrize("kind", NOT_APACHE, indirect=True)
@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_leaves_before_the_response_is_gone_at_the_backend(
    balancer: Balancer, backend: Timed, streams: bool
):
    request_id = new_id()
    client = asking(balancer, request_id, pause=60, stream=streams)
    until(lambda: backend.asked()[request_id] == 1)
    left = time.monotonic()
    client.close()
    assert backend.left_at(request_id) >= left, "it went on until then"


def asking(
    balancer: Balancer, request_id: str, *, pause: float, stream: bool
) -> http.client.HTTPConnection:
    """The connection of a client that has sent a request."""
    client = balancer.connect()
    client.request(
        "POST",
        CHAT,
        body(pause=pause, events=1000, stream=stream),
        {**JSON, "x-request-id": request_id},
    )
    return client


@pytest.mark.parametrize("kind", NOT_APACHE, indirect=True)
def test_one_address_has_so_many_requests_at_once(balancer: Balancer, backend: Timed):
    ask = body(pause=0.2, events=1000, stream=True)
    lines = Counter(asyncio.run(answers(balancer, "127.0.3.1", ask, 101)))
    assert lines == {b"HTTP/1.1 200 OK\r\n": 100, b"HTTP/1.1 429 Too Many Requests\r\n": 1}


@pytest.mark.parametrize("kind", NOT_APACHE, indirect=True)
def test_one_address_has_so_many_requests_in_a_time(balancer: Balancer):
    with contextlib.closing(balancer.connect(source="127.0.3.2")) as client:
        for _ in range(600):
            client.request("GET", "/v1/models")
            answer = client.getresponse()
            content = answer.read()
            if answer.status != 200:
                break
        assert (answer.status, json.loads(content)["error"]["code"]) == (429, "rate_limited")
        assert answer.getheader("retry-after") == "1"
        assert len(answer.getheader("x-request-id", "")) >= 32
    assert balancer.get("/v1/models", source="127.0.3.3")[0] == 200


# Restarts and reloads


def in_flight(gateway: Gateway) -> float:
    return gateway.scrape().total("nexus_pending_requests")


def test_a_gateway_restarts_under_load(
    balancer: Balancer, before_one: Balancer, gateways: list[Gateway], backend: Timed
):
    """Nothing fails: what was in flight ends within the grace, what comes meanwhile goes to the
    other one."""
    first, _ = gateways
    with Load(balancer) as load:
        streams = [Asking(balancer, pause=0.1, events=20, stream=True) for _ in range(4)]
        until(lambda: in_flight(first) >= 2)
        assert first.stop() == 0
        assert all(stream.whole() for stream in streams)
        load.goes_on()
        alone = Asking(before_one)
        if not before_one.waits_for_the_only_gateway:
            alone.join()
            status, content = alone.result
            assert status in (502, 503)
            assert json.loads(content)["error"]["code"] == "no_gateway"
        first.start_again()
        load.goes_on()
        until(lambda: first.scrape().total("nexus_requests_started_total") > 10)
        alone.join()
        assert alone.result[0] == 200 or not before_one.waits_for_the_only_gateway
    load.assert_none_failed(backend)


def test_reloads_under_load_fail_no_request(
    balancer: Balancer, gateways: list[Gateway], backend: Timed
):
    files = [(gateway.file, gateway.file.read_text()) for gateway in gateways]
    with Load(balancer) as load:
        stream = Asking(balancer, pause=0.1, events=20, stream=True)
        for number in range(2):
            for file, text in files:
                file.write_text(f'{text}\n[routing.aliases]\n"nick-{number}" = "{MODEL}"\n')
                done = subprocess.run(
                    [sys.executable, "-m", "nexus", "reload", "-c", str(file)],
                    cwd=ROOT, env=clean_environ(), capture_output=True, text=True, timeout=30,
                )  # fmt: skip
                assert (done.returncode, done.stdout) == (0, "Reloaded: 1 backend.\n"), done.stderr
            load.goes_on()
        assert stream.whole()
    for file, text in files:
        file.write_text(text)
    load.assert_none_failed(backend)


def test_a_drained_gateway_ends_its_streams_and_gets_nothing_new(
    balancer: Balancer, gateways: list[Gateway]
):
    first, second = gateways
    streams = [Asking(balancer, pause=0.1, events=30, stream=True) for _ in range(4)]
    until(lambda: in_flight(first) == in_flight(second) == 2)
    balancer.drain(0)
    before = [gateway.scrape().total("nexus_requests_started_total") for gateway in gateways]
    assert [ask_once(balancer)[0] for _ in range(10)] == [200] * 10
    assert all(stream.whole() for stream in streams)
    after = [gateway.settled().total("nexus_requests_started_total") for gateway in gateways]
    assert [now - then for now, then in zip(after, before, strict=True)] == [0, 10]
    balancer.drain(0, on=False)
    until(
        lambda: (
            ask_once(balancer)[0] == 200
            and first.settled().total("nexus_requests_started_total") > after[0]
        )
    )
