"""A web page in a real browser: it reaches the gateway only if its origin is named."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Route, sync_playwright

from tests.server.asking import CHAT, GOOD, NAMED
from tests.support.polling import until

pytestmark = pytest.mark.e2e

# What a page can try: a request with a preflight, one without, and one whose answer it gives up to
# read.
ATTEMPTS = {
    "with a preflight": {
        "headers": {"content-type": "application/json", "authorization": "Bearer x"}
    },
    "without a preflight": {},
    "no-cors": {"mode": "no-cors"},
}
SEND = """async ([url, body, options]) => {
    try {
        const answer = await fetch(url, {method: "POST", body: new Blob([body]), ...options});
        return [answer.type, answer.status, await answer.text()];
    } catch (error) {
        return ["failed", 0, String(error)];
    }
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=[
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--disable-features=LocalNetworkAccessChecks",
            ],
        )
        yield found
        found.close()


def sent_from(browser: Browser, origin: str, url: str, options: dict[str, Any]) -> Any:
    """What a page of this origin gets for its request."""

    def empty_page(route: Route) -> None:
        route.fulfill(status=200, content_type="text/html", body="<!doctype html>")

    page = browser.new_page()
    try:
        page.route(f"{origin}/*", empty_page)
        page.goto(f"{origin}/")
        page.unroute_all()  # while requests are intercepted, no preflight leaves the browser
        return page.evaluate(SEND, [url, json.dumps(GOOD), options])
    finally:
        page.close()


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_page_of_another_origin_reaches_no_backend(browser, gateway, demo, attempt):
    asked, before = demo.tally()["requests"], gateway.settled()
    kind, _, content = sent_from(
        browser, "https://evil.example", f"{gateway.base}{CHAT}", ATTEMPTS[attempt]
    )
    assert (kind, "choices" in content) == ("opaque" if attempt == "no-cors" else "failed", False)

    def refused() -> bool:
        now = gateway.settled()
        moved = [
            now.total(name) - before.total(name)
            for name in (
                "nexus_http_preflights_total",
                "nexus_errors_total",
                "nexus_requests_total",
            )
        ]
        return moved == ([1, 0, 0] if attempt == "with a preflight" else [0, 1, 1])

    until(refused)
    assert demo.tally()["requests"] == asked


def test_a_page_of_a_named_origin_is_served(browser, gateway):
    kind, status, content = sent_from(
        browser, NAMED, f"{gateway.base}{CHAT}", ATTEMPTS["with a preflight"]
    )
    assert (kind, status) == ("cors", 200)
    assert json.loads(content)["choices"]
