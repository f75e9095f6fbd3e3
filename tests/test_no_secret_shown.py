"""No secret shows anywhere: keys, tokens and clients' credentials are looked for in every output
of every path."""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.support.polling import until
from tests.support.processes import Demo, Gateway, clean_environ, free_port

pytestmark = pytest.mark.e2e

KEY = "sk-canary-of-the-backend-0123456789"
TOKEN = "canary-of-the-operators-0123456789"
CLIENT = "canary-of-the-client-0123456789"
FOR_CLIENTS = "canary-elsewhere-0123456789"
CANARIES = [KEY, TOKEN, CLIENT, FOR_CLIENTS]
CANARIES += [base64.b64encode(f"x:{secret}".encode()).decode().rstrip("=") for secret in CANARIES]
ENVIRON = {
    "ROOM_KEY": f"{KEY}\n",  # as a secret made by `echo` has it
    "NEXUS_ADMIN_TOKEN": f"{TOKEN}\r\n",
}


class Echo(BaseHTTPRequestHandler):
    """A backend that repeats the credentials that it is sent, in its errors' bodies and headers."""

    protocol_version = "HTTP/1.1"
    seen: set[str] = set()

    def do_GET(self):
        self._answer(
            200,
            {"object": "list", "data": [{"id": "echo", "object": "model", "max_model_len": 4096}]},
        )

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        said = f"Incorrect API key provided: {self.headers.get('authorization')}."
        self._answer(
            401,
            {
                "error": {
                    "message": said,
                    "type": "invalid_request_error",
                    "code": "invalid_api_key",
                }
            },
        )

    def _answer(self, status, body):
        Echo.seen |= {
            value for name, value in self.headers.items() if name.lower() == "authorization"
        }
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.send_header("x-seen", str(self.headers.get("authorization")))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def echo():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def config(echo, demo):
    """Backends that are well, that refuse the key, that are not there, that are no TLS servers."""
    places = {
        "echo": echo,
        "well": demo.url,
        "gone": f"http://127.0.0.1:{free_port()}",
        "plain": demo.url.replace("http:", "https:"),
        "nowhere": "http://nobody.invalid",
    }
    return "".join(
        f'[[backends]]\nname = "{name}"\nurl = "{url}"\ntype = "vllm"\napi_key_env = "ROOM_KEY"\n'
        for name, url in places.items()
    )


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, echo):
    directory = tmp_path_factory.mktemp("canary")
    with (
        Demo(directory, pace=0, name="well") as demo,
        Gateway(directory, config(echo, demo), environ=ENVIRON) as gateway,
    ):
        gateway.demo, gateway.outputs = demo, {}
        yield gateway


def ask(gateway, name, base, path, *, token=None, body=None, method=None):
    """Keep what is answered, headers included, and give the status."""
    headers = {"content-type": "application/json"} | (
        {"authorization": f"Bearer {token}"} if token else {}
    )
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(base + path, data=data, method=method, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=20)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        content = (
            answer.read(200_000) if path != "/v1/live" else answer.readline() + answer.readline()
        )
        gateway.outputs[name] = str(answer.headers) + content.decode(errors="replace")
        return answer.status


def command(gateway, *words, **environ):
    environ = clean_environ(**ENVIRON | environ)
    found = subprocess.run(
        [sys.executable, "-m", "nexus", *words, "-c", str(gateway.file)],
        capture_output=True, text=True, timeout=120, env=environ,
    )  # fmt: skip
    gateway.outputs[f"nexus {' '.join(words)}"] = found.stdout + found.stderr
    return found.returncode


def chat(model):
    return {"model": model, "messages": [{"role": "user", "content": "x"}]}


