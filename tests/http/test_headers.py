"""Which headers cross the gateway."""

import pytest

from nexus.http.headers import RequestHeaders, has_passed_before, response_headers


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
