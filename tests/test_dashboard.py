"""The dashboard in a real browser, before a real gateway: right, live, harmless, and usable by
everybody."""

import base64
import itertools
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from tests.support.load import chat, run
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml, get_json

pytestmark = pytest.mark.e2e

HOSTILE = "<img src=x onerror=window.hacked=1>"
CUT_OFF = "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RE", "ERR_EMPTY_RESPONSE"
"""What the browser's console says of a connection whose server was killed."""


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield found
        found.close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """A gateway with a backend that is well and one that always fails."""
    directory = tmp_path_factory.mktemp("fleet")
    with (
        Demo(directory, name="good", pace=0, models=["m", "only-good"]) as good,
        Demo(directory, name="bad", pace=0, models=["m"], fault="status=500") as bad,
        Gateway(
            directory,
            backend_toml(good, bad, max_concurrent=16, tier=2)
            + '[circuit_breaker]\nenabled = false\n[routing]\nstrategy = "round_robin"\n',
        ) as gateway,
    ):
        until(lambda: gateway.scrape().value("nexus_backends_healthy") == 2)
        yield gateway


@pytest.fixture
def open_page(browser):
    """Opens pages; at the end none may have said anything on its console or asked anybody else
    for anything."""
    contexts, complaints = [], []

    def opened(url, *, allowed=(), **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()

        def complain(text):
            if not any(word in text for word in allowed):
                complaints.append((url, text))

        page.on("console", lambda message: complain(message.text))
        page.on("pageerror", lambda error: complain(str(error)))
        page.on("request", lambda request: request.url.startswith(url) or complain(request.url))
        page.goto(url + "/")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [text for url, text in complaints if not ("REFUSED" in text and ended(url))] == []


def ended(url: str) -> bool:
    """Whether the gateway has ended; a page that was still open has asked it in vain."""
    with closing(socket.socket()) as sock:
        return sock.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) != 0


def ask(gateway, model, count, *, statuses=(200,), pause_s=0.0):
    seen = []
    asks = [chat("any", model)] * count
    run(
        gateway.port,
        asks,
        concurrency=4,
        pause_s=pause_s,
        seen=lambda _ask, status, _body: seen.append(status),
    )
    assert set(seen) <= set(statuses)
    assert len(seen) == count


def summary(page):
    return page.locator("#summary").inner_text().replace("\N{THIN SPACE}", "")


def shows(page, text, *, within_s=10):
    # The browser's events are handled while it is asked, so a page is never waited for with a bare
    # sleep.
    until(lambda: text in summary(page), within_s=within_s)


def card(page, name):
    return page.locator("#backends .card").filter(has=page.locator("h3", has_text=name))


def fetch(url, body=None, **headers):
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def test_the_page_shows_the_metrics_and_follows_without_a_reload(fleet, open_page):
    page = open_page(fleet.base)
    page.evaluate("window.mark = 1")
    for _ in range(2):
        ask(fleet, "only-good", 30)
        ask(fleet, "made-up", 10, statuses=(404,))
        found = fleet.settled()
        total = int(found.total("nexus_requests_total"))
        errors = int(found.total("nexus_errors_total"))
        shows(page, f"{total} requests, {errors} errors")
        served = int(found.total("nexus_requests_total", backend="good"))
        requests = card(page, "good").locator("div", has_text="Requests").locator("dd").inner_text()
        assert int(requests.replace("\N{THIN SPACE}", "")) == served
    assert page.evaluate("window.mark") == 1
    assert page.locator(".chart canvas").count() == 9
    assert re.fullmatch(
        r"at most \d+(\.\d+)?", page.locator("[data-tile=requests_per_s] .peak").inner_text()
    )
    assert "healthy" in card(page, "bad").inner_text()
    assert page.locator("#matrix tbody tr").count() == 2
    until(
        lambda: page.locator("#processes tbody tr").count() == 3
    )  # two workers and the health process


