"""The operators' page of keys in a real browser."""

import json
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe

from nexus.access.keys import digest
from tests.server.asking import ask
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml
from tests.test_dashboard import browser, fetch, open_page  # noqa: F401 - fixtures

pytestmark = pytest.mark.e2e

HOSTILE = "<img src=x onerror=window.hacked=1>"
ACCESS = f"""
[auth]
mode = "keys"
[[teams]]
name = "research"
models = ["demo*"]
[[keys]]
id = "infile"
name = "{HOSTILE}"
sha256 = ["{digest("sk-nx-of-a-test-that-is-in-the-file")}"]
limits = {{ requests = "60/min" }}
"""


@pytest.fixture(scope="module")
def gateway(module_dir) -> Iterator[Gateway]:
    server = f'state_dir = "{module_dir}/state"'
    with (
        Demo(module_dir, name="demo", models=["demo-small", "spare"], pace=0) as demo,
        Gateway(module_dir, ACCESS + backend_toml(demo), workers=1, server=server) as gateway,
    ):
        until(lambda: ask(gateway).status == 401)
        yield gateway


@pytest.fixture
def keys_page(gateway, open_page):  # noqa: F811
    def opened(*allowed, **options):
        token = (gateway.run_dir / "admin.token").read_text()
        allowed = (*allowed, "Password field is not contained in a form")
        credentials = {"username": "any", "password": token}
        page = open_page(
            gateway.operations, http_credentials=credentials, allowed=allowed, **options
        )
        page.goto(f"{gateway.operations}/keys")
        return page, token

    return opened


def row(page, id_):
    return page.locator(f'tr[data-id="{id_}"]')


def message(page, text):
    page.get_by_role("status").get_by_text(text).wait_for()


def made_key(page):
    page.locator("#secret").wait_for()
    return page.locator("#key").inner_text()


def code(gateway, key):
    reply = ask(gateway, authorization=f"Bearer {key}")
    return None if reply.status == 200 else reply.code


def test_a_key_is_made_edited_rotated_blocked_and_accepted_again(gateway, keys_page):
    page, token = keys_page("401", "400")
    page.get_by_role("button", name="Make a key").click()
    message(page, "Enter the operators' token first.")
    page.get_by_label("Operators' token").fill("not-the-token")
    page.get_by_role("button", name="Make a key").click()
    message(page, "This takes the operators' token, as a bearer token.")
    page.get_by_label("Operators' token").fill(token)
    page.get_by_label("Name").fill("ci")
    page.get_by_label("Team").select_option("research")
    page.get_by_label("Models").fill("demo*, spare")
    page.get_by_label("Requests").fill("a lot")
    page.get_by_role("button", name="Make a key").click()
    message(page, 'requests = "a lot" is not allowed')
    page.get_by_label("Requests").fill("500/min")
    page.get_by_role("button", name="Make a key").click()
    first = made_key(page)
    id_ = first.split("-")[2]
    assert code(gateway, first) is None
    lines = page.locator("#lines").inner_text()
    assert f"export OPENAI_BASE_URL={gateway.base}/v1\nexport OPENAI_API_KEY={first}" in lines
    assert f"export ANTHROPIC_AUTH_TOKEN={first}" in lines
    assert f'base_url = "{gateway.base}/v1"\nenv_key = "OPENAI_API_KEY"' in lines
    row(page, id_).get_by_text("demo*, spare and demo*").wait_for()
    assert "requests 500/min" in row(page, id_).inner_text()

    page.get_by_role("button", name="Copy").click()
    page.get_by_role("status").get_by_text("clipboard").or_(
        page.get_by_role("status").get_by_text("selected")
    ).wait_for()
    page.get_by_role("button", name="Hide").click()
    assert first not in page.content()

    row(page, id_).get_by_role("button", name="Edit").click()
    assert page.get_by_label("Name").input_value() == "ci"
    page.get_by_label("Name").fill("nightly")
    page.get_by_label("Requests").fill("")
    page.get_by_label("Parallel").fill("7")
    page.get_by_label("Models").fill("*")
    page.get_by_role("button", name="Save").click()
    message(page, f"The key {id_} was changed.")
    row(page, id_).get_by_text("parallel 7").wait_for()
    assert "nightly" in row(page, id_).inner_text()
    assert "500/min" not in row(page, id_).inner_text()

    row(page, id_).get_by_role("button", name="Rotate").click()
    second = made_key(page)
    assert second != first
    assert code(gateway, first) is code(gateway, second) is None

    row(page, id_).get_by_role("button", name="Block", exact=True).click()
    row(page, id_).get_by_text("blocked", exact=True).wait_for()
    assert code(gateway, second) == "key_blocked"
    row(page, id_).get_by_role("button", name="Unblock").click()
    row(page, id_).get_by_text("active", exact=True).wait_for()
    assert code(gateway, second) is None
    row(page, id_).get_by_role("button", name="Block and end requests").click()
    message(page, "its requests end")
    assert page.evaluate("document.cookie + localStorage.length + sessionStorage.length") == "00"
    assert page.evaluate("window.hacked") is None
    for value in (first, second, token):
        assert value not in gateway.output()


def test_what_can_be_read_without_scripts(keys_page):
    page, _ = keys_page(java_script_enabled=False)
    assert "in the configuration" in row(page, "infile").inner_text()
    assert HOSTILE in row(page, "infile").inner_text()
    assert "requests 60/min" in row(page, "infile").inner_text()
    assert not page.locator("#changes").is_visible()
    assert page.locator("form").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_accessible_at_any_width(keys_page, scheme, width):
    page, token = keys_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.get_by_label("Operators' token").fill(token)
    page.get_by_role("button", name="Make a key").click()
    made_key(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    too_narrow = "buttons => buttons.filter(one => one.scrollWidth > one.clientWidth).length"
    assert page.locator("button").evaluate_all(too_narrow) == 0
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_who_may_see_it(gateway):
    url = f"{gateway.operations}/keys"
    token = (gateway.run_dir / "admin.token").read_text()
    status, headers, body = fetch(url)
    assert (status, json.loads(body)["error"]["code"]) == (401, "unauthorized")
    assert headers["www-authenticate"].startswith("Basic")
    status, headers, body = fetch(url, authorization=f"Bearer {token}")
    assert (status, headers["cache-control"]) == (200, "no-store")
    assert headers["set-cookie"] is None
    assert "default-src 'none'" in headers["content-security-policy"]
    assert fetch(f"{gateway.base}/keys")[0] == 404