def test_no_canary_anywhere(gateway):
    port, operations = gateway.base, gateway.operations
    until(
        lambda: "Bearer " + KEY in Echo.seen
    )  # stripped, it reaches the backend that is meant to get it
    until(lambda: "plain" in gateway.output() and "nowhere" in gateway.output())
    assert (
        ask(gateway, "echo", port, "/v1/chat/completions", token=CLIENT, body=chat("echo")) == 401
    )
    assert (
        ask(gateway, "well", port, "/v1/chat/completions", token=CLIENT, body=chat("demo-small"))
        == 200
    )
    assert (
        ask(gateway, "unknown", port, "/v1/chat/completions", token=CLIENT, body=chat("none"))
        == 404
    )
    gateway.demo.fault("status=500,message=it broke")
    assert (
        ask(gateway, "failed", port, "/v1/chat/completions", token=CLIENT, body=chat("demo-small"))
        == 502
    )
    gateway.demo.fault("")
    for token in (None, TOKEN, CLIENT):
        for where, base in (("clients", port), ("operations", operations)):
            for path in (
                "/",
                "/metrics",
                "/v1/stats",
                "/v1/history",
                "/v1/live",
                "/health",
                "/readyz?verbose",
                "/livez?verbose",
                "/openapi.json",
                "/v1/models",
                "/admin/backends",
                "/nothing",
            ):
                ask(gateway, f"{where} {path} {token}", base, path, token=token)
    added = {
        "name": "more",
        "url": "http://127.0.0.1:9",
        "type": "generic",
        "api_key_env": "ROOM_KEY",
    }
    assert ask(gateway, "add", operations, "/admin/backends", token=TOKEN, body=added) == 201
    for name, body in {
        "unknown key": {KEY: 1},
        "no url": {"name": "x", "url": KEY},
        "env": {**added, "name": "y", "api_key_env": KEY},
    }.items():
        assert ask(gateway, name, operations, "/admin/backends", token=TOKEN, body=body) == 400
    for words in (
        ("status",),
        ("status", "--json"),
        ("backends", "list"),
        ("backends", "list", "--json"),
        ("doctor",),
        ("history",),
        ("history", "--json"),
        ("models",),
        ("stats",),
        ("config", "show"),
        ("config", "check"),
        ("route", "explain", "demo-small"),
        ("chat", "echo", "hello"),
    ):
        command(gateway, *words)
    assert KEY[-8:] + "\n" in (split := f"{KEY}\nsecond-line")
    for words in (("config", "check"), ("serve",), ("doctor",)):
        assert command(gateway, *words, ROOM_KEY=split) in (1, 2)
        assert (
            "has a character that no header can carry"
            in gateway.outputs[f"nexus {' '.join(words)}"]
        )
    before = gateway.file.read_text()
    gateway.file.write_text(
        before
        + '\n[[backends]]\nname = "well"\nurl = "http://h"\napi_key_env = "NEXUS_ADMIN_TOKEN"\n'
    )
    assert command(gateway, "reload") == 2
    gateway.file.write_text(before)
    assert command(gateway, "reload", "--json") == 0
    worker = workers_of(gateway)[0]
    os.kill(worker, signal.SIGKILL)
    until(lambda: worker not in workers_of(gateway) and len(workers_of(gateway)) == 2)

    own = (gateway.run_dir / "admin.token").read_text()
    for file in (
        path for path in gateway.run_dir.rglob("*") if path.is_file() and path.name != "admin.token"
    ):
        with contextlib.suppress(FileNotFoundError):
            gateway.outputs[str(file)] = file.read_bytes().decode("latin-1")
    gateway.outputs["log"] = gateway.output()
    assert gateway.run_dir.joinpath("fleet.json").exists()
    assert "ROOM_KEY" in gateway.outputs[str(gateway.run_dir / "fleet.json")]
    assert "API key provided: Bearer ***" in gateway.outputs["echo"]
    assert "healthy" in gateway.outputs["nexus status"]
    found = [
        (name, canary)
        for name, text in gateway.outputs.items()
        for canary in [*CANARIES, own]
        if canary in text
    ]
    assert found == []
    assert Echo.seen == {"Bearer " + KEY}


def workers_of(gateway):
    master = next(pid for pid in children(gateway.pid) if any(children(pid)))
    return children(master)


def gateway_worker(gateway):
    return workers_of(gateway)[0]


def children(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
