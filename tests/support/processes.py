"""Real processes on loopback, each ended by its own id."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import msgspec

from nexus.config import BackendConfig, Config
from nexus.config.addresses import bracketed
from nexus.config.records import Logging
from nexus.config.routing_records import Affinity
from nexus.fleet.circuits import CircuitTable
from nexus.fleet.load_table import COLUMNS
from nexus.fleet.records import Backend, Labels, Model, Snapshot
from nexus.fleet.run_directory import RunDirectory
from nexus.fleet.snapshot import SnapshotWriter
from nexus.metrics.labels import sanitize
from tests.support.metrics import Scrape, scrape
from tests.support.polling import until

ROOT = Path(__file__).parent.parent.parent

_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens at, below those that the kernel hands out by itself: nothing
    that binds to port 0, and no connection, can take it between this call and the server that is
    to have it. Tests that run in parallel have ports of their own. No port is given twice, since
    the state of a gateway is kept by its port."""
    lowest, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    nth = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    jobs = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for _ in range(1000):
        port = random.randrange(10_000 + nth, lowest, jobs)
        if port in _given:
            continue
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", port))
                _given.add(port)
                return port
    raise AssertionError("no free port found")


def clean_environ(**more: str) -> dict[str, str]:
    """This process's environment without what would steer a gateway."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("NEXUS_", "PROMETHEUS_")) and k != "RUNTIME_DIRECTORY"
    }
    return {**kept, **more}


class Process:
    """A child in a group of its own, its output in a file."""

    def __init__(
        self,
        command: list[str],
        *,
        log: Path,
        environ: dict[str, str] | None = None,
        cwd: Path = ROOT,
        pass_fds: tuple[int, ...] = (),
        stderr: int | None = None,
    ) -> None:
        """`stderr`: a descriptor for it; by default it goes to `log`, as standard output does."""
        self.log = log

        def spawn() -> subprocess.Popen[bytes]:
            with log.open("ab") as output:
                return subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=environ or clean_environ(),
                    stdout=output,
                    stderr=output if stderr is None else stderr,
                    process_group=0,
                    pass_fds=pass_fds,
                )

        self._spawn = spawn
        self.child = spawn()

    @property
    def pid(self) -> int:
        return self.child.pid

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def send(self, number: int) -> None:
        self.child.send_signal(number)

    def stop(self, *, within_s: float = 20.0, number: int = signal.SIGTERM) -> int:
        """End it and give its exit status."""
        if self.child.poll() is None:
            self.child.send_signal(number)
        try:
            return self.child.wait(within_s)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise AssertionError(
                f"did not end within {within_s} s:\n{self.output()[-3000:]}"
            ) from None

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def get_json(url: str, *, body: bytes | None = None) -> Any:
    with urllib.request.urlopen(url, data=body, timeout=10) as answer:
        return json.load(answer)


class Demo(Process):
    """A demo backend as a process."""

    def __init__(
        self, directory: Path, *, name: str = "demo", port: int = 0, **options: Any
    ) -> None:
        models = options.pop("models", ["demo-small"])
        words = [word for model in models for word in ("--model", model)]
        words += [word for key, value in options.items() for word in (f"--{key}", str(value))]
        self.name = name
        log = directory / f"{name.replace(chr(47), chr(45))}.log"
        log.unlink(missing_ok=True)
        super().__init__(
            [
                sys.executable,
                "-m",
                "nexus",
                "demo-backend",
                "--name",
                name,
                "--port",
                str(port),
                *words,
            ],
            log=log,
        )
        self.url: str = until(
            lambda: next(
                (line for line in self.output().splitlines() if line.startswith("http")), ""
            )
        )

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def tally(self) -> dict[str, Any]:
        found: dict[str, Any] = get_json(f"{self.url}/demo/tally")
        return found

    def last(self) -> dict[str, Any]:
        """The last proxied request: its `target`, `headers` and `body`."""
        found: dict[str, Any] = get_json(f"{self.url}/demo/last")
        return found

    def hurry(self) -> None:
        """Have the streams that go on end soon, whole."""
        get_json(f"{self.url}/demo/hurry", body=b"")

    def fault(self, spec: str) -> None:
        """Misbehave from now on; an empty text is well again."""
        get_json(f"{self.url}/demo/fault", body=spec.encode())


class Measured(Process):
    """A gateway that serves on `base` and logs JSON lines."""

    base: str

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """The JSON lines of the log, all or those of one event; one that is being written is not
        one yet."""
        whole = self.output().rpartition("\n")[0]
        found = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        return [line for line in found if event is None or line["event"] == event]

    def request_line(self, known: int) -> dict[str, Any]:
        """The line of the one request that came after the `known` ones; it is written after
        metrics and answer."""
        [line] = until(lambda: self.lines("request")[known:])
        return line

    def scrape(self) -> Scrape:
        return scrape(self.base)

    def settled(self) -> Scrape:
        """A scrape at a quiet moment: everything that was started has ended, and was counted."""

        def quiet() -> Scrape | None:
            found = self.scrape()
            ended = found.total("nexus_requests_total") + found.total("nexus_requests_lost_total")
            return found if found.total("nexus_requests_started_total") == ended else None

        return until(quiet)

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = get_json(f"{self.base}/v1/stats")
        return found


class Workers(Measured):
    """gunicorn alone: the fleet is what `publish` says, so that no probe changes it."""

    def __init__(
        self,
        directory: Path,
        config: Config,
        backends: list[Backend],
        *,
        workers: int = 1,
        environ: dict[str, str] | None = None,
        app: str = "wsgi:app",
    ) -> None:
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.run_dir = RunDirectory(directory / "run")
        self.run_dir.prepare()
        self._columns = 0
        self.publish(config, backends)
        settings = clean_environ(
            NEXUS_RUN_DIR=str(self.run_dir.path),
            NEXUS_PORT=str(self.port),
            NEXUS_HOST="127.0.0.1",
            NEXUS_WORKERS=str(workers),
            NEXUS_LOG_FORMAT="json",
            NEXUS_GRACEFUL_TIMEOUT="5",
            **(environ or {}),
        )
        super().__init__(
            [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", app],
            log=directory / "workers.log",
            environ=settings,
        )
        until(lambda: self.scrape().value("nexus_workers") == workers, within_s=20)

    def publish(self, config: Config, backends: list[Backend]) -> None:
        """Give the backends columns and labels as the health process would, and show them to the
        workers.

        The columns are new ones each time: nothing is known of the backends that lie in them. After
        the last column come the first ones again, as they do in a gateway, and what is known there
        is forgotten.
        """
        if self._columns + len(backends) > COLUMNS:
            self._columns = 0
            generation = self.run_dir.current()
            assert generation is not None
            circuits = CircuitTable(generation.circuits)
            for column in range(COLUMNS):
                circuits.reset(column, time.monotonic_ns())
            circuits.release_locks()
        first, self._columns = self._columns, self._columns + len(backends)
        writer = SnapshotWriter(self.run_dir.path)
        placed = [
            msgspec.structs.replace(backend, column=column, label=sanitize(backend.name))
            for column, backend in enumerate(backends, first)
        ]
        models = {
            model.name: sanitize(model.name) for backend in backends for model in backend.models
        }
        writer.publish(
            Snapshot(
                revision=writer.next_revision(),
                published_at=time.time(),
                config=msgspec.structs.replace(
                    config,
                    logging=Logging(format="json"),
                    routing=msgspec.structs.replace(
                        config.routing, affinity=Affinity(enabled=False)
                    ),
                ),
                backends=tuple(placed),
                labels=Labels(
                    models=models, backends={backend.name: backend.label for backend in placed}
                ),
            )
        )


def backend(name: str, url: str, *models: str, **config: Any) -> Backend:
    """A healthy backend for `Workers`, which all models on it do everything."""
    return Backend(
        config=BackendConfig(name=name, url=url, type="vllm", **config),
        label="",
        column=-1,
        status="healthy",
        models=tuple(Model(name=model, vision=True, tools=True) for model in models),
    )


class Gateway(Measured):
    """`nexus serve` with a configuration of its own in a directory of its own."""

    def __init__(
        self,
        directory: Path,
        config: str,
        *,
        workers: int = 2,
        interval_s: float = 0.3,
        server: str = "",
        health_check: str = "",
        environ: dict[str, str] | None = None,
        ready: bool = True,
        stderr: int | None = None,
        prefix: list[str] | None = None,
        timeout_s: float = 2,
        host: str = "127.0.0.1",
        affinity: bool = False,
    ) -> None:
        """`affinity`: leave it at its default, which brings equal prompts to one backend.

        `server` and `health_check`: further lines of those sections; `prefix`: what the command
        is run by.

        `timeout_s`: the limit for a probe.
        """
        self.directory = directory
        self.host, self.workers = host, workers
        self.port, self.operations_port = free_port(), free_port()
        self.run_dir = directory / "run"
        self.file = directory / "nexus.toml"
        self.settings = f"""
            [server]
            host = "{host}"
            port = {self.port}
            workers = {workers}
            run_dir = "{self.run_dir}"
            {"" if "graceful_timeout" in server else "graceful_timeout_seconds = 5"}
            {server}
            [health_check]
            interval_seconds = {interval_s}
            timeout_seconds = {timeout_s}
            listen = "{bracketed(host)}:{self.operations_port}"
            {health_check}
            [logging]
            format = "json"
            {"" if affinity else "[routing.affinity]"}
            {"" if affinity else "enabled = false"}
            """
        self.write(config)
        (directory / "gateway.log").unlink(missing_ok=True)
        super().__init__(
            [*(prefix or []), sys.executable, "-m", "nexus", "serve", "-c", str(self.file)],
            log=directory / "gateway.log",
            environ=clean_environ(**(environ or {})),
            stderr=stderr,
        )
        self.base = f"http://{bracketed(host)}:{self.port}"
        self.operations = f"http://{bracketed(host)}:{self.operations_port}"
        if ready:
            self.wait_ready()

    def write(self, config: str) -> None:
        self.file.write_text(self.settings + config)

    def start_again(self) -> None:
        """The same command, after it has ended, with its log started anew."""
        assert self.child.poll() is not None
        self.log.unlink()
        self.child = self._spawn()
        self.wait_ready()

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.child.poll() is None, self.output()
            try:
                urllib.request.urlopen(f"{self.base}/readyz", timeout=10).close()
            except urllib.error.HTTPError as not_yet:
                not_yet.close()
                return False
            return ", in front of" in self.output()

        try:
            until(ready, within_s=60)
            until(lambda: get_json(f"{self.operations}/health"))
            # gunicorn pauses between forks. Without a log, the master's id is not known.
            until(
                lambda: (
                    not self.lines("gateway starting") or len(self.worker_pids()) >= self.workers
                )
            )
        except BaseException:
            self.child.terminate()
            raise

    def master_pid(self) -> int:
        return int(self.lines("gateway starting")[-1]["pid"])

    def health_pid(self) -> int:
        return int(self.lines("health process ready")[-1]["pid"])

    def worker_pids(self) -> list[int]:
        """The workers that are alive now."""
        children = (
            Path(f"/proc/{self.master_pid()}/task/{self.master_pid()}/children").read_text().split()
        )
        return [int(pid) for pid in children]


def backend_toml(*demos: Demo, **settings: Any) -> str:
    """`[[backends]]` for these demo backends, with further keys for all of them."""
    more = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    return "".join(
        f'\n[[backends]]\nname = "{demo.name}"\nurl = "{demo.url}"\ntype = "vllm"\n{more}'
        for demo in demos
    )
