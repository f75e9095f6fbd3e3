"""The page of one's own key in a real browser."""

from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe

from nexus.access.keys import digest
from tests.server.asking import ask
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml
from tests.test_dashboard import browser, fetch, open_page  # noqa: F401 - fixtures

pytestmark = pytest.mark.e2e

KEY, BLOCKED = "sk-nx-of-a-test-with-a-page", "sk-nx-of-a-test-that-is-blocked"
ACCESS = f"""
[auth]
mode = "keys"
[auth.identity]
from = ["127.0.0.1"]
[[teams]]
name = "research"
models = ["demo*"]
[[keys]]
id = "mine"
name = "<img src=x onerror=window.hacked=1>"
team = "research"
sha256 = ["{digest(KEY)}"]
limits = {{ requests = "60/d" }}
[[keys]]
id = "shut"
sha256 = ["{digest(BLOCKED)}"]
blocked = true
"""


@pytest.fixture(scope="module")
def gateway(module_dir) -> Iterator[Gateway]:
    with (
        Demo(module_dir, name="demo", models=["demo-small"], pace=0) as demo,
        Gateway(module_dir, ACCESS + backend_toml(demo), workers=1) as gateway,
    ):
        until(lambda: ask(gateway, authorization=f"Bearer {KEY}").status == 200)
        yield gateway


def opened(gateway, open_page, *allowed, **options):  # noqa: F811
    allowed = (*allowed, "Password field is not contained in a form", "401")
    page = open_page(gateway.base, allowed=allowed, **options)
    page.goto(f"{gateway.base}/my-key")
    return page


def test_with_a_key(gateway, open_page):  # noqa: F811
    page = opened(gateway, open_page)
    page.get_by_label("Key").fill(BLOCKED)
    page.get_by_role("button", name="Show").click()
    page.get_by_text("The key shut is blocked.").wait_for()
    page.get_by_label("Key").fill(KEY)
    page.get_by_role("button", name="Show").click()
    page.get_by_role("heading", name="Key mine").wait_for()
    shown = page.locator("#shown").inner_text()
    assert "<img src=x onerror=window.hacked=1>" in shown
    assert "59 of 60" in shown
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.cookie + localStorage.length + sessionStorage.length") == "00"
    assert page.locator("form").count() == 0
    assert KEY not in page.content()


def test_a_user_of_a_proxy_needs_neither_key_nor_scripts(gateway, open_page):  # noqa: F811
    headers = {"x-forwarded-user": "ann", "x-forwarded-groups": "research"}
    page = opened(gateway, open_page, java_script_enabled=False, extra_http_headers=headers)
    shown = page.locator("#shown").inner_text()
    assert "User ann" in shown
    assert "research" in shown
    assert "demo*" in shown
    assert not page.locator("#ask").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_accessible_at_any_width(gateway, open_page, scheme, width):  # noqa: F811
    page = opened(gateway, open_page, viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.get_by_label("Key").fill(KEY)
    page.get_by_role("button", name="Show").click()
    page.get_by_role("heading", name="Key mine").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_its_headers(gateway):
    status, headers, body = fetch(f"{gateway.base}/my-key")
    assert (status, headers["cache-control"]) == (200, "no-store")
    assert b"<h2" not in body
    status, headers, _ = fetch(f"{gateway.base}/my-key", authorization=f"Bearer {BLOCKED}")
    assert (status, headers["cache-control"]) == (401, "no-store")
    assert fetch(f"{gateway.base}/my-key/dashboard.js")[0] == 404
