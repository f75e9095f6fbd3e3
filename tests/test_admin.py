"""Operators change the running gateway: backends added, removed, drained; kept as long as was
asked, and no longer."""

import json
import os
import signal
import urllib.error
import urllib.request

import pytest

from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml, get_json

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demos")
    with Demo(directory, name="one", pace=0) as one, Demo(directory, name="two", pace=0) as two:
        yield one, two


def call(base, method, path, body=None, *, token):
    """(status, answer) of a call to the operators' endpoints."""
    headers = {"content-type": "application/json"} | (
        {"authorization": f"Bearer {token}"} if token else {}
    )
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{base}/admin/{path}", data=data, method=method, headers=headers
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def token_of(gateway):
    return (gateway.run_dir / "admin.token").read_text()


def served_by(gateway):
    body = json.dumps(
        {"model": "demo-small", "messages": [{"role": "user", "content": "x"}]}
    ).encode()
    request = urllib.request.Request(
        f"{gateway.base}/v1/chat/completions",
        data=body,
        headers={"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.headers["x-nexus-backend"]
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_the_token(tmp_path, demos):
    with Gateway(tmp_path, backend_toml(demos[0]), workers=1) as gateway:
        assert (gateway.run_dir / "admin.token").stat().st_mode & 0o777 == 0o600
        for wrong in (None, "guessed"):
            status, answer = call(gateway.operations, "GET", "backends", token=wrong)
            assert (status, answer["error"]["code"]) == (401, "unauthorized")
        assert call(gateway.operations, "GET", "backends", token=token_of(gateway))[0] == 200
        status, _ = call(gateway.base, "GET", "backends", token=token_of(gateway))
        assert status == 404  # clients' port has no such paths


def test_a_token_of_the_operators_own(tmp_path, demos):
    with Gateway(
        tmp_path, backend_toml(demos[0]), workers=1, environ={"NEXUS_ADMIN_TOKEN": "ours"}
    ) as gateway:
        assert call(gateway.operations, "GET", "backends", token="ours")[0] == 200
        assert call(gateway.operations, "GET", "backends", token=token_of(gateway))[0] == 401


def test_added_drained_removed(tmp_path, demos):
    one, two = demos
    with Gateway(tmp_path, backend_toml(one)) as gateway:
        token = token_of(gateway)
        status, added = call(
            gateway.operations,
            "POST",
            "backends",
            {"name": "two", "url": two.url, "type": "vllm", "tier": 3},
            token=token,
        )
        assert (status, added["name"], added["tier"], added["origin"], added["draining"]) == (
            201,
            "two",
            3,
            "added",
            False,
        )
        until(lambda: gateway.scrape().value("nexus_backends_healthy") == 2)
        status, answer = call(
            gateway.operations, "POST", "backends", {"name": "two", "url": two.url}, token=token
        )
        assert (status, answer["error"]["code"]) == (409, "backend_exists")
        status, answer = call(
            gateway.operations, "POST", "backends", {"name": "three", "uri": two.url}, token=token
        )
        assert status == 400
        assert "[backends] has no key uri; did you mean url?" in answer["error"]["message"]

        status, drained = call(gateway.operations, "POST", "backends/one/drain", token=token)
        assert (status, drained["draining"], drained["status"]) == (200, True, "healthy")
        assert {served_by(gateway) for _ in range(20)} == {"two"}
        assert gateway.scrape().series("nexus_backend_draining", "backend") == {("one",): 1}
        assert [entry["owned_by"] for entry in get_json(f"{gateway.base}/v1/models")["data"]] == [
            "two"
        ]

        assert call(gateway.operations, "DELETE", "backends/two", token=token) == (
            200,
            {"removed": "two"},
        )
        assert served_by(gateway) == 503  # what is left is drained
        assert (
            call(gateway.operations, "POST", "backends/one/undrain", token=token)[1]["draining"]
            is False
        )
        assert served_by(gateway) == "one"
        status, answer = call(gateway.operations, "DELETE", "backends/two", token=token)
        assert (status, answer["error"]["code"]) == (404, "unknown_backend")
        assert gateway.settled().series("nexus_requests_total", "backend", "status") == {
            ("two", "200"): 20, ("none", "503"): 1, ("one", "200"): 1,
        }  # fmt: skip


def test_kept_as_long_as_requested(tmp_path, demos):
    one, two = demos

    def origins(gateway):
        found = call(gateway.operations, "GET", "backends", token=token_of(gateway))[1]["backends"]
        return {backend["name"]: (backend["origin"], backend["draining"]) for backend in found}

    with Gateway(tmp_path, backend_toml(one)) as gateway:
        token = token_of(gateway)
        assert (
            call(
                gateway.operations, "POST", "backends", {"name": "now", "url": two.url}, token=token
            )[0]
            == 201
        )
        wanted = {"name": "kept", "url": two.url, "save": True}
        assert call(gateway.operations, "POST", "backends", wanted, token=token)[0] == 201
        assert (
            call(gateway.operations, "POST", "backends/one/drain", {"save": True}, token=token)[0]
            == 200
        )
        expected = {"one": ("file", True), "kept": ("saved", False), "now": ("added", False)}
        assert origins(gateway) == expected

        before = gateway.health_pid()
        os.kill(before, signal.SIGKILL)
        until(lambda: gateway.health_pid() != before)
        until(lambda: origins(gateway) == expected)
        gateway.send(signal.SIGHUP)  # the operator's file is read again
        until(lambda: gateway.lines("configuration reloaded"))
        assert origins(gateway) == expected
    assert two.url not in (tmp_path / "nexus.toml").read_text()
    assert "kept" in (tmp_path / "nexus.saved.json").read_text()

    with Gateway(tmp_path, backend_toml(one)) as gateway:
        until(lambda: origins(gateway) == {"one": ("file", True), "kept": ("saved", False)})


def test_what_cannot_be_kept_is_refused(tmp_path, demos):
    one, two = demos
    with Gateway(tmp_path, backend_toml(one)) as gateway:
        token = token_of(gateway)
        assert (
            call(
                gateway.operations, "POST", "backends", {"name": "now", "url": two.url}, token=token
            )[0]
            == 201
        )
        (
            tmp_path / "nexus.saved.json"
        ).mkdir()  # what cannot be written is refused, and changes nothing
        wanted = {"name": "kept", "url": two.url, "save": True}
        status, answer = call(gateway.operations, "POST", "backends", wanted, token=token)
        assert status == 400
        assert "the change cannot be kept there" in answer["error"]["message"]
        assert gateway.scrape().value("nexus_backends_total") == 2


def test_a_damaged_file_of_saved_changes_is_reported(tmp_path, demos):
    (tmp_path / "nexus.saved.json").write_text('{"added": 3}')
    with Gateway(tmp_path, backend_toml(demos[0]), ready=False) as gateway:
        until(lambda: "the saved changes cannot be read" in gateway.output())
        assert "nexus.saved.json" in gateway.output()
