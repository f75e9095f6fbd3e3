"""Changes while it runs: no process is replaced, nothing in flight notices; a bad file changes
nothing."""

import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.support.load import ParsedRequest, chat, run
from tests.support.polling import until
from tests.support.processes import ROOT, Demo, Gateway, backend_toml, clean_environ

pytestmark = pytest.mark.e2e


def nexus(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nexus", *arguments],
        cwd=ROOT,
        env=clean_environ(**environ),
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_backends_come_and_go_under_load(tmp_path: Path):
    with (
        Demo(tmp_path, name="a", models=["m"], pace=60) as a,
        Demo(tmp_path, name="b", models=["m"], pace=60) as b,
        Gateway(tmp_path, backend_toml(a)) as gateway,
    ):
        pids, health = gateway.worker_pids(), gateway.health_pid()
        stream_statuses: list[tuple[int, bytes]] = []
        asks = [chat("stream", "m", stream=True)] * 6
        streams = threading.Thread(
            target=run,
            args=(gateway.port, asks),
            kwargs={"concurrency": 6, "seen": lambda _, s, c: stream_statuses.append((s, c))},
        )
        streams.start()
        until(lambda: a.tally()["open"] == 6)
        statuses: Counter[int] = Counter()
        stop = threading.Event()

        def endless():
            while not stop.is_set():
                yield chat("x", "m", max_tokens=2)

        def seen(_, status: int, __: bytes) -> None:
            statuses[status] += 1

        load = threading.Thread(
            target=run, args=(gateway.port, endless()), kwargs={"concurrency": 4, "seen": seen}
        )
        load.start()

        loaded = gateway.scrape().value("nexus_config_last_reload_success_timestamp_seconds")
        gateway.write(backend_toml(a, b) + '[routing.aliases]\n"other" = "m"\n')
        done = nexus("reload", "-c", str(gateway.file))
        assert (done.returncode, done.stdout) == (0, "Reloaded: 2 backends.\n"), done.stderr
        until(lambda: b.tally()["requests"])
        gateway.write(backend_toml(b, max_concurrent=50))
        shown = nexus("reload", "-c", str(gateway.file), "--json")
        assert json.loads(shown.stdout)["reloaded"] is True
        assert json.loads(shown.stdout)["backends"] == 1
        until(lambda: gateway.scrape().value("nexus_backends_total") == 1)
        streams.join(30)
        stop.set()
        load.join(30)
        assert [status for status, _ in stream_statuses] == [200] * 6
        assert all(content.endswith(b"[DONE]\n\n") for _, content in stream_statuses)
        assert set(statuses) == {200}
        assert gateway.worker_pids() == pids
        assert gateway.health_pid() == health
        scrape = gateway.settled()
        assert scrape.value("nexus_config_last_reload_successful") == 1
        assert scrape.value("nexus_config_last_reload_success_timestamp_seconds") > loaded > 1e9
        assert scrape.value("nexus_accounting_imbalance") == 0
        assert scrape.total("nexus_requests_total", status="200") == 6 + statuses[200]


def test_an_invalid_file_changes_nothing(tmp_path: Path):
    with (
        Demo(tmp_path, name="a", models=["m"], pace=0) as a,
        Gateway(tmp_path, backend_toml(a)) as gateway,
    ):
        good = gateway.file.read_text()
        for broken in (
            good + '[routing]\nstrategie = "smart"\n',
            "this is = = not toml",
            good + 'x = "\n',
        ):
            gateway.file.write_text(broken)
            # The run directory cannot be read out of every broken file: then the environment names
            # it.
            done = subprocess.run(
                [sys.executable, "-m", "nexus", "reload", "-c", str(gateway.file)],
                cwd=ROOT,
                env=clean_environ(NEXUS_RUN_DIR=str(gateway.run_dir)),
                capture_output=True,
                text=True,
                timeout=30,
            )
            assert done.returncode == 2, done
            assert "Nothing was changed; the gateway goes on as before." in done.stderr
            assert str(gateway.file) in done.stderr
            until(lambda: gateway.scrape().value("nexus_config_last_reload_successful") == 0)
        assert (
            "did you mean strategy?"
            in gateway.lines("configuration not reloaded, the old one stays")[0]["why"]
        )
        statuses: list[int] = []
        run(
            gateway.port,
            [chat("x", "m")] * 4,
            concurrency=2,
            seen=lambda _, status, __: statuses.append(status),
        )
        assert statuses == [200] * 4
        gateway.file.write_text(good.replace("workers = 2", "workers = 3"))
        done = nexus("reload", "-c", str(gateway.file))
        assert done.returncode == 0
        assert "These take effect at the next start: server.workers." in done.stdout
        until(lambda: gateway.scrape().value("nexus_config_last_reload_successful") == 1)


def test_the_log_and_a_small_limit_of_bodies_change(tmp_path: Path):
    """The limit holds for bodies that come in one piece with their headers, too."""

    def statuses(of: ParsedRequest) -> set[int]:
        found: list[int] = []
        run(gateway.port, [of] * 4, concurrency=2, seen=lambda _, status, __: found.append(status))
        return set(found)

    large = chat("large", "m", user="x" * 3000)
    with (
        Demo(tmp_path, models=["m"], pace=0) as demo,
        Gateway(tmp_path, backend_toml(demo)) as gateway,
    ):
        assert statuses(large) == {200}
        until(lambda: len(gateway.lines("request")) == 4)
        good = gateway.file.read_text()
        assert "[logging]" in good
        gateway.file.write_text(
            good.replace("[server]", "[server]\nmax_request_bytes = 2048").replace(
                "[logging]", '[logging]\nlevel = "warn"'
            )
        )
        assert nexus("reload", "-c", str(gateway.file)).returncode == 0
        until(lambda: statuses(large) == {413}, within_s=10)
        logged = len(gateway.lines("request"))
        assert statuses(chat("x", "m")) == {200}
        until(lambda: gateway.scrape().value("nexus_pending_requests") == 0)
        assert len(gateway.lines("request")) == logged


def test_a_file_that_cannot_be_read_is_not_reloaded(tmp_path: Path):
    """It does not say which gateway it is for; the one that is found may use another file."""
    other = tmp_path / "other.toml"
    other.write_text("[server\n")
    with Demo(tmp_path) as demo, Gateway(tmp_path, backend_toml(demo)) as gateway:
        done = nexus("reload", "-c", str(other), NEXUS_RUN_DIR=str(gateway.run_dir))
        assert done.returncode == 2
        assert f"{other}: this is not TOML" in done.stderr
        assert (
            f"The gateway of {gateway.run_dir} was reloaded; it uses another file." in done.stderr
        )


def test_a_file_that_the_gateway_does_not_use(tmp_path: Path):
    """Without -c, `nexus.toml` in the working directory is meant; it may be another one."""
    other = tmp_path / "other.toml"
    other.write_text('[auth]\nmode = "keys"\n')
    with Demo(tmp_path) as demo, Gateway(tmp_path, backend_toml(demo)) as gateway:
        run_dir = str(gateway.run_dir)
        done = nexus("reload", "-c", str(other), NEXUS_RUN_DIR=run_dir)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"{other} was not read: the gateway of {run_dir} was reloaded; it uses "
            f"{gateway.file}. Change that file, or start the gateway again with {other}.\n"
        )
        link = tmp_path / "link.toml"
        link.symlink_to(gateway.file)
        for options in (["-c", str(link)], ["-c", str(other), "--run-dir", run_dir]):
            done = nexus("reload", *options, NEXUS_RUN_DIR=run_dir)
            assert (done.returncode, done.stdout) == (0, "Reloaded: 1 backend.\n"), done.stderr


