"""Both ports do what their `/openapi.json` says, and no request that it can describe makes them
fail."""

import subprocess
import sys
from typing import Any

import pytest

from tests.support.processes import Demo, Gateway, backend_toml, get_json

pytestmark = [pytest.mark.e2e, pytest.mark.long]

HOOKS = """
import schemathesis

@schemathesis.hook
def map_body(_, body):
    if isinstance(body, dict) and isinstance(body.get("model"), str) and body["model"]:
        return body | {"model": "demo-small"}
    return body
"""
"""Other models get 404 and reach no backend."""
CONFIG = """
hooks = "%s"
headers = { Authorization = "Bearer %s" }
[generation]
max-examples = 15
[checks]
# Without `protect` the token is asked for by changes alone.
ignored_auth.enabled = false
[[operations]]
# Some settings contradict each other, which the schema does not say.
include-name = "POST /admin/backends"
checks.positive_data_acceptance.enabled = false
[[operations]]
# A team and an endpoint are names of the configuration, and 0 and too high a rate are refused.
include-name = ["POST /admin/keys", "PATCH /admin/keys/{key_id}"]
checks.positive_data_acceptance.enabled = false
[[operations]]
# An answer without an end.
include-path = "/v1/live"
enabled = false
"""
DISABLED, OWN = "/v1/live", "/openapi.json"
"""What the configuration disables; the document's own path, which schemathesis leaves out."""


def operations_of(document: dict[str, Any]) -> list[tuple[str, str]]:
    """(method, path) of each operation."""
    return [(method, path) for path, methods in document["paths"].items() for method in methods]


@pytest.mark.parametrize("port", ["base", "operations"])
def test_no_failure_and_no_difference(tmp_path, port):
    with Demo(tmp_path, pace=0) as demo, Gateway(tmp_path, backend_toml(demo)) as gateway:
        every = operations_of(get_json(f"{getattr(gateway, port)}/openapi.json"))
        total = [path for _, path in every if path != OWN]
        tested = [path for path in total if path != DISABLED]
        assert (len(every), len(total)) == (len(tested) + 2, len(tested) + 1)
        config = tmp_path / "schemathesis.toml"
        hooks = tmp_path / "hooks.py"
        hooks.write_text(HOOKS)
        config.write_text(CONFIG % (hooks, (gateway.run_dir / "admin.token").read_text()))
        command = [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run",
            f"{getattr(gateway, port)}/openapi.json", "--seed", "1", "--no-color",
            "--phases", "examples,coverage,fuzzing", "--suppress-health-check", "all",
        ]  # fmt: skip
        found = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
        assert f"Operations:       {len(tested)} selected / {len(total)} total" in found.stdout
        assert f"Tested: {len(tested)}\n" in found.stdout
        assert "Traceback" not in gateway.output()
