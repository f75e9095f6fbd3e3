"""The dashboards: their files are what the tables say, Grafana's own types know all that is in
them, and every expression gives data from a real Prometheus that scraped a real gateway under
load. Grafana itself is no Debian package, and does not run here."""

import json
import os
import re
import runpy
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from nexus.access.keys import digest
from nexus.metrics.families import FAMILIES
from tests.deploy.test_rules import RULES, RUNBOOKS, sections
from tests.support.load import Load, ParsedRequest, chat, run
from tests.support.polling import until
from tests.support.processes import ROOT, Demo, Gateway, backend_toml
from tests.support.prometheus import Prometheus
from tests.support.replay import Replay, whole

GRAFANA = ROOT / "deploy" / "grafana"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
DASHBOARDS: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text()) for path in FILES}
PANELS = [
    (name, panel)
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    if panel["type"] != "row"
]
EXPRESSIONS = [
    (name, panel["title"], target["expr"]) for name, panel in PANELS for target in panel["targets"]
]
EXPRESSIONS += [
    (name, each["name"], each["expr"])
    for name, d in DASHBOARDS.items()
    for each in d["annotations"]["list"]
]


def test_files_are_what_the_tables_say():
    files = runpy.run_path(str(GRAFANA / "generate.py"))["files"]()
    assert set(files) == set(FILES)
    for path, text in files.items():
        assert path.read_text() == text, "run: python deploy/grafana/generate.py"


def left_out(given: Any, taken: Any, path: str = "") -> Iterator[str]:
    """What of `given` is not in `taken`, or is something else there."""
    if isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(taken, dict) or key not in taken:
                yield f"{path}.{key}"
            else:
                yield from left_out(value, taken[key], f"{path}.{key}")
    elif isinstance(given, list):
        if not isinstance(taken, list) or len(taken) != len(given):
            yield path
        else:
            for at, (one, other) in enumerate(zip(given, taken, strict=True)):
                yield from left_out(one, other, f"{path}[{at}]")
    elif given != taken:
        yield f"{path}: {given!r} became {taken!r}"


