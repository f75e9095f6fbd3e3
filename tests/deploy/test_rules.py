"""Scrape configurations, rules and alerts as promtool reads them, and the runbooks that alerts
point to."""

import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from nexus.cli.main import cli
from nexus.metrics.families import FAMILIES
from tests.support.processes import ROOT
from tests.support.prometheus import SHIPPED, seconds, shortened

RUNBOOKS = ROOT / "docs" / "runbooks"
RULES = [
    rule
    for path in sorted((SHIPPED / "rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDS = {rule["record"]: rule for rule in RULES if "record" in rule}
RULE_TESTS = sorted((SHIPPED / "tests").glob("*.yml"))
TESTS = [test for path in RULE_TESTS for test in yaml.safe_load(path.read_text())["tests"]]
NAME = re.compile(r"[a-z_]+:[a-z0-9_]+:[a-z0-9_]+|\bnexus_[a-z_]+|\bup\b")


def promtool(*words: str | Path) -> str:
    done = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ["prometheus.yml", "scrape-files.yml", "scrape-dns.yml"])
def test_configurations(name):
    told = promtool("check", "config", SHIPPED / name)
    assert "SUCCESS" in told
    assert "FAILED" not in told
    (job,) = yaml.safe_load((SHIPPED / name).read_text())["scrape_configs"]
    assert job["job_name"] == "nexus", "alerts on `up` go by it"


def test_rules():
    told = promtool("check", "rules", *sorted((SHIPPED / "rules").glob("*.yml")))
    assert (
        sum(map(int, re.findall(r"(\d+) rules found", told)))
        == len(RULES)
        == len(ALERTS) + len(RECORDS)
    )


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_rule_tests(path):
    assert "SUCCESS" in promtool("test", "rules", path)


def fed(test: dict[str, Any]) -> set[str]:
    """The families that a test has series of."""
    return {NAME.search(each["series"])[0] for each in test["input_series"]}


@pytest.mark.parametrize("name", ALERTS)
def test_alert_is_tested(name):
    """It fires in one case, with its labels and texts; in another, which has metrics that it
    looks at, it does not."""
    cases = [
        (test, case)
        for test in TESTS
        for case in test.get("alert_rule_test", ())
        if case["alertname"] == name
    ]
    firing = [case["exp_alerts"] for _, case in cases if case.get("exp_alerts")]
    assert firing, "no test has it fire"
    for expected in firing:
        for alert in expected:
            assert alert["exp_labels"]["severity"] == ALERTS[name]["labels"]["severity"]
            assert set(alert["exp_annotations"]) == set(ALERTS[name]["annotations"])
    looks_at = set(NAME.findall(ALERTS[name]["expr"]))
    silent = [test for test, case in cases if not case.get("exp_alerts") and fed(test) & looks_at]
    assert silent, "no test has it not fire"


def in_time(name: str) -> set[float]:
    return {
        seconds(case["eval_time"])
        for test in TESTS
        for case in test.get("alert_rule_test", ())
        if case["alertname"] == name and case.get("exp_alerts")
    }


@pytest.mark.parametrize("name", [name for name, rule in ALERTS.items() if "for" in rule])
def test_alert_waits(name):
    assert min(in_time(name)) >= seconds(ALERTS[name]["for"])


@pytest.mark.parametrize("name", RECORDS)
def test_recording_rule_is_tested(name):
    """Once with the figure that it gives, once where it gives none, or 0."""
    cases = [
        case
        for test in TESTS
        for case in test.get("promql_expr_test", ())
        if name in NAME.findall(case["expr"])
    ]
    values = [[sample["value"] for sample in case.get("exp_samples") or []] for case in cases]
    assert any(value for found in values for value in found), "no test has a figure"
    assert any(not any(found) for found in values), "no test has none"


@pytest.mark.parametrize("name", ALERTS)
def test_alert_says_enough(name):
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    for text in (rule["annotations"]["summary"], rule["annotations"]["description"]):
        assert text.endswith("."), text
    page, _, anchor = rule["annotations"]["runbook_url"].rpartition("/")[2].partition("#")
    assert (
        rule["annotations"]["runbook_url"]
        == f"{{{{ $externalLabels.runbooks }}}}/{page}#{name.lower()}"
    )
    assert anchor == name.lower()
    assert name in sections(RUNBOOKS / page), f"{page} has no section {name}"


def sections(page: Path) -> dict[str, str]:
    """Heading → what stands below it."""
    parts = re.split(r"^## (.+)$", page.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


PAGES = sorted(RUNBOOKS.glob("*.md"))
SECTIONS = {name: text for page in PAGES for name, text in sections(page).items()}


def test_runbooks_are_of_alerts():
    assert set(SECTIONS) == set(ALERTS), "a section that no alert has, or an alert without one"


@pytest.mark.parametrize("name", SECTIONS)
def test_runbook_says_enough(name):
    """What it means, how to see it, what to do; with a command for each question of the second
    kind."""
    parts = re.split(r"^\*\*(Means|See|Do)\.\*\* ?", SECTIONS[name], flags=re.MULTILINE)
    assert parts[1::2] == ["Means", "See", "Do"]
    assert all(len(text.split()) >= 12 for text in parts[2::4]), "Means and Do are sentences"
    assert re.search(r"^```text\n.+?^```$", parts[4], re.MULTILINE | re.DOTALL), "See has commands"


def commands(text: str) -> list[list[str]]:
    """The `nexus …` commands of a page, from blocks and within sentences."""
    lines = [
        line
        for block in re.findall(r"^```text\n(.*?)^```$", text, re.M | re.S)
        for line in block.splitlines()
    ]
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    return [words.split() for words in (*lines, *spans) if words.startswith("nexus ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_runbooks_exist(page):
    found = commands(page.read_text())
    assert found
    for words in found:
        command: click.Command = cli
        context = click.Context(command)
        rest = words[1:]
        while rest and isinstance(command, click.Group):
            inner = command.get_command(context, rest[0])
            assert inner is not None, " ".join(words)
            command, rest = inner, rest[1:]
        whole = not isinstance(command, click.Group) or command.invoke_without_command
        assert whole, f"{' '.join(words)}: not a whole command"
        options = {option for param in command.params for option in param.opts}
        assert {word for word in rest if re.match(r"--?[a-z]", word)} <= options, " ".join(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_families_of_runbooks_exist(page):
    names = {family.name for family in FAMILIES}
    for words in commands(page.read_text()):
        if words[1:3] == ["metrics", "get"]:
            assert f"nexus_{words[3]}" in names, " ".join(words)


def test_times_are_made_shorter_and_nothing_else():
    """What the tests with a real Prometheus run is what is shipped, but for its times."""
    rule = "expr: avg_over_time(job:x:rate5m[1h]) * 3600 > 5\nfor: 2m\nscrape_interval: 15s\n"
    assert shortened(rule, 60) == (
        "expr: avg_over_time(job:x:rate5m[60000ms]) * 3600 > 5\nfor: 2000ms\n"
        "scrape_interval: 250ms\n"
    )
