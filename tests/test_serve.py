"""`nexus serve` as a person starts it: the demo fleet, the first screen, the real OpenAI client,
the end."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest

from tests.support.metrics import scrape
from tests.support.polling import until
from tests.support.processes import (
    Demo,
    Gateway,
    Process,
    backend_toml,
    clean_environ,
    free_port,
    get_json,
)

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def served(module_dir):
    """`nexus serve` in an empty directory, with ports of our own and nothing else."""
    port, operations = free_port(), free_port()
    environ = clean_environ(
        NEXUS_RUN_DIR=str(module_dir / "run"), NEXUS_HEALTH_LISTEN=f"127.0.0.1:{operations}"
    )
    environ["PYTHONPATH"] = str(Path.cwd())
    began = time.monotonic()
    with Process(
        [sys.executable, "-m", "nexus", "serve", "--port", str(port), "--workers", "2"],
        log=module_dir / "serve.log",
        environ=environ,
        cwd=module_dir,
    ) as process:
        process.base = f"http://127.0.0.1:{port}"
        process.began = began
        until(lambda: "Ctrl-C stops it" in process.output(), within_s=60)
        yield process
    assert "Traceback" not in process.output()


def test_options_of_the_start_hold_for_every_process(module_dir, tmp_path):
    """Of its health process too; and commands that know the configuration alone find the gateway
    where it listens."""
    port, operations, other = free_port(), free_port(), free_port()
    file = tmp_path / "nexus.toml"
    with Demo(tmp_path, name="well", pace=0) as well:
        file.write_text(
            f'[server]\nport = {other}\nhost = "127.0.0.1"\n'
            f'[health_check]\nlisten = "127.0.0.1:{operations}"\n[logging]\nformat = "json"\n'
            f'{backend_toml(well)}\n[[backends]]\nname = "down"\nurl = "http://127.0.0.1:9"\n'
            '[[backends]]\nname = "gemini"\nurl = "http://127.0.0.1:9"\ntype = "google"\n'
        )
        environ = clean_environ(XDG_RUNTIME_DIR=str(tmp_path), NEXUS_DISCOVERY="true")
        options = [
            "-p",
            str(port),
            "-H",
            "127.0.0.1",
            "-l",
            "WARN,nexus::health=info",
            "--no-discovery",
        ]
        with Process(
            [
                sys.executable,
                "-m",
                "nexus",
                "serve",
                "-c",
                str(file),
                *options,
                "--no-health-check",
            ],
            log=tmp_path / "serve.log",
            environ=environ,
        ) as process:
            until(lambda: "Ctrl-C stops it" in process.output(), within_s=60)
            screen = process.output()
            assert f"in front of 3 backends from {file}." in screen
            assert "discovery" not in screen
            until(lambda: '"event":"health process ready"' in process.output())
            assert '"event":"worker ready"' not in process.output(), "its level is warn"
            base = f"http://127.0.0.1:{port}"
            until(lambda: scrape(base).value("nexus_backend_up", backend="down") == 1)

            def said(*words: str) -> str:
                done = subprocess.run(
                    [sys.executable, "-m", "nexus", *words, "-c", str(file)],
                    capture_output=True, text=True, timeout=30, env=environ,
                )  # fmt: skip
                assert done.returncode == 0, done.stderr
                return done.stdout

            until(lambda: get_json(f"{base}/v1/models")["data"])
            assert "demo-small" in said("models")
            assert "well" in said("backends", "list")
            assert said("chat", "demo-small", "Hello!", "--max-tokens", "3").strip()


def test_first_screen_says_what_to_do(served):
    screen = served.output()
    assert "two demo backends that make up text" in screen
    assert f"{served.base}/metrics" in screen
    command = next(line for line in screen.splitlines() if line.strip().startswith("curl "))
    answered = subprocess.run(shlex.split(command), capture_output=True, check=True)
    assert json.loads(answered.stdout)["choices"][0]["message"]["content"]
    [line] = [line for line in screen.splitlines() if " python3 -c " in line]
    environ = clean_environ(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    said = subprocess.run(["sh", "-c", line], capture_output=True, env=environ, check=True).stdout
    assert len(said.split()) == 40


def test_the_first_screen_asks_for_a_model_that_is_there(tmp_path):
    with (
        Demo(tmp_path, models=["nomic/*", "it's-mine"], kind="generic", pace=0) as demo,
        Gateway(tmp_path, backend_toml(demo), workers=1) as gateway,
    ):
        [line] = [line for line in gateway.output().splitlines() if line.startswith("    curl ")]
        answered = subprocess.run(["sh", "-c", line], capture_output=True, check=True)
    assert json.loads(answered.stdout)["model"] == "it's-mine"


def test_openai_client(served):
    with openai.OpenAI(base_url=f"{served.base}/v1", api_key="any", max_retries=0) as client:
        messages = [{"role": "user", "content": "Say something"}]
        whole = client.chat.completions.create(model="demo-small", messages=messages)
        assert len(whole.choices[0].message.content.split()) == 40
        assert whole.usage.completion_tokens == 40

        stream = client.chat.completions.create(
            model="demo-large",
            messages=messages,
            stream=True,
            max_tokens=8,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        assert (
            len("".join(c.choices[0].delta.content or "" for c in chunks if c.choices).split()) == 8
        )
        assert chunks[-1].usage.completion_tokens == 8

        vectors = client.embeddings.create(model="demo-small", input=["one", "two"])
        assert [len(item.embedding) for item in vectors.data] == [32, 32]
        assert {model.id for model in client.models.list()} == {"demo-small", "demo-large"}
        assert client.models.retrieve("demo-large").owned_by == "demo-1"
        assert client.completions.create(model="demo-small", prompt="Once").choices[0].text

        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="nope", messages=messages)
        assert missing.value.code == "model_not_found"
        assert missing.value.request_id


def test_request_id_is_taken_from_the_client(served):
    with openai.OpenAI(base_url=f"{served.base}/v1", api_key="any", max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="demo-large",
            messages=[{"role": "user", "content": "x"}],
            extra_headers={"x-request-id": "mine-1"},
        )
        assert raw.headers["x-request-id"] == "mine-1"
        assert raw.headers["x-nexus-backend"] == "demo-1"
        assert raw.headers["x-nexus-backend-type"] == "local"
        assert raw.headers["x-nexus-route-reason"] == "capability-match"
        assert raw.headers["x-nexus-privacy-zone"] == "restricted"
        until(lambda: "id=mine-1" in served.output())
        line = next(line for line in served.output().splitlines() if "id=mine-1" in line)
        assert re.search(
            r"model=demo-large backend=demo-1 status=200 duration_ms=\S+ prompt_tokens=\d+ "
            r"completion_tokens=40 usage=reported attempts=1",
            line,
        )


def test_nothing_of_prompts_is_logged(served):
    assert "Say something" not in served.output()


def test_operations_paths(served):
    health = get_json(f"{served.base}/health")
    assert health["status"] == "healthy"
    assert health["backends"] == {"total": 2, "healthy": 2, "unhealthy": 0}
    assert health["models"] == {"total": 2}
    for path in ("/livez", "/readyz"):
        answered = subprocess.run(
            ["curl", "-s", "-w", "%{http_code}", served.base + path], capture_output=True, text=True
        )
        assert answered.stdout == "ok\n200"
    verbose = subprocess.run(
        ["curl", "-s", f"{served.base}/readyz?verbose"], capture_output=True, text=True
    ).stdout
    assert "[+] backend_usable: demo-1, demo-2" in verbose
    assert "[+] health_process" in verbose


def test_a_demo_backend_that_dies_is_started_again(served):
    """On the address that the configuration names."""
    found = subprocess.run(
        ["pgrep", "-P", str(served.pid), "-f", "demo-2"], capture_output=True, text=True
    ).stdout.split()
    os.kill(int(found[0]), signal.SIGKILL)
    until(lambda: "the demo-2 ended, starting it again" in served.output())
    until(lambda: get_json(f"{served.base}/health")["backends"]["healthy"] == 2, within_s=10)


def test_known_with_the_first_round_of_probes(tmp_path):
    """Metrics are there at once, and the fleet long before the second round; `make bench`
    measures the start."""
    with (
        Demo(tmp_path) as demo,
        Gateway(tmp_path, backend_toml(demo), ready=False, interval_s=3600) as gateway,
    ):
        until(lambda: (gateway.scrape(), gateway.stats()))
        until(lambda: gateway.scrape().value("nexus_backends_healthy") == 1)


def test_ctrl_c_lets_streams_end(tmp_path):
    with Demo(tmp_path, pace=20, length=30) as demo:
        gateway = Gateway(tmp_path, backend_toml(demo))
        with openai.OpenAI(base_url=f"{gateway.base}/v1", api_key="x", max_retries=0) as client:
            stream = client.chat.completions.create(
                model="demo-small", messages=[{"role": "user", "content": "x"}], stream=True
            )
            words = [next(stream)]
            gateway.send(signal.SIGINT)
            gateway.send(signal.SIGUSR1)  # logs are rotated; that does not end the grace
            words += list(stream)
            assert words[-1].choices[0].finish_reason == "stop"
            assert gateway.stop() == 0
            assert [line["status"] for line in gateway.lines("request")] == [200]
            assert not gateway.lines("the health process ended, starting it again")


def test_all_processes_end_with_a_killed_supervisor(tmp_path):
    with Demo(tmp_path) as demo:
        gateway = Gateway(tmp_path, backend_toml(demo))
        pids = [gateway.master_pid(), gateway.health_pid(), *gateway.worker_pids()]
        gateway.stop(number=signal.SIGKILL)
        until(lambda: not any(alive(pid) for pid in pids), within_s=15)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_first_screen_when_no_backend_can_be_used(tmp_path):
    port = free_port()
    config = f'[[backends]]\nname = "gone"\nurl = "http://127.0.0.1:{port}"\n'
    with Gateway(tmp_path, config, ready=False) as gateway:
        until(lambda: "is running, in front of 1 backend from" in gateway.output(), within_s=60)
        assert (
            f"(no backend can be used yet; see the log above and {gateway.base}/readyz?verbose)"
            in gateway.output()
        )
        assert '"model": "YOUR-MODEL"' in gateway.output()
        failed = until(lambda: gateway.lines("backend is now unhealthy"))
        why = (
            f"127.0.0.1:{port} cannot be reached: nothing listens there; start the server, or "
            f"correct "
            f"the url"
        )
        assert [(line["backend"], line["why"]) for line in failed] == [("gone", why)]


def test_what_another_holds_is_refused(tmp_path):
    with Demo(tmp_path) as demo, Gateway(tmp_path, backend_toml(demo)) as gateway:

        def refused(**changed: str) -> str:
            (tmp_path / "second").mkdir(exist_ok=True)
            text = gateway.file.read_text()
            for old, new in changed.values():
                text = text.replace(old, new)
            (tmp_path / "second.toml").write_text(text)
            ended = subprocess.run(
                [sys.executable, "-m", "nexus", "serve", "-c", str(tmp_path / "second.toml")],
                capture_output=True, text=True, timeout=20, env=clean_environ(),
            )  # fmt: skip
            assert ended.returncode == 2
            assert len(ended.stderr.strip().splitlines()) == 1
            return ended.stderr

        port = (f"port = {gateway.port}", f"port = {free_port()}")
        listen = (f"127.0.0.1:{gateway.operations_port}", f"127.0.0.1:{free_port()}")
        run_dir = (str(gateway.run_dir), str(tmp_path / "second"))
        assert (
            f"in use by the gateway at http://127.0.0.1:{gateway.port} (pid {gateway.master_pid()})"
            in refused(a=port, b=listen)
        )
        assert "Cannot listen on" in refused(a=run_dir, b=listen)
        assert "[health_check] listen" in refused(a=run_dir, b=port)
        assert scrape(gateway.base).value("nexus_backends_healthy") == 1


def test_a_configuration_that_is_wrong_starts_nothing(tmp_path):
    (tmp_path / "nexus.toml").write_text("[server]\nprot = 80\n")
    ended = subprocess.run(
        [sys.executable, "-m", "nexus", "serve", "-c", str(tmp_path / "nexus.toml")],
        capture_output=True, text=True, timeout=20, env=clean_environ(),
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr == f"{tmp_path}/nexus.toml: [server] has no key prot; did you mean port?\n"


def test_a_directory_of_keys_that_cannot_be_used_starts_nothing(tmp_path):
    (tmp_path / "state").write_text("a file")
    (tmp_path / "nexus.toml").write_text(
        f'[server]\nport = {free_port()}\nrun_dir = "{tmp_path}/run"\n'
        f'state_dir = "{tmp_path}/state"\n'
        f'[health_check]\nlisten = "127.0.0.1:{free_port()}"\n'
    )
    ended = subprocess.run(
        [sys.executable, "-m", "nexus", "serve", "-c", str(tmp_path / "nexus.toml")],
        capture_output=True, text=True, timeout=60, env=clean_environ(),
    )  # fmt: skip
    assert ended.returncode == 2
    assert f"{tmp_path}/state/keys.json: the keys cannot be read" in ended.stderr
    assert "starting it again" not in ended.stderr


def test_port_is_free_again_at_once(tmp_path):
    with Demo(tmp_path) as demo:
        for _ in range(2):
            gateway = Gateway(tmp_path, backend_toml(demo))
            assert scrape(gateway.base).total("nexus_requests_total") == 0
            assert gateway.stop() == 0
        with (
            pytest.raises(ConnectionRefusedError),
            socket.create_connection(("127.0.0.1", gateway.port), timeout=1),
        ):
            pass


def test_the_first_screen_shows_how_a_key_is_made_and_used(tmp_path):
    """Every line that it shows works, one after the other, in a shell."""
    with (
        Demo(tmp_path, pace=0) as demo,
        Gateway(tmp_path, backend_toml(demo) + '[auth]\nmode = "keys"\n', workers=1) as gateway,
    ):
        shown = [line for line in gateway.output().splitlines() if line.startswith("    ")]
        [add] = [line for line in shown if line.startswith("    nexus keys add")]
        [curl] = [line for line in shown if line.startswith("    curl ")]
        [openai_client] = [line for line in shown if " python3 -c " in line]
        script = f'eval "$({add} | grep "export OPENAI_")" && {curl} && echo && {openai_client}'
        environ = clean_environ(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        done = subprocess.run(["sh", "-c", script], capture_output=True, env=environ, check=False)
    by_curl, _, by_openai = done.stdout.partition(b"\n")
    assert json.loads(by_curl)["model"] == "demo-small", done.stderr
    assert len(by_openai.split()) == 40, done.stderr