@pytest.mark.parametrize("scripts", [True, False])
def test_what_is_shown_of_backends_models_and_processes(fleet, open_page, scripts):
    ask(fleet, "m", 30)
    fleet.settled()
    page = open_page(fleet.base, java_script_enabled=scripts)

    def told(name):
        if not scripts:
            page.reload()
        terms = card(page, name).locator("dl > div").all()
        return {
            term.locator("dt").inner_text(): term.locator("dd").inner_text().strip()
            for term in terms
        }

    until(lambda: told("good")["Duration p50"].endswith("ms"))
    found = told("good")
    assert (
        found.items()
        >= {"Kind": "vllm", "Zone": "restricted", "Tier": "2", "Priority": "50"}.items()
    )
    assert found["In flight"] == "0 of 16"
    assert found["Probe"].endswith("ms")
    text = card(page, "good").inner_text()
    for part in ("healthy for ", "circuit closed", "m, only-good"):
        assert part in text
    until(
        lambda: told("bad") and "last failed with backend 5xx, " in card(page, "bad").inner_text()
    )
    row = page.locator("#matrix tr").filter(
        has=page.get_by_role("rowheader", name="only-good", exact=True)
    )
    has, has_not = row.locator("td").all_inner_texts()
    assert has.split("\n")[0] == "yes"
    assert "32768 tokens" in has.replace("\N{THIN SPACE}", "")
    assert has_not == "·"
    rows = [
        row.locator("td").all_inner_texts() for row in page.locator("#processes tbody tr").all()
    ]
    workers = {str(pid) for pid in fleet.worker_pids()}
    assert {(role, pid) for _, role, pid, _, _ in rows} == {
        *(("worker", pid) for pid in workers),
        ("health", str(fleet.health_pid())),
    }
    health = page.locator("#processes dl").inner_text().split("\n")
    assert (
        dict(itertools.pairwise(health)).items()
        >= {"Imbalance": "0", "Last reload": "good"}.items()
    )
    assert page.locator(".chart canvas" if scripts else ".chart path").count() == 9


def test_rows_stay_while_they_are_read(fleet, open_page):
    page = open_page(fleet.base)
    rows = page.locator("#requests .request")
    until(lambda: rows.count() > 0)
    first = rows.first.get_attribute("data-id")
    rows.first.hover()
    ask(fleet, "only-good", 2)
    until(lambda: page.locator("#held").inner_text() != "")
    assert rows.first.get_attribute("data-id") == first
    page.mouse.move(0, 0)
    until(lambda: page.locator("#held").inner_text() == "")
    assert rows.first.get_attribute("data-id") != first


def test_filters_and_attempts(fleet, open_page):
    ask(fleet, "m", 30)
    ask(fleet, "made-up", 5, statuses=(404,))
    page = open_page(fleet.base)
    visible = page.locator("#requests .request:visible")
    until(lambda: visible.count() > 10)
    page.locator("select[name=status]").select_option("error")
    until(lambda: {row.get_attribute("data-status") for row in visible.all()} == {"error"})
    page.locator("select[name=status]").select_option("")
    page.locator("input[name=model]").fill("only")
    until(lambda: {row.get_attribute("data-model") for row in visible.all()} <= {"only-good"})
    page.locator("input[name=model]").fill("")
    page.locator("input[name=backend]").fill("nowhere")
    until(lambda: page.locator("#no-requests").is_visible())
    page.locator("input[name=backend]").fill("good")

    def retried():
        return next(
            (row for row in visible.all() if "failover" in row.locator("summary").inner_text()),
            None,
        )

    row = until(retried)
    row.locator("summary").focus()
    page.keyboard.press("Enter")
    attempts = row.locator(".attempts li").all_inner_texts()
    assert len(attempts) == 2
    assert attempts[0].startswith("bad with m: backend")
    assert attempts[1].startswith("good with m: success")


