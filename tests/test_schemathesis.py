"""Both ports do what their `/openapi.json` says, and no request that it can describe makes them
fail."""

import json
import subprocess
import sys
import urllib.request
from typing import Any

import pytest

from tests.support.processes import Demo, Gateway, backend_toml, get_json

pytestmark = [pytest.mark.e2e, pytest.mark.long]

HOOKS = """
import json, pathlib, schemathesis

FORM_TYPE, FORM = %r
FILE, BATCH, *MORE_FILES = %r
SUCCEEDED = pathlib.Path(%r)

@schemathesis.hook
def map_body(_, body):
    if isinstance(body, dict) and isinstance(body.get("model"), str) and body["model"]:
        return body | {"model": "demo-small"}
    return body

@schemathesis.hook
def before_call(_, case, kwargs):
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    match case.method, case.operation.path:
        case "POST", "/v1/files":
            case.media_type, case.body = "application/octet-stream", FORM
            case.headers["content-type"] = FORM_TYPE
        case "POST", "/v1/batches":
            case.body = {"input_file_id": FILE, "endpoint": "/v1/chat/completions"}
        case "DELETE", "/v1/files/{id}":
            case.path_parameters["id"] = MORE_FILES.pop() if MORE_FILES else "gone"
        case _, "/v1/files/{id}" | "/v1/files/{id}/content":
            case.path_parameters["id"] = FILE
        case _, "/v1/batches/{id}" | "/v1/batches/{id}/cancel":
            case.path_parameters["id"] = BATCH
        case "DELETE", "/admin/backends/{name}":
            case.path_parameters["name"] = "spare"
        case _, "/admin/backends/{name}/drain" | "/admin/backends/{name}/undrain":
            case.path_parameters["name"] = "demo"
        case "POST", "/admin/budgets/grants":
            of_team = {"budget": "teams", "subject": "team red"}
            case.body |= of_team if case.body.get("subject") else {"budget": "all"}

@schemathesis.hook
def after_call(_, case, response):
    if response.status_code < 300:
        with SUCCEEDED.open("a") as file:
            file.write(json.dumps([case.method.lower(), case.operation.path]) + chr(10))
"""
"""Requests that fit the schema name what exists: others get 404 and reach nothing."""
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
# The backend judges the body, which the gateway sends on as it came.
include-name = ["POST /v1/files", "POST /v1/batches"]
checks.positive_data_acceptance.enabled = false
[[operations]]
# An answer without an end.
include-path = "/v1/live"
enabled = false
"""
GATEWAY = """
[endpoints]
files = "demo"
[[costs.price]]
input = "1"
output = "10"
[[budgets]]
name = "all"
usd = "9000000"
[[budgets]]
name = "teams"
usd = "9000000"
each = ["team"]
[[backends]]
name = "spare"
url = "%s"
type = "vllm"
"""
FORM_TYPE = "multipart/form-data; boundary=x"
FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n{}\r\n--x--\r\n'
DISABLED, OWN = "/v1/live", "/openapi.json"
"""What the configuration disables; the document's own path, which schemathesis leaves out."""
UNREACHED = {
    "base": {DISABLED, "/assets/{name}", "/my-key/{name}"},
    "operations": {DISABLED, "/assets/{name}"},
}
"""Paths of which an operation does not succeed: their names are not generated."""


def operations_of(document: dict[str, Any]) -> list[tuple[str, str]]:
    """(method, path) of each operation."""
    return [(method, path) for path, methods in document["paths"].items() for method in methods]


def stored(gateway: Gateway) -> list[str]:
    """The ids of a file, a batch, and further files."""

    def post(path: str, kind: str, body: bytes) -> str:
        request = urllib.request.Request(gateway.base + path, body, {"content-type": kind})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)["id"]

    files = [post("/v1/files", FORM_TYPE, FORM) for _ in range(20)]
    batch = post("/v1/batches", "application/json", b"{}")
    return [files[0], batch, *files[1:]]


@pytest.mark.parametrize("port", ["base", "operations"])
def test_no_failure_and_no_difference(tmp_path, port):
    with (
        Demo(tmp_path, pace=0) as demo,
        Gateway(tmp_path, backend_toml(demo) + GATEWAY % demo.url) as gateway,
    ):
        every = operations_of(get_json(f"{getattr(gateway, port)}/openapi.json"))
        total = [path for _, path in every if path != OWN]
        tested = [path for path in total if path != DISABLED]
        assert (len(every), len(total)) == (len(tested) + 2, len(tested) + 1)
        config = tmp_path / "schemathesis.toml"
        hooks = tmp_path / "hooks.py"
        succeeded = tmp_path / "succeeded"
        hooks.write_text(HOOKS % ((FORM_TYPE, FORM), stored(gateway), str(succeeded)))
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
        reached = {tuple(json.loads(line)) for line in succeeded.read_text().splitlines()}
        assert {path for _, path in set(every) - reached} == {OWN, *UNREACHED[port]}
