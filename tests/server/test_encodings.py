"""Request bodies with a content encoding: decoded for the backend, within the limit, or refused."""

import gzip
import http.client
import sys
import zlib
from contextlib import closing

import pytest

from nexus.errors import RequestFailed
from nexus.http.content_coding import coding_of, decode
from tests.server.asking import BODY, CHAT, JSON, Counting, ask, counted, refused

if sys.version_info >= (3, 14):
    from compression.zstd import CompressionParameter, compress
else:
    from backports.zstd import CompressionParameter, compress


def bare_deflate(data: bytes) -> bytes:
    encoder = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return encoder.compress(data) + encoder.flush()


ENCODERS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "GZIP": gzip.compress,
    "zstd": compress,
}
LIMIT = 200_000
HALVES = BODY[:20], BODY[20:]


@pytest.mark.e2e
@pytest.mark.parametrize(
    "coding", [*ENCODERS, "bare deflate", "gzip in two members", "zstd in two frames"]
)
def test_a_body_is_decoded(gateway, demo, coding):
    encode = {
        **ENCODERS,
        "bare deflate": bare_deflate,
        "gzip in two members": lambda _: b"".join(map(gzip.compress, HALVES)),
        "zstd in two frames": lambda _: b"".join(map(compress, HALVES)),
    }[coding]
    name = coding.removeprefix("bare ").partition(" ")[0]
    with Counting(gateway, counted(200)):
        assert ask(gateway, body=encode(BODY), content_encoding=name).status == 200
    sent = demo.last()
    assert sent["body"].encode() == BODY
    assert sent["headers"]["content-length"] == str(len(BODY))
    assert "content-encoding" not in sent["headers"]


@pytest.mark.e2e
def test_a_body_in_chunks_is_decoded(gateway, demo):
    content = gzip.compress(BODY)
    with (
        Counting(gateway, counted(200)),
        closing(http.client.HTTPConnection("127.0.0.1", gateway.port)) as connection,
    ):
        headers = {**JSON, "content-encoding": "gzip"}
        connection.request(
            "POST", CHAT, iter([content[:30], content[30:]]), headers, encode_chunked=True
        )
        assert connection.getresponse().status == 200
    assert demo.last()["body"].encode() == BODY


@pytest.mark.e2e
@pytest.mark.parametrize("coding", ["br", "compress", "gzip, gzip", "nonsense"])
def test_other_encodings_are_refused(gateway, coding):
    with Counting(gateway, refused(415)):
        reply = ask(gateway, content_encoding=coding)
    assert (reply.status, reply.code) == (415, "unsupported_encoding")
    assert reply.headers["accept-encoding"] == "gzip, deflate, zstd"


@pytest.mark.e2e
@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
@pytest.mark.parametrize("damage", ["cut short", "other bytes", "empty", "bytes after its end"])
def test_a_broken_encoding_is_refused(gateway, coding, damage):
    whole = ENCODERS[coding](BODY)
    body = {
        "cut short": whole[:-5],
        "other bytes": BODY,
        "empty": b"",
        "bytes after its end": whole + b"junk",
    }[damage]
    expected = (
        refused(400) if (coding, damage) != ("gzip", "empty") else refused(400, "parse_error")
    )
    with Counting(gateway, expected):
        reply = ask(gateway, body=body, content_encoding=coding)
    assert (reply.status, reply.code) == (
        400,
        "body_malformed" if expected == refused(400) else "invalid_json",
    )


@pytest.mark.e2e
@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_the_limit_is_of_decoded_bytes(gateway, demo, coding):
    asked = demo.tally()["requests"]
    with Counting(gateway, refused(413)):
        reply = ask(
            gateway, body=ENCODERS[coding](BODY + b" " * 20_000_000), content_encoding=coding
        )
    assert (reply.status, reply.code) == (413, "body_too_large")
    assert demo.tally()["requests"] == asked
    with Counting(gateway, counted(200)):
        assert (
            ask(gateway, body=ENCODERS[coding](BODY.ljust(LIMIT)), content_encoding=coding).status
            == 200
        )


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_decoding_stops_at_the_limit(coding):
    held: list[int] = []
    with pytest.raises(RequestFailed) as refusal:
        decode(
            ENCODERS[coding](bytes(200_000_000)),
            coding,
            limit=5_000_000,
            hold=held.append,
            pause=lambda: None,
        )
    assert refusal.value.fault.code == "body_too_large"
    assert sum(held) <= 5_000_000


def test_a_window_that_takes_much_memory_is_refused():
    body = compress(bytes(1 << 25), options={CompressionParameter.window_log: 27})
    with pytest.raises(RequestFailed, match="not valid zstd"):
        decode(body, "zstd", limit=1 << 26, hold=lambda _: None, pause=lambda: None)


def test_others_run_while_a_large_body_is_decoded():
    pauses: list[None] = []
    decode(
        gzip.compress(bytes(10 << 20)),
        "gzip",
        limit=1 << 30,
        hold=lambda _: None,
        pause=lambda: pauses.append(None),
    )
    assert len(pauses) == 10


@pytest.mark.parametrize("header", [None, "", "identity", " Identity "])
def test_no_encoding(header):
    assert coding_of(header) is None