def test_without_a_gateway(tmp_path: Path):
    file = tmp_path / "nexus.toml"
    file.write_text(f'[server]\nrun_dir = "{tmp_path / "run"}"\n')
    done = nexus("reload", "-c", str(file))
    assert done.returncode == 3
    assert "No health process runs for" in done.stderr
    done = nexus("route", "explain", "m", "-c", str(file))
    assert done.returncode == 3
    assert "No gateway has run in" in done.stderr


def test_route_explain(tmp_path: Path):
    with (
        Demo(tmp_path, name="a", models=["m"], pace=0) as a,
        Demo(tmp_path, name="b", models=["m", "spare"], pace=0) as b,
        Demo(tmp_path, name="c", models=["m"], pace=0) as c,
    ):
        config = (
            backend_toml(a, priority=1)
            + backend_toml(b, priority=20)
            + backend_toml(c, zone="open")
            + '[routing.aliases]\nnick = "m"\n[routing.fallbacks]\nm = ["spare"]\n'
            + '[[routing.policies]]\nmodel_pattern = "m"\nprivacy = "restricted"\n'
        )
        with Gateway(tmp_path, config) as gateway:
            done = nexus("route", "explain", "nick", "-c", str(gateway.file))
            assert done.returncode == 0, done.stderr
            assert "nick is an alias of m" in done.stdout
            rows = {tuple(line.split()[:3]): line for line in done.stdout.splitlines()}
            assert ("1.", "a", "m") in rows
            assert ("2.", "b", "m") in rows
            assert "privacy_restricted" in rows["-", "c", "m"]
            found = json.loads(
                nexus("route", "explain", "m", "--json", "-c", str(gateway.file)).stdout
            )
            assert found["refusal"] is None
            assert [v["turn"] for v in found["verdicts"]] == [1, 2, None, None, 3, None]
            assert [v["score"] is not None for v in found["verdicts"]] == [
                True,
                True,
                False,
                False,
                True,
                False,
            ]
            body = tmp_path / "body.json"
            body.write_text(
                json.dumps({"messages": [{"role": "user", "content": "x" * 4 * 40_000}]})
            )
            done = nexus("route", "explain", "m", "--body", str(body), "-c", str(gateway.file))
            assert done.returncode == 0, "an estimate of the length refuses nothing"
            assert nexus("route", "explain", "nope", "-c", str(gateway.file)).returncode == 1