@pytest.mark.parametrize("scripts", [True, False])
def test_a_filter_finds_what_is_no_longer_shown(fleet, open_page, scripts):
    """A failure with a hundred good requests after it, by a part of its model's name; and, live,
    one that comes later."""
    lost = f"lost-with-scripts-{scripts}"
    ask(fleet, lost, 1, statuses=(404,))

    def is_pushed_out() -> bool:
        ask(fleet, "only-good", 20)  # of many at once, not all are kept
        return lost not in {entry["asked_model"] for entry in get_json(f"{fleet.base}/v1/history")}

    until(is_pushed_out)
    page = open_page(fleet.base, java_script_enabled=scripts)
    rows = page.locator("#requests .request:visible")
    assert lost not in {row.get_attribute("data-asked") for row in rows.all()}
    page.locator("input[name=model]").fill(lost[:-2].upper())
    if not scripts:
        page.locator("form button").click()
        page.wait_for_load_state()
    until(lambda: [row.get_attribute("data-asked") for row in rows.all()] == [lost])
    if scripts:
        ask(fleet, lost, 1, statuses=(404,))
        until(lambda: [row.get_attribute("data-asked") for row in rows.all()] == [lost] * 2)
        page.locator("input[name=model]").fill("")
        until(lambda: rows.count() == 100)


def test_rows_are_in_order_while_requests_end(fleet, open_page):
    """What a page is given first is newer than what the last tick knew, which then comes on top
    of it."""
    rows = "[...document.querySelectorAll('.request')].map((row) => Number(row.dataset.ended))"
    ask(fleet, "only-good", 120)
    load = threading.Thread(target=ask, args=(fleet, "only-good", 300), kwargs={"pause_s": 0.05})
    load.start()
    try:
        for _ in range(2):
            page = open_page(fleet.base)
            first = page.evaluate(rows)
            until(lambda page=page, first=first: page.evaluate(rows)[0] > first[0] + 1)
            ended = page.evaluate(rows)
            assert ended == sorted(ended, reverse=True)
    finally:
        load.join()


def test_a_client_that_sends_one_id_with_all_its_requests(fleet, open_page):
    page = open_page(fleet.base)
    body = json.dumps(chat("any", "only-good").body).encode()
    rows = page.locator("#requests .request[data-id=always-this]")
    for number in range(1, 4):
        headers = {"x-request-id": "always-this", "content-type": "application/json"}
        assert fetch(f"{fleet.base}/v1/chat/completions", body, **headers)[0] == 200
        until(lambda number=number: rows.count() == number)


def test_it_survives_the_worker_that_served_it(tmp_path, open_page):
    with Demo(tmp_path, pace=0) as demo, Gateway(tmp_path, backend_toml(demo)) as gateway:
        page = open_page(gateway.base, allowed=CUT_OFF)
        page.evaluate("window.mark = 1")
        shows(page, "1 of 1 backends healthy")
        before = gateway.worker_pids()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(set(gateway.worker_pids()) - set(before)) == 2)
        until(lambda: gateway.scrape().value("nexus_workers") == 2)
        ask(gateway, "demo-small", 7)
        shows(page, "7 requests, 0 errors", within_s=20)
        assert page.evaluate("window.mark") == 1


def test_a_backend_goes_down_and_comes_back(tmp_path, open_page):
    with Demo(tmp_path, name="first", pace=0) as first:
        second = Demo(tmp_path, name="second", pace=0)
        try:
            with Gateway(tmp_path, backend_toml(first, second)) as gateway:
                page = open_page(gateway.base)
                shows(page, "2 of 2 backends healthy")
                second.stop()
                shows(page, "1 of 2 backends healthy", within_s=15)
                until(lambda: "unhealthy" in card(page, "second").inner_text())
                assert (
                    "nothing listens there" in card(page, "second").locator(".fault").inner_text()
                )
                problem = page.locator("#problems").inner_text()
                assert problem.startswith("second is unhealthy: ")
                assert "nothing listens there" in problem
                second = Demo(tmp_path, name="second", pace=0, port=second.port)
                shows(page, "2 of 2 backends healthy", within_s=15)
                until(lambda: page.locator("#problems").inner_text() == "")
        finally:
            second.stop()


