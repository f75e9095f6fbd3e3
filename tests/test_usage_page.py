"""The operators' page of usage, budgets, and limits in a real browser."""

import csv
import json
import time
import urllib.request
from collections.abc import Iterator
from io import StringIO

import pytest
from axe_playwright_python.sync_playwright import Axe

from nexus.access.keys import digest
from nexus.access.prices import usd
from tests.server.asking import GOOD, ask
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml
from tests.test_dashboard import browser, fetch, open_page  # noqa: F401 - fixtures

pytestmark = pytest.mark.e2e

NANO = 10**9
HOSTILE = "<img src=x onerror=window.hacked=1>"
IDS = [f"k{n}" for n in range(8)]
ACCESS = (
    """
[auth]
mode = "keys"
[costs]
persist_seconds = 0.2
[[costs.price]]
per_request = "0.1"
[[teams]]
name = "red"
[[budgets]]
name = "each"
each = ["key"]
usd = "5"
[[limits]]
name = "by key"
each = ["key"]
requests = "10/d"
"""
    + f'[[budgets]]\nname = "{HOSTILE}"\nusd = "50"\nmatch = {{ team = "red" }}\nper = "total"\n'
    + "".join(
        f'[[keys]]\nid = "{id_}"\nname = "{HOSTILE}"\nteam = "{"red" if id_ == "k0" else ""}"\n'
        f'sha256 = ["{digest(f"sk-nx-of-a-test-of-the-usage-page-{id_}")}"]\n'
        for id_ in IDS
    )
)


def send(gateway, id_: str) -> int:
    return ask(
        gateway,
        authorization=f"Bearer sk-nx-of-a-test-of-the-usage-page-{id_}",
        body=json.dumps(GOOD).encode(),
    ).status


@pytest.fixture(scope="module")
def gateway(module_dir) -> Iterator[Gateway]:
    server = f'state_dir = "{module_dir}/state"'
    with (
        Demo(module_dir, name="demo", models=["demo-small"], pace=0) as demo,
        Gateway(module_dir, ACCESS + backend_toml(demo), workers=1, server=server) as gateway,
    ):
        until(lambda: ask(gateway).status == 401)
        until(lambda: send(gateway, "k0") == 200)
        for position, id_ in enumerate(IDS):
            for _ in range(8 - position - (id_ == "k0")):
                assert send(gateway, id_) == 200
        gateway.settled()
        yield gateway


@pytest.fixture
def usage_page(gateway, open_page):  # noqa: F811
    def opened(query: str = "", **options):
        token = (gateway.run_dir / "admin.token").read_text()
        credentials = {"username": "any", "password": token}
        allowed = ("Password field is not contained in a form",)  # of the page of keys
        page = open_page(
            gateway.operations, http_credentials=credentials, allowed=allowed, **options
        )
        page.goto(f"{gateway.operations}/usage{query}")
        return page

    return opened


def table(page, name: str) -> list[list[str]]:
    rows = page.get_by_role("group", name=name).locator("tbody tr, tfoot tr").all()
    return [[cell.inner_text() for cell in row.locator("th, td").all()] for row in rows]


def test_it_adds_up_without_scripts(gateway, usage_page):
    page = usage_page("?by=key&days=1", java_script_enabled=False)
    shown = table(page, "By key")
    assert [row[0].split()[0] for row in shown] == [*IDS, "All"]
    assert HOSTILE in shown[0][0]
    assert [row[1] for row in shown] == ["8", "7", "6", "5", "4", "3", "2", "1", "36"]
    assert [row[-1] for row in shown] == [
        "0.8", "0.7", "0.6", "0.5", "0.4", "0.3", "0.2", "0.1", "3.6",
    ]  # fmt: skip
    counted = gateway.scrape().total("nexus_cost_usd_total", outcome="delivered")
    assert usd(round(counted * NANO)) == shown[-1][-1]
    # By the hour: five keys and all others, whose sums are those of the table.
    hours = table(page, "USD by the hour")
    sums = [sum(round(float(hour[n]) * 10) for hour in hours) for n in range(1, 7)]
    assert sums == [8, 7, 6, 5, 4, 3 + 2 + 1]
    bars = page.locator("svg.bars rect").count()
    assert bars == sum(cell != "0" for hour in hours for cell in hour[1:])
    assert page.locator("form, script").count() == 0


def test_budgets_and_limits(usage_page):
    page = usage_page()
    budgets = {row[0] + row[1]: row[2:] for row in table(page, "Budgets, in USD")}
    assert budgets[f"{HOSTILE}all"] == ["total", "50", "0", "0.8", "0", "49.2", "never"]
    month = budgets["eachkey k1"]
    assert month[:6] == ["month", "5", "0", "0.7", "0", "4.3"]
    assert month[6].endswith("-01T00:00:00Z")
    levels = {(row[0], row[1], row[2]): row[3] for row in table(page, "Limits that are used most")}
    assert levels["by key", "key k7", "requests"] == "90 %"
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.cookie + localStorage.length + sessionStorage.length") == "00"


def test_the_links_choose_and_the_csv_is_the_same_usage(gateway, usage_page):
    page = usage_page()
    assert [row[:2] for row in table(page, "By team")][-1] == ["All", "36"]
    page.get_by_role("link", name="model").click()
    page.get_by_role("link", name="a week").click()
    assert page.url.endswith("/usage?by=model&days=7")
    [row, total] = table(page, "By model")
    assert (row[0], row[-1], total[-1]) == ("demo-small", "3.6", "3.6")
    assert len(table(page, "USD by the day")) in (1, 2)
    target = page.get_by_role("link", name="CSV").get_attribute("href")
    token = (gateway.run_dir / "admin.token").read_text()
    request = urllib.request.Request(
        f"{gateway.operations}/{target}", headers={"authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        rows = list(csv.DictReader(StringIO(response.read().decode())))
    assert {row["model"] for row in rows} == {"demo-small"}
    assert sum(round(float(row["cost_usd"]) * 10) for row in rows) == 36
    hour = time.strftime("%Y-%m-%dT%H", time.gmtime())[:11]
    assert all(row["hour"].startswith(hour[:8]) for row in rows)
    page.get_by_role("link", name="Dashboard").click()
    page.get_by_role("link", name="Keys").click()
    page.get_by_role("link", name="Usage").click()
    page.get_by_role("heading", name="By team").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_accessible_at_any_width(usage_page, scheme, width):
    page = usage_page("?by=key", viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_who_may_see_it(gateway):
    url = f"{gateway.operations}/usage"
    assert fetch(url)[0] == 401
    token = (gateway.run_dir / "admin.token").read_text()
    status, headers, _ = fetch(url, authorization=f"Bearer {token}")
    assert (status, headers["cache-control"], headers["set-cookie"]) == (200, "no-store", None)
    assert "default-src 'none'" in headers["content-security-policy"]
    assert fetch(f"{gateway.base}/usage")[0] == 404
