"""What the size of a body costs: bytes, and not what they hold."""

import json
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest

from nexus.metrics.processes import memory_and_cpu
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

SIZE = 31 << 20
ROUNDS = 2
SMALL = b'{"model":"demo-small","messages":[{}]}'
LISTS = {"objects": b"{}", "numbers": b"0"}


@pytest.fixture(scope="module", params=["fast path", "Flask"])
def gateway(request, module_dir) -> Iterator[Gateway]:
    environ = {"NEXUS_WITHOUT_SHORT_WAY": "1"} if request.param == "Flask" else {}
    directory = module_dir / request.param.replace(" ", "-")
    directory.mkdir()
    with (
        Demo(directory, pace=0) as demo,
        Gateway(
            directory,
            backend_toml(demo),
            workers=1,
            server="max_answer_bytes = 2048",
            environ=environ,
        ) as gateway,
    ):
        yield gateway


def ask(
    gateway: Gateway, body: bytes, fault: str = "", *, path: str = "/v1/chat/completions"
) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    headers = {"content-type": "application/json", **({"x-demo-fault": fault} if fault else {})}
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def cost_s(gateway: Gateway, body: bytes, expected: int = 422) -> float:
    """The processor time of the worker for some requests with this body, which the backend would
    answer with 422."""
    pid = gateway.worker_pids()[0]
    before = memory_and_cpu(pid)
    for _ in range(ROUNDS):
        status, _ = ask(gateway, body, "status=422,unread=1")
        assert status == expected
    after = memory_and_cpu(pid)
    assert before is not None
    assert after is not None
    return after[1] - before[1]


def test_a_list_of_many_items_costs_little_more_than_one_string(gateway):
    one_string = b'{"model":"demo-small","messages":[{"role":"user","content":"%b"}]}' % (
        b"x" * SIZE
    )
    cost_s(gateway, one_string)  # the first ones have memory to ask for
    least = cost_s(gateway, one_string)
    costs = {}
    for name, item in LISTS.items():
        items = b",".join([item] * (SIZE // (len(item) + 1)))
        costs[name] = cost_s(gateway, b'{"model":"demo-small","messages":[%b]}' % items) / least
    fields = b",".join(b'"%07d":0' % number for number in range(SIZE // 12))
    costs["fields"] = (
        cost_s(gateway, b'{"model":"demo-small","messages":[{}],%b}' % fields, 400) / least
    )
    assert {name: cost for name, cost in costs.items() if cost > 3} == {}


@pytest.mark.parametrize("path", ["/v1", "/openai/deployments/demo-small"])
@pytest.mark.parametrize("field", ["stream_options", None])
def test_bodies_of_many_fields_are_refused(gateway, path, field):
    """The limit is for each object whose fields are read; one that goes on as it came may have
    any number."""
    few, many = (
        b",".join(b'"%07d":0' % number for number in range(count)) for count in (900, 30_000)
    )
    head = SMALL[:-1] + b',"stream":true,'
    for fields, status in ((few, 200), (many, 200 if field else 400)):
        more = b'"%b":{%b}' % (field.encode(), fields) if field else fields
        answered, content = ask(gateway, head + more + b"}", path=f"{path}/chat/completions")
        assert answered == status, content[:500]
        if status == 400:
            assert json.loads(content)["error"]["message"] == "The body has over 1000 fields."


def test_the_limit_of_a_response_holds_for_one_that_comes_at_once(gateway):
    assert ask(gateway, SMALL, "status=200,body=large,size=1000")[0] == 200
    status, content = ask(gateway, SMALL, "status=200,body=large,size=3000")
    assert (status, json.loads(content)["error"]["code"]) == (502, "answer_too_large")
