"""What the clients' port shows to anybody where the operators have set a token, and how often it
makes it."""

import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from tests.support.metrics import Scrape
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

TOKEN = "operators-own-token-0123456789"


@pytest.fixture(scope="module")
def gateway(module_dir):
    with (
        Demo(module_dir, name="rack-7,url=", pace=0) as demo,
        Gateway(
            module_dir, backend_toml(demo), workers=1, environ={"NEXUS_ADMIN_TOKEN": TOKEN}
        ) as gateway,
    ):
        gateway.demo = demo
        yield gateway


def get(url, token=None):
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.headers, answer.read().decode()


@pytest.mark.parametrize("port", ["base", "operations"])
def test_backends_are_described_to_who_has_the_token(gateway, port):
    base = getattr(gateway, port)
    address = gateway.demo.url
    for token, shown in ((None, False), ("guessed", False), (TOKEN, True)):
        ready, metrics = get(f"{base}/readyz?verbose", token), get(f"{base}/metrics", token)
        assert (ready[0], metrics[0]) == (200, 200)
        assert f"[+] backend_usable: {'rack-7,url=' if shown else 1}\n" in ready[2]
        [url] = {labels[0] for labels in Scrape(metrics[2]).series("nexus_backend_info", "url")}
        assert url == (address if shown else "")
        assert (address in metrics[2]) is shown


def test_costly_pages_are_not_made_as_often_as_they_are_requested(gateway):
    """Each is another page, so that no copy serves; once the second is over they are made again."""
    numbers = count()

    def ask(_=None):
        return get(f"{gateway.base}/v1/history?model=m{next(numbers)}", TOKEN)

    def refused():
        with ThreadPoolExecutor(8) as pool:
            return [answer for answer in pool.map(ask, range(40)) if answer[0] == 429]

    for _, headers, content in until(refused):
        assert headers["retry-after"] == "1"
        assert '"too_many_requests"' in content
    until(lambda: ask()[0] == 200)
