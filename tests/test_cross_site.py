"""A web page of another origin cannot change the gateway, nor read its operations port by DNS
rebinding."""

import contextlib
import json
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from nexus.admin.access import is_own_host
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

TOKEN = "operators-own-token-0123456789"


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:9464", True),
        ("192.168.7.7:9464", True),
        ("[::1]:9464", True),
        ("[fe80::1]", True),
        ("localhost", True),
        ("LocalHost:9464", True),
        ("localhost.", True),
        ("ops.example", True),
        ("OPS.example:80", True),
        ("evil.example", False),
        ("evil.example:9464", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("evil.example@127.0.0.1", True),  # no browser sends it; the host of it is the address
        ("[::1", False),
        ("", False),
    ],
)
def test_hosts(host, own):
    assert is_own_host(host, ["ops.example"]) is own


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cross-site")
    admin = '[admin]\nhosts = ["ops.example"]\napi_key_envs = ["LISTED_KEY"]\n'
    secrets = {
        "NEXUS_ADMIN_TOKEN": TOKEN,
        "SECRET_OF_ANOTHER": "not-to-be-sent",
        "FILES_KEY": "of-the-file",
    }
    with (
        Demo(directory, pace=0) as demo,
        Gateway(
            directory, backend_toml(demo, api_key_env="FILES_KEY") + admin, environ=secrets
        ) as gateway,
    ):
        gateway.demo = demo
        yield gateway


def send(gateway, method="POST", path="/admin/backends", body=b"{}", **headers):
    given = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(
        gateway.operations + path,
        data=body,
        method=method,
        headers={k: v for k, v in given.items() if v},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


BASIC = "Basic eDpvcGVyYXRvcnMtb3duLXRva2VuLTAxMjM0NTY3ODk="


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"origin": "http://evil.example"}, 403, "cross_origin"),
        ({"origin": "null"}, 403, "cross_origin"),
        ({"origin": ""}, 200, None),
        ({"sec_fetch_site": "cross-site"}, 403, "cross_origin"),
        ({"sec_fetch_site": "same-site"}, 403, "cross_origin"),
        ({"sec_fetch_site": "same-origin"}, 200, None),
        ({"sec_fetch_site": "none"}, 200, None),
        ({"content_type": "text/plain"}, 415, "unsupported_media_type"),
        ({"content_type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        ({"content_type": "application/json; charset=utf-8"}, 200, None),
        ({"authorization": BASIC}, 401, "unauthorized"),
        ({"authorization": ""}, 401, "unauthorized"),
        ({"host": "evil.example"}, 421, "unknown_host"),
        ({"host": "ops.example"}, 200, None),
        ({"host": "ops.example", "origin": "https://ops.example"}, 200, None),
    ],
    ids=str,
)
def test_changes_are_taken_from_our_own_pages_and_programs_only(gateway, headers, status, code):
    for path in (
        "/admin/backends/demo/undrain",
        "/admin/backends/demo/drain",
        "/admin/backends/demo/undrain",
    ):
        got, answer = send(gateway, path=path, **headers)
        assert got == status
        assert (answer["error"]["code"] if code else None) == code
    if status != 200:
        got, answer = send(
            gateway, method="DELETE", path="/admin/backends/demo", body=None, **headers
        )
        if (
            "content_type" not in headers
        ):  # a form cannot send DELETE, and without a body its type says nothing
            assert (got, answer["error"]["code"]) == (status, code)


@pytest.mark.e2e
def test_basic_authentication_is_for_reading(gateway):
    assert send(gateway, method="GET", body=None, authorization=BASIC)[0] == 200
    for path in ("/", "/metrics", "/v1/history", "/admin/backends", "/readyz", "/openapi.json"):
        assert send(gateway, method="GET", path=path, body=None, host="evil.example")[0] == 421


