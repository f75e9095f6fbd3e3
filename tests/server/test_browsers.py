"""Requests that browsers send for web pages: refused unless the page is our own, or [cors]
origins names its origin."""

import http.client
import os
import signal
from contextlib import closing

import pytest

from nexus.config.admin_records import Cors
from nexus.http import cross_origin
from tests.server.asking import (
    CHAT,
    JSON,
    NAMED,
    Counting,
    ask,
    counted,
    refused,
    rejected,
    series,
)
from tests.support.polling import until

FOREIGN = "https://evil.example"
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


def cors_headers(headers: dict[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in headers.items()
        if name.startswith("access-control-") or name == "vary"
    }


@pytest.mark.e2e
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": FOREIGN},
        {"origin": "null"},
        {"origin": FOREIGN, "sec-fetch-site": "cross-site"},
        {"origin": "https://other.chat.example", "sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=str,
)
def test_a_page_of_another_origin_is_refused(gateway, demo, headers):
    asked = demo.tally()["requests"]
    with Counting(gateway, refused(403)):
        reply = ask(gateway, headers={**JSON, **headers})
    assert (reply.status, reply.code) == (403, "origin_refused")
    assert "[cors] origins" in reply.content.decode()
    assert not cors_headers(reply.headers)
    assert demo.tally()["requests"] == asked


@pytest.mark.e2e
def test_it_is_refused_before_its_body_is_read(gateway):
    with (
        Counting(gateway, refused(403)),
        closing(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)) as connection,
    ):
        connection.putrequest("POST", CHAT)
        connection.putheader("origin", FOREIGN)
        connection.putheader("content-length", "1000")
        connection.endheaders()
        reply = connection.getresponse()
        assert (reply.status, reply.read()[:9]) == (403, b'{"error":')


@pytest.mark.e2e
def test_a_page_of_a_named_origin_is_served_and_may_read_the_response(gateway, demo):
    with Counting(gateway, counted(200)):
        reply = ask(gateway, origin=NAMED, sec_fetch_site="cross-site", referer=f"{NAMED}/chat")
    assert reply.status == 200
    assert cors_headers(reply.headers) == {
        "access-control-allow-origin": NAMED,
        "access-control-expose-headers": "*",
        "vary": "Origin",
    }
    assert not {"origin", "referer", "sec-fetch-site"} & demo.last()["headers"].keys()


@pytest.mark.e2e
def test_it_may_read_errors_too(gateway):
    with Counting(gateway, counted(400, "parse_error", model="unknown", backend="none")):
        reply = ask(gateway, body=b"{", origin=NAMED)
    assert cors_headers(reply.headers)["access-control-allow-origin"] == NAMED


@pytest.mark.e2e
def test_a_browser_must_name_the_content_type(gateway):
    with Counting(gateway, refused(415)):
        reply = ask(gateway, headers={}, origin=NAMED)
    assert (reply.status, reply.code) == (415, "unsupported_media_type")
    with Counting(gateway, counted(200)):
        assert ask(gateway, headers={}).status == 200


@pytest.mark.e2e
@pytest.mark.parametrize(
    "headers",
    [
        {
            "host": "gateway.example:8000",
            "origin": "http://gateway.example:8000",
            "sec-fetch-site": "same-origin",
        },
        {"host": "Gateway.example", "origin": "https://gateway.example"},
        {
            "host": "behind.a.proxy",
            "origin": "https://gateway.example",
            "sec-fetch-site": "same-origin",
        },
        {"sec-fetch-site": "none"},
    ],
    ids=str,
)
def test_our_own_pages_and_the_user_are_served(gateway, headers):
    with Counting(gateway, counted(200)):
        reply = ask(gateway, headers={**JSON, **headers})
    assert reply.status == 200
    assert "access-control-allow-origin" not in reply.headers


@pytest.mark.e2e
@pytest.mark.parametrize("path", [CHAT, "/chat/completions/", "/v1/models", "/nothing"])
def test_a_preflight_is_counted_alone(gateway, path):
    once = {series("nexus_http_preflights_total"): 1.0}
    with Counting(gateway, once):
        reply = ask(
            gateway, path, method="OPTIONS", body=None, headers={"origin": FOREIGN, **PREFLIGHT}
        )
    assert (reply.status, reply.code) == (403, "origin_refused")
    assert not cors_headers(reply.headers)
    with Counting(gateway, once):
        reply = ask(
            gateway, path, method="OPTIONS", body=None, headers={"origin": NAMED, **PREFLIGHT}
        )
    assert (reply.status, reply.content) == (204, b"")
    assert cors_headers(reply.headers) == {
        "access-control-allow-origin": NAMED,
        "access-control-allow-methods": "GET, POST, DELETE, OPTIONS",
        "access-control-allow-headers": "authorization,content-type",
        "access-control-max-age": "600",
        "access-control-expose-headers": "*",
        "vary": "Origin",
    }