def test_an_old_state_is_reported(tmp_path, open_page):
    """The health process is gone, and held from being started anew; with scripts and without."""
    with (
        Demo(tmp_path, pace=0) as demo,
        Gateway(tmp_path, backend_toml(demo), workers=1) as gateway,
    ):
        page = open_page(gateway.base)
        shows(page, "1 of 1 backends healthy")
        news = page.locator("#connection")
        assert news.inner_text() == ""
        os.kill(gateway.pid, signal.SIGSTOP)
        try:
            os.kill(gateway.health_pid(), signal.SIGKILL)
            until(lambda: "No news" in news.inner_text(), within_s=20)
            for scripts in (True, False):
                late = open_page(gateway.base, java_script_enabled=scripts)
                assert "No news" in late.locator("#connection").inner_text()
        finally:
            os.kill(gateway.pid, signal.SIGCONT)
        until(lambda: news.inner_text() == "", within_s=20)


def test_hostile_names_do_nothing(tmp_path, open_page):
    with Demo(tmp_path, pace=0, models=[HOSTILE]) as demo:
        config = f'[[backends]]\nname = \'{HOSTILE}\'\nurl = "{demo.url}"\ntype = "vllm"\n'
        with Gateway(tmp_path, config) as gateway:
            ask(gateway, HOSTILE, 3)
            ask(gateway, HOSTILE + "2", 3, statuses=(404,))
            for scripts in (True, False):
                page = open_page(gateway.base, java_script_enabled=scripts)
                until(lambda page=page: HOSTILE in page.locator("#backends").inner_text())
                until(lambda page=page: HOSTILE in page.locator("#matrix").inner_text())
                until(lambda page=page: HOSTILE + "2" in page.locator("#requests").inner_text())
                assert page.locator("img").count() == 0
                if scripts:
                    assert page.evaluate("window.hacked") is None