@pytest.mark.e2e
def test_a_key_of_the_environment_is_not_given_away(gateway):
    new = {"name": "evil", "url": "http://127.0.0.1:9", "type": "generic"}
    for name in ("SECRET_OF_ANOTHER", "NEXUS_ADMIN_TOKEN", "PATH"):
        status, answer = send(gateway, body=json.dumps({**new, "api_key_env": name}).encode())
        assert status == 400
        assert "[admin] api_key_envs" in answer["error"]["message"]
    for name in ("FILES_KEY", "LISTED_KEY", None):
        body = {**new, "api_key_env": name} if name else new
        assert send(gateway, body=json.dumps(body).encode())[0] == 201
        assert send(gateway, method="DELETE", path="/admin/backends/evil", body=None)[0] == 200


@pytest.mark.e2e
def test_what_a_change_takes_is_exact(gateway):
    for path in ("?save=no", "?save=", "?save=2", "?sav=1", "?save=1&force=1"):
        status, answer = send(
            gateway, method="DELETE", path=f"/admin/backends/demo{path}", body=None
        )
        assert (status, answer["error"]["code"]) == (400, "invalid_request"), path
    for body in (b'{"save": "no"}', b'{"save": 1}', b'{"saved": true}', b"[]", b"{"):
        assert send(gateway, path="/admin/backends/demo/drain", body=body)[0] == 400
    assert not gateway.directory.joinpath("nexus.saved.json").exists()
    [backend] = send(gateway, method="GET", body=None)[1]["backends"]
    assert (backend["name"], backend["draining"]) == ("demo", False)


class Stranger(BaseHTTPRequestHandler):
    """Another site's server: a page with a form that submits by itself, and whatever else is
    asked of it."""

    pages: dict[str, str] = {}
    seen: list[str] = []

    def do_GET(self):
        Stranger.seen.append(f"{self.path} {self.headers.get('authorization')}")
        content = self.pages.get(self.path, "").encode()
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def stranger():
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        rules = "--host-resolver-rules=MAP rebound.example 127.0.0.1"
        found = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-dev-shm-usage", rules],
        )
        yield found
        found.close()


@pytest.mark.e2e
def test_a_form_of_another_site_in_a_browser_that_has_the_password(gateway, stranger, browser):
    backend = f'"url":"{stranger}","priority":0,"type":"generic","api_key_env":"FILES_KEY"'
    Stranger.pages["/form"] = f"""
        <form method=post enctype="text/plain" action="{gateway.operations}/admin/backends">
        <input name='{{{backend},"name":"evil' value='"}}'>
        </form><script>document.forms[0].submit()</script>"""
    Stranger.pages["/drain"] = f"""
        <form method=post action="{gateway.operations}/admin/backends/demo/drain"></form>
        <script>document.forms[0].submit()</script>"""
    context = browser.new_context(http_credentials={"username": "x", "password": TOKEN})
    with contextlib.closing(context):
        page = context.new_page()
        assert page.goto(f"{gateway.operations}/").status == 200
        for path in ("/form", "/drain"):
            with page.expect_response(lambda response: "/admin/" in response.url) as answered:
                page.goto(stranger + path)
            assert answered.value.status == 403
    names = {
        one["name"]: one["draining"]
        for one in send(gateway, method="GET", body=None)[1]["backends"]
    }
    assert names == {"demo": False}
    assert all(line.endswith(" None") for line in Stranger.seen)


@pytest.mark.e2e
def test_rebinding_in_a_browser(gateway, browser):
    """The page's own name leads to the gateway: of the same origin to the browser, of another
    host to us."""
    context = browser.new_context()
    with contextlib.closing(context):
        page = context.new_page()
        port = gateway.operations_port
        for path in ("/", "/v1/history", "/metrics", "/readyz?verbose"):
            answer = page.goto(f"http://rebound.example:{port}{path}")
            assert answer.status == 421
            assert "demo" not in answer.text()
        status = page.evaluate(
            """() => fetch("/admin/backends/demo/drain", {method: "POST", body: "{}",
                headers: {"content-type": "application/json"}}).then(answer => answer.status)"""
        )
        assert status == 421
    assert (
        until(lambda: send(gateway, method="GET", body=None)[1]["backends"])[0]["draining"] is False
    )
