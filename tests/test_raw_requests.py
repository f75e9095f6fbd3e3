"""Requests byte by byte: the fast path gives the same verdict as gunicorn's parser and Flask,
and never loses its position in the stream of bytes."""

import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.server.request_head import HeadLimits, parse_request_head
from tests.support.processes import Demo, Gateway, backend_toml

BODY = b'{"model":"demo-small","max_tokens":2,"messages":[{"role":"user","content":"hi"}]}'
PATH = b"/v1/chat/completions"
LIMITS = HeadLimits(fields=100, field=16380, line=8190)


def post(
    *headers: bytes,
    body: bytes = BODY,
    length: bytes | None = None,
    line: bytes = b"POST " + PATH + b" HTTP/1.1",
) -> bytes:
    given_ = (
        []
        if length == b""
        else [b"Content-Length: " + (length if length is not None else b"%d" % len(body))]
    )
    return b"\r\n".join([line, b"Host: x", *headers, *given_, b"", b""]) + body


PLAIN = post(b"Content-Type: application/json")
CORPUS = {
    "plain": PLAIN,
    "two in a row": PLAIN + PLAIN,
    "two and a half": PLAIN + PLAIN + PLAIN[:40],
    "plain, then another path": PLAIN + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" + PLAIN,
    "plain, then garbage": PLAIN + b"\x00\x01\x02\r\n\r\n",
    "close": post(b"Connection: close") + PLAIN,
    "keep-alive in capitals": post(b"Connection: Keep-Alive") + PLAIN,
    "another connection option": post(b"Connection: keep-alive, x-hop", b"X-Hop: 1"),
    "length twice, the same": post(b"Content-Length: %d" % len(BODY)),
    "length twice, different": post(b"Content-Length: 5"),
    "length and chunked": post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + PLAIN),
    "chunked and length": b"POST "
    + PATH
    + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "chunked": post(
        b"Transfer-Encoding: chunked", length=b"", body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    )
    + PLAIN,
    "chunked, broken": post(
        b"Transfer-Encoding: chunked", length=b"", body=b"zz\r\n%s\r\n0\r\n\r\n" % BODY
    ),
    "chunked twice": post(
        b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", length=b"", body=b"0\r\n\r\n"
    ),
    "chunked in disguise": post(b"Transfer-Encoding: xchunked"),
    "chunked behind a tab": post(b"Transfer-Encoding:\tchunked", length=b"", body=b"0\r\n\r\n"),
    "length with a plus": post(length=b"+%d" % len(BODY)),
    "length with a minus": post(length=b"-5"),
    "length in hexadecimal": post(length=b"0x51"),
    "length with an underscore": post(length=b"8_1"),
    "length in a list": post(length=b"%d, %d" % (len(BODY), len(BODY))),
    "length of another script": post(length="٨".encode()),
    "length that is huge": post(length=b"9" * 30),
    "length too large": post(length=b"99999999999"),
    "no length": post(length=b"", body=b""),
    "no length but a body": post(length=b""),
    "length of zero": post(body=b""),
    "space before the colon": post(b"X-A : 1"),
    "space before the name": post(b" X-A: 1"),
    "a folded line": post(b"X-A: 1\r\n 2"),
    "a bare line feed": post(b"X-A: 1\nX-B: 2"),
    "a bare carriage return": post(b"X-A: 1\rX-B: 2"),
    "line feeds only": PLAIN.replace(b"\r\n", b"\n"),
    "a null": post(b"X-A: a\x00b"),
    "a delete": post(b"X-A: a\x7fb"),
    "latin-1 in a value": post(b"X-A: \xe9"),
    "an empty value": post(b"X-A:"),
    "an underscore in a name": post(b"X_A: 1"),
    "a name that is no token": post(b"X(A): 1"),
    "no colon": post(b"nonsense"),
    "two hosts": post(b"Host: y"),
    "no host": PLAIN.replace(b"Host: x\r\n", b""),
    "two content types": post(b"Content-Type: application/json", b"Content-Type: text/plain"),
    "another content type": post(b"Content-Type: text/plain"),
    "expect": post(b"Expect: 100-continue"),
    "expect something else": post(b"Expect: 200-ok"),
    "upgrade": post(b"Upgrade: h2c", b"Connection: upgrade"),
    "a trailer announced": post(b"Trailer: X-T"),
    "two schemes": post(b"X-Forwarded-Proto: https", b"X-Forwarded-Ssl: off"),
    "HTTP/1.0": post(line=b"POST " + PATH + b" HTTP/1.0"),
    "HTTP/1.2": post(line=b"POST " + PATH + b" HTTP/1.2"),
    "HTTP/2.0": post(line=b"POST " + PATH + b" HTTP/2.0"),
    "no version": post(line=b"POST " + PATH),
    "a small method": post(line=b"post " + PATH + b" HTTP/1.1"),
    "another method": post(line=b"PUT " + PATH + b" HTTP/1.1"),
    "two spaces": post(line=b"POST  " + PATH + b" HTTP/1.1"),
    "a space at the end": post(line=b"POST " + PATH + b" HTTP/1.1 "),
    "a query that holds a fragment": post(line=b"POST " + PATH + b"?a=1#b HTTP/1.1"),
    "a query": post(line=b"POST " + PATH + b"?a=1 HTTP/1.1"),
    "a slash more": post(line=b"POST " + PATH + b"/ HTTP/1.1"),
    "slashes doubled": post(line=b"POST //v1//chat/completions HTTP/1.1"),
    "no version in the path": post(line=b"POST /chat/completions HTTP/1.1"),
    "a deployment": post(
        line=b"POST /openai/deployments/demo-small/chat/completions?api-version=1 HTTP/1.1"
    ),
    "expect, too large": post(b"Expect: 100-continue", length=b"99999999"),
    "two encodings": post(b"Content-Encoding: gzip", b"Content-Encoding: gzip"),
    "no encoding": post(b"Content-Encoding: identity"),
    "an origin": post(b"Origin: http://evil.example"),
    "two origins": post(
        b"Origin: http://x", b"Origin: http://x", b"Content-Type: application/json"
    ),
    "our own origin": post(b"Origin: http://x", b"Content-Type: application/json"),
    "percent-encoded": post(line=b"POST /v1/chat%2Fcompletions HTTP/1.1"),
    "absolute": post(line=b"POST http://x" + PATH + b" HTTP/1.1"),
    "not there": post(line=b"POST /v1/nothing HTTP/1.1"),
    "a hundred headers": post(*[b"X-%d: 1" % n for n in range(98)]),
    "too many headers": post(*[b"X-%d: 1" % n for n in range(120)]),
    "a long header": post(b"X-A: " + b"a" * 16_000),
    "too long a header": post(b"X-A: " + b"a" * 17_000),
    "too long a line": post(line=b"POST /" + b"a" * 9000 + b" HTTP/1.1"),
    "an empty line first": b"\r\n" + PLAIN,
    "not HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "not JSON": post(body=b"{nonsense"),
    "a body cut short": PLAIN[:-10],
}


