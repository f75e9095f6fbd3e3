"""One list of problems: the dashboard, `nexus status`, `nexus doctor` and both ports agree."""

import html
import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest

from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml, clean_environ, get_json

pytestmark = pytest.mark.e2e


def nexus(directory, *words: str):
    done = subprocess.run(
        [sys.executable, "-m", "nexus", *words, "--json", "-c", str(directory / "nexus.toml")],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environ(),
    )
    assert done.returncode == 1, done.stderr
    return json.loads(done.stdout)


def codes(gateway, base: str) -> set[str]:
    request = urllib.request.Request(f"{base}/v1/problems")
    with urllib.request.urlopen(request, timeout=10) as response:
        return {one["code"] for one in json.load(response)["problems"]}


def page(gateway) -> str:
    with urllib.request.urlopen(gateway.base, timeout=10) as response:
        return html.unescape(response.read().decode())


def test_all_show_the_same_problems(tmp_path):
    with (
        Demo(tmp_path, name="good", models=["m"]) as good,
        Demo(tmp_path, name="gone", models=["m"]) as gone,
        Gateway(tmp_path, backend_toml(good, gone), interval_s=0.2) as gateway,
    ):
        until(lambda: gateway.scrape().value("nexus_backends_healthy") == 2)
        until(lambda: codes(gateway, gateway.base) == codes(gateway, gateway.operations) == set())
        gone.stop()
        text = (tmp_path / "nexus.toml").read_text()
        (tmp_path / "nexus.toml").write_text(text.replace("vllm", "vlm"))
        gateway.send(signal.SIGHUP)
        expected = {"backend_unhealthy", "reload_refused"}
        until(lambda: codes(gateway, gateway.base) == expected)
        assert codes(gateway, gateway.operations) == expected

        listed = get_json(f"{gateway.base}/v1/problems")["problems"]
        status = {one["code"]: one["what"] for one in nexus(tmp_path, "status")["problems"]}
        assert expected <= set(status)
        findings = nexus(tmp_path, "doctor", "--no-request")["findings"]
        failed = {(one["area"], one["what"]) for one in findings if one["state"] == "fail"}
        (tmp_path / "nexus.toml").write_text(text)
        for problem in listed:
            shown = status[problem["code"]]
            assert shown.startswith(problem["message"])
            subject = problem["subject"]
            area = f"backend {subject}" if problem["code"].startswith("backend_") else subject
            assert (area, shown) in failed
            until(lambda shown=shown: shown in page(gateway))  # written after the list, less often


def test_status_says_that_the_health_process_is_dead(tmp_path):
    with Demo(tmp_path, models=["m"]) as demo, Gateway(tmp_path, backend_toml(demo)) as gateway:
        os.kill(gateway.pid, signal.SIGSTOP)  # its supervisor must not start another one
        try:
            os.kill(gateway.health_pid(), signal.SIGKILL)
            until(lambda: "health_process_down" in codes(gateway, gateway.base))
            shown = [one["code"] for one in nexus(tmp_path, "status")["problems"]]
            assert shown == ["health_process_down"]
        finally:
            os.kill(gateway.pid, signal.SIGCONT)
