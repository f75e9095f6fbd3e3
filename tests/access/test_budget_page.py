"""docs/budgets.md, followed step by step."""

import json
import re
from pathlib import Path

import pytest

from tests.access.test_page import shell
from tests.support.processes import ROOT, Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

PAGE = (ROOT / "docs" / "budgets.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_works_as_written(module_dir: Path):
    reload, make, ask, show, own = blocks("sh")
    [settings] = blocks("toml")
    state = {"XDG_STATE_HOME": str(module_dir / "state")}
    with (
        Demo(module_dir, models=["demo-small"], pace=0) as demo,
        Gateway(module_dir, backend_toml(demo), workers=2, environ=state) as gateway,
    ):
        with gateway.file.open("a") as file:
            file.write(f"\n{settings}\n")
        shell(reload, gateway)
        key = re.search(r"sk-nx-\S+", shell(make, gateway))[0]
        replies = [json.loads(shell(ask, gateway, KEY=key)) for _ in range(5)]
        assert "choices" in replies[0]
        refused = replies[-1]["error"]
        assert refused["code"] == "insufficient_quota"
        assert re.match(
            r"Budget 'each agent' of key \w+: 0\.2 USD a day; 0\.\d+ spent, ", refused["message"]
        )
        gateway.settled()
        [budget] = json.loads(shell(own, gateway, KEY=key))["budgets"]
        assert (budget["limit_usd"], budget["held_usd"]) == ("0.2", "0")
        line = rf"each agent +key \w+ +hard +0\.2 +{budget['spent_usd']} +0 +{budget['left_usd']}"
        assert re.search(line, shell(show, gateway))
        assert re.search(r"\+0[12]:00|Z", budget["resets"])