def test_without_scripts(fleet, open_page):
    ask(fleet, "only-good", 3)
    found = fleet.settled()
    expected = f"{int(found.total('nexus_requests_total'))} requests"
    until(
        lambda: (
            expected.encode() in fetch(fleet.base + "/")[2].replace("\N{THIN SPACE}".encode(), b"")
        )
    )
    page = open_page(fleet.base, java_script_enabled=False)
    assert expected in summary(page)
    assert page.locator("#requests .request").count() > 2
    page.locator("select[name=status]").select_option("success")
    page.locator("input[name=model]").fill("only-good")
    page.locator("form button").click()
    page.wait_for_load_state()
    rows = page.locator("#requests .request")
    assert rows.count() > 2
    assert {row.get_attribute("data-model") for row in rows.all()} == {"only-good"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_accessible_at_any_width(fleet, open_page, scheme, width):
    ask(fleet, "m", 5)
    page = open_page(fleet.base, viewport={"width": width, "height": 800}, color_scheme=scheme)
    until(lambda: page.locator(".chart canvas").count() == 9)
    page.locator("#requests summary").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_history(fleet):
    began = time.time()
    ask(fleet, "only-good", 4)
    ask(fleet, "made-up", 2, statuses=(404,))

    def since_then() -> list[dict[str, Any]]:
        return [
            entry
            for entry in get_json(f"{fleet.base}/v1/history?limit=1000")
            if entry["ended"] > began
        ]

    fresh = until(lambda: found if len(found := since_then()) == 6 else None)
    found = get_json(f"{fleet.base}/v1/history?limit=1000")
    assert [entry["ended"] for entry in found] == sorted(
        (entry["ended"] for entry in found), reverse=True
    )
    good = next(entry for entry in fresh if entry["status"] == "Success")
    assert good["attempts"] == [
        {
            "backend": "good",
            "model": "only-good",
            "outcome": "success",
            "ms": good["attempts"][0]["ms"],
        }
    ]
    assert (good["model"], good["backend_id"], good["http_status"], good["error_message"]) == (
        "only-good",
        "good",
        200,
        None,
    )
    bad = next(entry for entry in fresh if entry["status"] == "Error")
    assert (bad["asked_model"], bad["backend_id"], bad["http_status"]) == ("made-up", None, 404)
    assert (bad["error_message"], bad["error_type"], bad["attempts"]) == (
        "model_not_found",
        "model_not_found",
        [],
    )
    assert get_json(f"{fleet.operations}/v1/history?limit=1000") == found
    errors = get_json(f"{fleet.base}/v1/history?status=error&limit=1")
    assert [entry["status"] for entry in errors] == ["Error"]
    assert {entry["model"] for entry in get_json(f"{fleet.base}/v1/history?model=only-good")} == {
        "only-good"
    }
    for wrong in ("limit=0", "limit=x", "status=maybe"):
        status, _, content = fetch(f"{fleet.base}/v1/history?{wrong}")
        assert (status, json.loads(content)["error"]["code"]) == (400, "invalid_request")


def test_who_may_see_it(tmp_path):
    basic = "Basic " + base64.b64encode(b"anybody:ours").decode()
    with (
        Demo(tmp_path, pace=0) as demo,
        Gateway(
            tmp_path, backend_toml(demo), workers=1, environ={"NEXUS_ADMIN_TOKEN": "ours"}
        ) as gateway,
    ):
        for path in ("/", "/v1/history", "/v1/live", "/assets/dashboard.js"):
            status, headers, _ = fetch(gateway.base + path)
            assert (status, headers["www-authenticate"]) == (
                401,
                'Basic realm="Nexus", charset="UTF-8"',
            )
        assert fetch(gateway.base + "/", authorization=basic)[0] == 200
        assert fetch(gateway.base + "/", authorization="Bearer ours")[0] == 200
        assert fetch(gateway.base + "/", authorization="Bearer theirs")[0] == 401
        assert fetch(gateway.base + "/metrics")[0] == 200
        gateway.write(
            backend_toml(demo)
            + '[admin]\nprotect = ["metrics"]\n[dashboard]\noperations_only = true\n'
        )
        gateway.send(signal.SIGHUP)
        until(lambda: fetch(gateway.base + "/metrics")[0] == 401)
        assert fetch(gateway.base + "/v1/stats", authorization="Bearer ours")[0] == 200
        assert fetch(gateway.base + "/livez")[0] == 200
        assert fetch(gateway.base + "/")[0] == 404
        assert fetch(gateway.operations + "/")[0] == 200
        gateway.write(backend_toml(demo) + "[dashboard]\nenabled = false\n")
        gateway.send(signal.SIGHUP)
        until(lambda: fetch(gateway.operations + "/")[0] == 404)
        assert fetch(gateway.base + "/v1/live")[0] == 404


def test_viewers_do_not_hold_up_a_stop(tmp_path):
    with (
        Demo(tmp_path, pace=0) as demo,
        Gateway(
            tmp_path,
            backend_toml(demo),
            workers=1,
            server="graceful_timeout_seconds = 60",
        ) as gateway,
    ):
        viewers = [
            urllib.request.urlopen(f"{base}/v1/live", timeout=10)
            for base in (gateway.base, gateway.operations)
        ]
        for viewer in viewers:
            assert viewer.headers["content-type"].startswith("text/event-stream")
            assert viewer.readline() in (b"event: history\n", b": nothing to show yet\n")
        gateway.stop(within_s=40)  # of the sixty that requests in progress would be given
        for viewer in viewers:
            viewer.close()