@pytest.fixture(scope="module")
def ways(module_dir):
    """The same gateway twice: with the fast path, and without."""
    fast, flask = module_dir / "fast", module_dir / "flask"
    fast.mkdir()
    flask.mkdir()
    with (
        Demo(module_dir, pace=0) as demo,
        Gateway(fast, backend_toml(demo), workers=1) as with_it,
        Gateway(
            flask, backend_toml(demo), workers=1, environ={"NEXUS_WITHOUT_SHORT_WAY": "1"}
        ) as without,
    ):
        yield with_it, without


def statuses(gateway: Gateway, data: bytes, *, pieces: int = 1) -> list[int]:
    """The statuses of all responses to what is sent before we close our side."""
    received = b""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as sock:
        size = max(1, -(-len(data) // pieces))
        try:
            for start in range(0, len(data), size):
                sock.sendall(data[start : start + size])
                if pieces > 1:
                    time.sleep(0.01)
            # The side is closed only once what was asked can have been answered: a close means that
            # the client left.
            sock.settimeout(2)
            while piece := sock.recv(65536):
                received += piece
        except TimeoutError:
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(5)
            while piece := sock.recv(65536):
                received += piece
        except ConnectionError:
            pass
    found = [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", received)]
    return [status for status in found if status != 100]  # which only says that the body is awaited


def verdicts_on(ways, names, *, pieces: int = 1) -> list[dict[str, list[int]]]:
    """How each of the two gateways responds to each of these, all at once: most of the time is
    spent in waiting for nothing more to come."""
    with ThreadPoolExecutor(2 * len(names)) as pool:
        pending = [
            {name: pool.submit(statuses, gateway, CORPUS[name], pieces=pieces) for name in names}
            for gateway in ways
        ]
        return [{name: one.result() for name, one in of_one.items()} for of_one in pending]


@pytest.fixture(scope="module")
def verdicts(ways) -> list[dict[str, list[int]]]:
    return verdicts_on(ways, CORPUS)


@pytest.mark.e2e
@pytest.mark.parametrize("name", CORPUS)
def test_same_verdict(verdicts, name):
    with_it, without = verdicts
    assert with_it[name] == without[name]


@pytest.mark.e2e
@pytest.mark.usefixtures("verdicts")
def test_both_count_alike(ways):
    """What came of all these requests is in the same series, whichever way they went; and both
    go on."""
    counted = []
    for gateway in ways:
        scrape = gateway.settled()
        assert scrape.value("nexus_accounting_imbalance") == 0
        assert scrape.total("nexus_pending_requests") == 0
        counted.append(
            [
                scrape.series("nexus_requests_total", "model", "backend", "status"),
                scrape.series("nexus_errors_total", "error_type", "model"),
                scrape.series("nexus_http_rejected_total", "reason"),
                scrape.series("nexus_upstream_attempts_total", "outcome"),
            ]
        )
    assert counted[0] == counted[1]
    assert sum(counted[0][0].values()) >= 40
    assert not [labels for labels in counted[0][0] if labels[2] == "500"], (
        "nothing here is our defect"
    )
    assert verdicts_on(ways, ["plain"]) == [{"plain": [200]}] * 2


@pytest.mark.e2e
def test_same_verdict_in_pieces(ways):
    names = ["plain", "two in a row", "plain, then another path", "chunked", "length and chunked"]
    with_it, without = verdicts_on(ways, names, pieces=7)
    assert with_it == without


@pytest.mark.e2e
def test_a_body_that_never_comes(tmp_path):
    """A refusal whose body is not sent, and a head that is not finished, hold a connection no
    longer than it may idle."""
    with (
        Demo(tmp_path, pace=0) as demo,
        Gateway(
            tmp_path, backend_toml(demo), workers=1, environ={"GUNICORN_CMD_ARGS": "--keep-alive=1"}
        ) as gateway,
    ):
        for data, answered in (
            (post(line=b"POST /nowhere HTTP/1.1", length=b"100000"), b"HTTP/1.1 404 "),
            (PLAIN[:50], b"HTTP/1.1 408 "),
        ):
            with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as sock:
                sock.sendall(data)
                received = b""
                while piece := sock.recv(65536):
                    received += piece
                assert received.startswith(answered)
        assert gateway.scrape().series("nexus_http_rejected_total", "reason") == {
            ("not_found",): 1.0, ("head_too_slow",): 1.0,
        }  # fmt: skip
        assert statuses(gateway, PLAIN) == [200]


@given(st.binary(max_size=400))
def test_nothing_plain_in_noise(data):
    assert parse_request_head(data, LIMITS) is None


@settings(max_examples=500)
@given(st.integers(0, len(PLAIN) - len(BODY)), st.binary(min_size=1, max_size=4))
def test_what_is_changed_is_refused_or_understood_alike(at, noise):
    """A plain head with some bytes written over: either it is not plain any more, or its framing
    is what it says."""
    data = PLAIN[:at] + noise + PLAIN[at + len(noise) :]
    head = parse_request_head(data, LIMITS)
    if head is None:
        return
    block = data[: head.end]
    assert block.endswith(b"\r\n\r\n")
    assert block.count(b"\r\n\r\n") == 1
    assert b"\n" not in block.replace(b"\r\n", b"")
    assert b"\r" not in block.replace(b"\r\n", b"")
    lengths = re.findall(rb"(?im)^content-length:[ \t]*(.*?)[ \t]*\r$", block)
    assert [int(found) for found in lengths] == [head.length]
    assert b"transfer-encoding" not in block.lower()
    assert all(
        re.fullmatch(r"[a-z0-9_-]+", name) and value == value.strip(" \t")
        for name, value in head.headers.pairs
    )