@pytest.mark.e2e
def test_other_options_requests_are_no_preflights(gateway):
    with Counting(gateway, refused(405)):
        assert ask(gateway, method="OPTIONS", body=None, headers={}).status == 405
    with Counting(gateway, refused(405)):
        assert ask(gateway, method="OPTIONS", body=None, headers={"origin": NAMED}).status == 405


@pytest.mark.e2e
def test_the_models_are_for_named_origins_too(gateway):
    with Counting(gateway, {}):
        reply = ask(gateway, "/v1/models", method="GET", body=None, headers={"origin": NAMED})
    assert (reply.status, cors_headers(reply.headers)["access-control-allow-origin"]) == (
        200,
        NAMED,
    )
    for path in ("/v1/models", "/metrics", "/nothing"):
        with Counting(gateway, rejected("origin_refused")):
            assert (
                ask(gateway, path, method="GET", body=None, headers={"origin": FOREIGN}).status
                == 403
            )


@pytest.mark.e2e
def test_a_link_to_a_page_of_ours_may_be_followed(gateway):
    link = {
        "sec-fetch-site": "cross-site",
        "sec-fetch-mode": "navigate",
        "sec-fetch-dest": "document",
    }
    with Counting(gateway, {}):
        assert ask(gateway, "/", method="GET", body=None, headers=link).status == 200
    with Counting(gateway, rejected("origin_refused")):
        frame = {**link, "sec-fetch-dest": "iframe"}
        assert ask(gateway, "/", method="GET", body=None, headers=frame).status == 403


@pytest.mark.e2e
def test_permissions_of_a_backend_never_pass(gateway, demo):
    demo.fault("header=access-control-allow-origin: *")
    try:
        with Counting(gateway, counted(200)):
            assert not cors_headers(ask(gateway).headers)
        with Counting(gateway, counted(200)):
            assert (
                cors_headers(ask(gateway, origin=NAMED).headers)["access-control-allow-origin"]
                == NAMED
            )
    finally:
        demo.fault("")


@pytest.mark.e2e
def test_a_repeated_request_of_a_page_is_checked_each_time(gateway):
    """The fast path keeps the headers of a connection; a reload changes what they mean."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)

    def status() -> int:
        connection.request("POST", CHAT, b"{", {**JSON, "origin": "https://later.example"})
        reply = connection.getresponse()
        reply.read()
        return reply.status

    assert [status(), status()] == [403, 403]
    named = gateway.file.read_text()
    gateway.file.write_text(named.replace(f'"{NAMED}"', f'"{NAMED}", "https://later.example"'))
    os.kill(gateway.health_pid(), signal.SIGHUP)
    until(lambda: status() == 400)
    gateway.file.write_text(named)
    os.kill(gateway.health_pid(), signal.SIGHUP)
    until(lambda: status() == 403)
    connection.close()


def test_every_origin():
    cors = Cors(origins=["*"])
    assert cross_origin.admits({"origin": FOREIGN, "sec-fetch-site": "cross-site"}, cors.origins)
    assert cross_origin.admits({"sec-fetch-site": "cross-site"}, cors.origins)
    assert dict(cross_origin.preflight({"origin": FOREIGN}, cors) or []) == {
        "access-control-allow-origin": "*",
        "access-control-expose-headers": "*",
        "access-control-allow-methods": "GET, POST, DELETE, OPTIONS",
        "access-control-allow-headers": "authorization, content-type, x-request-id",
        "access-control-max-age": "600",
    }


@pytest.mark.parametrize("asked", ["a\r\nset-cookie: x", "é", "x" * 3000])
def test_header_names_that_are_none_are_not_repeated(asked):
    allowed = dict(
        cross_origin.preflight(
            {"origin": NAMED, "access-control-request-headers": asked}, Cors(origins=[NAMED])
        )
        or []
    )
    assert allowed["access-control-allow-headers"] == "authorization, content-type, x-request-id"