@pytest.mark.e2e
@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafanas_types_know_all_of_it(name):
    """Read into Grafana's own types and written again, nothing is lost: no key is misspelt."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    taken = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARDS[name])))
    assert list(left_out(DASHBOARDS[name], taken)) == []


@pytest.mark.parametrize("name", DASHBOARDS)
def test_dashboard(name):
    dashboard = DASHBOARDS[name]
    assert (dashboard["uid"], "nexus" in dashboard["tags"]) == (name, True)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"], (
                    "two panels in one place"
                )
    variables = [variable["name"] for variable in dashboard["templating"]["list"]]
    used = set(re.findall(r"\$\{?([a-z]+)\b", json.dumps(dashboard))) - {"__rate_interval"}
    assert used <= set(variables)
    assert set(variables) - {"runbooks"} <= used | {"runbooks"}, "a variable that no panel heeds"
    assert [link["type"] for link in dashboard["links"]] == ["dashboards", "link"]


def test_dashboards_are_distinguished():
    assert len({dashboard["title"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS) == 6


@pytest.mark.parametrize(
    ("name", "panel"), PANELS, ids=[f"{name}: {panel['title']}" for name, panel in PANELS]
)
def test_panel(name, panel):
    assert panel["description"].endswith((".", ":"))
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0


@pytest.mark.e2e
def test_grafana_has_every_unit():
    from grafana_foundation_sdk.models import units

    known = {value for value in vars(units).values() if isinstance(value, str)}
    used = {panel["fieldConfig"]["defaults"]["unit"] for _, panel in PANELS}
    assert used
    assert used <= known


def test_links_lead_to_runbooks():
    links = [
        link["url"] for d in DASHBOARDS.values() for link in d["links"] if link["type"] == "link"
    ]
    links += [link["url"] for _, panel in PANELS for link in panel.get("links", ())]
    for url in links:
        page, _, anchor = url.removeprefix("${runbooks}/").partition("#")
        assert (RUNBOOKS / page).exists(), url
        assert not anchor or anchor in {heading.lower() for heading in sections(RUNBOOKS / page)}, (
            url
        )


def test_every_family_is_used():
    """On a panel or in a rule. One that is left out with a reason would be listed here; there is
    none."""
    text = "\n".join(
        [*(expression for _, _, expression in EXPRESSIONS), *(rule["expr"] for rule in RULES)]
    )
    names = set(re.findall(r"\bnexus_[a-z_]+", text))
    names |= {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    assert [family.name for family in FAMILIES if family.name not in names] == []


def test_provisioning():
    (source,) = yaml.safe_load(
        (GRAFANA / "provisioning" / "datasources" / "nexus.yml").read_text()
    )["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://127.0.0.1:9090")
    shipped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == shipped["global"]["scrape_interval"]
    (provider,) = yaml.safe_load(
        (GRAFANA / "provisioning" / "dashboards" / "nexus.yml").read_text()
    )["providers"]
    assert (provider["type"], provider["options"]["path"]) == (
        "file",
        "/var/lib/grafana/dashboards/nexus",
    )
    defaults = {d["templating"]["list"][1]["query"] for d in DASHBOARDS.values()}
    assert defaults == {shipped["global"]["external_labels"]["runbooks"]}, (
        "one place for the runbooks"
    )


CONFIG = """
[routing]
max_retries = 10
[routing.fallbacks]
"absent" = ["shared"]
"hopeless" = ["lonely"]
[queue]
max_size = 2
max_wait_seconds = 0.2
[circuit_breaker]
failures = 150
[auth]
mode = "optional"
[[keys]]
id = "spender"
sha256 = ["{spender}"]
[[keys]]
id = "shut"
sha256 = ["{shut}"]
blocked = true
[[keys]]
id = "poor"
sha256 = ["{poor}"]
[costs]
version = "2026-01-01"
[[costs.price]]
model = "shared"
output = "1000"
per_second = "0.001"
[[budgets]]
name = "overrun"
match = {{ model = "shared", key = "spender" }}
usd = "100"
reserve_output = 1
[[budgets]]
name = "refuses"
match = {{ key = "poor" }}
usd = "0"
[[limits]]
name = "refuses"
match = {{ endpoint = "embeddings" }}
requests = "1/s"
[[limits]]
name = "shadow"
match = {{ endpoint = "embeddings" }}
requests = "1/d"
shadow = true
[[limits]]
name = "returned"
match = {{ model = "shared" }}
tokens = "1M/s"
[[limits]]
name = "overrun"
match = {{ model = "told" }}
tokens = "1M/s"
reserve_output = 1
"""
KEYS = {
    "spender": "sk-of-a-test-that-spends",
    "shut": "sk-of-a-test-that-is-blocked",
    "poor": "sk-of-a-test-without-money",
}
TOLD = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "told",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
    ],
    "usage": {
        "prompt_tokens": 20,
        "completion_tokens": 10,
        "total_tokens": 30,
        "prompt_tokens_details": {"cached_tokens": 16},
        "completion_tokens_details": {"reasoning_tokens": 8},
    },
}


def mixed(number: int) -> ParsedRequest:
    """A bit of everything."""
    usage = {"stream_options": {"include_usage": True}}
    asks = (
        chat("plain", "shared", max_tokens=3),
        chat("stream", "shared", stream=True, max_tokens=5),
        chat("stream", "shared", stream=True, max_tokens=5, **usage),
        chat("broken", "breaks", stream=True, max_tokens=9),
        chat("fallback", "absent", max_tokens=3),
        chat("told", "told"),
        chat("exhausted", "hopeless"),
        chat("unknown", "nobody's"),
        chat("narrow", "narrow", max_tokens=3),
        ParsedRequest("embeddings", "/v1/embeddings", {"model": "shared", "input": "a"}),
        replace(chat("keyed", "shared", max_tokens=3), key=KEYS["spender"]),
        replace(chat("blocked", "shared"), key=KEYS["shut"]),
        replace(chat("poor", "shared", max_tokens=3), key=KEYS["poor"]),
    )
    return asks[number % len(asks)]


@pytest.fixture(scope="module")
def scraped(module_dir: Path) -> Iterator[Prometheus]:
    """A Prometheus that has seen streams, failures, retries and their denial, a queue,
    fallbacks, a dead backend."""
    with (
        Demo(module_dir, name="rack/1", models=["shared"], pace=200) as first,
        Demo(
            module_dir, name="rack/2", models=["breaks"], pace=200, fault="break_after=5"
        ) as breaks,
        Demo(module_dir, name="slow", models=["narrow"], pace=0, fault="delay=0.15") as narrow,
        Demo(
            module_dir, name="sick-1", models=["sick", "ailing"], pace=0, fault="status=500"
        ) as sick,
        Demo(module_dir, name="sick-2", models=["sick"], pace=0, fault="status=500") as ill,
        Demo(module_dir, name="gone", models=["lonely"]) as gone,
        Replay() as told,
    ):
        told.scripts["told"] = whole(200, TOLD)
        config = (
            backend_toml(first, breaks, sick, ill, gone)
            + backend_toml(narrow, max_concurrent=1)
            + CONFIG.format(**{name: digest(key) for name, key in KEYS.items()})
        )
        config += f'\n[request_log]\npath = "{module_dir}/requests.jsonl"\n'
        config += f'\n[[backends]]\nname = "told"\nurl = "{told.url}"\ntype = "openai"\n'
        with (
            Gateway(module_dir, config, affinity=True) as gateway,
            Prometheus(
                module_dir / "prometheus", f"127.0.0.1:{gateway.operations_port}", faster=60
            ) as prometheus,
        ):
            load = Load(gateway.port, rate=60, clients=12, ask=mixed)
            try:
                # What several backends fail counts against none of them; what one fails opens its
                # circuit.
                for model in ("sick", "ailing"):
                    run(
                        gateway.port,
                        [chat(model, model, prompt_cache_key="session")] * 300,
                        concurrency=30,
                        seen=lambda *_: None,
                    )
                with pytest.raises(urllib.error.HTTPError) as refused:
                    urllib.request.urlopen(f"{gateway.base}/nowhere", timeout=10)
                refused.value.close()
                request = urllib.request.Request(
                    f"{gateway.base}/v1/chat/completions",
                    json.dumps(chat("bad", "shared").body).encode(),
                    {"content-type": "application/json", "x-demo-fault": "status=400"},
                )
                with pytest.raises(urllib.error.HTTPError) as refused:
                    urllib.request.urlopen(request, timeout=10)
                refused.value.close()
                until(lambda: left(gateway))
                gone.stop(number=signal.SIGKILL)
                until(
                    lambda: prometheus.query(
                        "changes(nexus_fleet_last_update_timestamp_seconds[2s]) > 0"
                    )
                )
                os.kill(
                    gateway.health_pid(), signal.SIGHUP
                )  # reads the configuration again, which is annotated
                yield prometheus
            finally:
                load.stop()


def left(gateway: Gateway) -> bool:
    """Be a client that goes away while its backend is silent; whether one of them was seen to."""
    body = json.dumps(chat("left", "shared").body).encode()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"x-demo-fault: hang=1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        time.sleep(0.1)
    return gateway.scrape().total("nexus_upstream_attempts_total", outcome="client_disconnect") > 0


def substituted(expression: str) -> str:
    """As Grafana sends it with everything chosen; the windows are those of a minute and more, 60
    times shorter."""
    for variable in ("instance", "model", "backend"):
        expression = expression.replace(f"${variable}", ".*")
    expression = expression.replace("$__rate_interval", "5s")
    assert "$" not in expression
    return expression


def has_data(prometheus: Prometheus, expression: str) -> bool:
    return any(each["value"][1] != "NaN" for each in prometheus.result(substituted(expression)))


@pytest.mark.e2e
def test_every_expression_gives_data(scraped):
    waiting = dict.fromkeys((name, title, expression) for name, title, expression in EXPRESSIONS)

    def all_seen() -> bool:
        for key in list(waiting):
            if has_data(scraped, key[2]):
                del waiting[key]
        return not waiting

    try:
        until(all_seen, within_s=40, every_s=0.5)
    except AssertionError:
        raise AssertionError(f"no data for {list(waiting)}") from None


@pytest.mark.e2e
def test_what_rules_look_at_is_there(scraped):
    """Every selector of every rule, with its labels, finds series: a name or a value that is no
    longer ours would make a rule silent for good."""
    selectors = {
        found[0]
        for rule in RULES
        for found in re.finditer(
            r"\b(?:nexus_|up\b|job:|job_\w+:)[\w:]*(?:\{[^}]*\})?", rule["expr"]
        )
    }
    assert len(selectors) > 50
    missing = set(selectors)

    def all_found() -> bool:
        missing.difference_update([each for each in missing if scraped.result(each)])
        return not missing

    try:
        until(all_found, within_s=20, every_s=0.5)
    except AssertionError:
        raise AssertionError(f"no series for {sorted(missing)}") from None


@pytest.mark.e2e
@pytest.mark.parametrize("variable", ["instance", "model", "backend"])
def test_variables_have_values(scraped, variable):
    queries = {
        each["query"]["query"]
        for d in DASHBOARDS.values()
        for each in d["templating"]["list"]
        if each["name"] == variable
    }
    (query,) = queries
    selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()
    assert label == variable
    expected = {"model": {"shared", "told"}, "backend": {"rack_1", "slow"}}.get(variable, set())

    def values() -> set[str]:
        return {entry["metric"][label] for entry in scraped.result(substituted(selector))}

    until(lambda: (found := values()) and found >= expected)
