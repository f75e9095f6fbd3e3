"""Which headers cross the gateway."""

import pytest

from nexus.http.headers import (
    RequestHeaders,
    has_passed_before,
    response_headers,
    retry_after_s,
)


def test_headers_for_a_client():
    given = [
        ("content-type", "x"),
        ("x-ratelimit-remaining", "3"),
        ("transfer-encoding", "chunked"),
        ("set-cookie", "a"),
        ("access-control-allow-origin", "*"),
        ("access-control-expose-headers", "*"),
        ("server", "s"),
        ("x-nexus-backend", "forged"),
        ("content-length", "3"),
    ]
    assert response_headers(given) == [("content-type", "x"), ("x-ratelimit-remaining", "3")]


@pytest.mark.parametrize(
    ("headers", "passed"),
    [
        ([], False),
        ([("via", "1.1 gateway")], True),
        ([("via", "1.1 other"), ("via", "1.0 gateway (Nexus)")], True),
        ([("via", "1.1 other,HTTP/1.1 gateway")], True),
        ([("via", "1.1 gateway-2, 1.1 a (gateway), gateway")], False),
        ([("x-via", "1.1 gateway")], False),
    ],
)
def test_a_request_that_has_passed_before_is_recognized(headers, passed):
    assert has_passed_before(RequestHeaders.of(headers), "gateway") is passed


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 17.0),
        ({"retry-after": "Sunday, 06-Nov-94 08:49:30 GMT"}, 10.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:00:00 GMT"}, 0.0),
        ({"retry-after": "9", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "9", "retry-after-ms": "soon"}, 9.0),
        ({"retry-after": "9", "retry-after-ms": "nan"}, 9.0),
        ({"retry-after-ms": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Sun, 99 Nov 99999999999 08:00:00 GMT"}, None),
        ({}, None),
    ],
)
def test_when_a_response_asks_to_be_retried(sent, seconds):
    assert retry_after_s(sent.items(), now=lambda: 784111760.0) == seconds
