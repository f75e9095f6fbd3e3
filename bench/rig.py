"""What the benchmarks run: gateways on one core, load and backends on the other, each a real
process."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
PEERS = Path(__file__).parent / ".peers"
GATEWAY_CORE, LOAD_CORE = "0", "1"
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def status_kib(pid: int, name: str) -> int:
    """A size that the kernel tells of a process, `VmRSS` say, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


@dataclass
class Running:
    """A process and its children, on one core."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    started_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    """What requests to it need beside what all get."""
    left: Path | None = None
    """What it leaves when it ends, which is removed then."""

    def tree(self) -> list[int]:
        found, todo = [], [self.process.pid]
        while todo:
            pid = todo.pop()
            try:
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            except OSError:
                continue
            found.append(pid)
            todo += map(int, children)
        return found

    def cpu_s(self) -> float:
        """Processor time of the whole tree, user and system."""
        return sum(map(_cpu_ticks, self.tree())) / _TICKS

    def peak_memory(self) -> int:
        """The most resident bytes that each process of the tree ever had, added up."""
        return sum(status_kib(pid, "VmHWM") for pid in self.tree()) * 1024

    def worker_peak_memory(self) -> int:
        """The most resident bytes of the process of the tree that has worked most."""
        return status_kib(max(self.tree(), key=_cpu_ticks), "VmHWM") * 1024

    def memory(self) -> int:
        """Resident bytes of the whole tree."""
        return (
            sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.tree())
            * _PAGE
        )

    def stop(self) -> None:
        self._end()
        if self.left is not None:
            shutil.rmtree(self.left, ignore_errors=True)

    def _end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def start(
    name: str,
    command: list[str],
    port: int,
    directory: Path,
    *,
    core: str,
    ready: str = "",
    **environ: str,
) -> Running:
    """Start it on one core, and wait until it answers (`ready` is a path that must give 200,
    else the port must open)."""
    began = time.monotonic()
    with (directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            ["taskset", "-c", core, *command],
            cwd=ROOT,
            env={**os.environ, **environ},
            stdout=log,
            stderr=log,
        )
    running = Running(name, port, process)
    deadline = began + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended: {(directory / f'{name}.log').read_text()[-2000:]}")
        try:
            if ready:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}", timeout=2):
                    break
            else:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
        except OSError:
            time.sleep(0.02)
    else:
        running.stop()
        raise RuntimeError(
            f"{name} does not answer: {(directory / f'{name}.log').read_text()[-2000:]}"
        )
    running.started_s = time.monotonic() - began
    return running


def nexus(
    directory: Path,
    upstream: int,
    *,
    name: str = "nexus",
    module: str = "nexus",
    workers: int = 1,
    core: str = GATEWAY_CORE,
    python: Path | str = sys.executable,
    backend: str = "",
    sections: str = "",
    **environ: str,
) -> Running:
    """`nexus serve` in front of one backend, with the default configuration except for the log
    level. `backend`: more settings of the backend. `sections`: more of the configuration."""
    port = free_port()
    place = directory / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    file, run_dir = place / "nexus.toml", Path(f"/dev/shm/nexus-bench-{port}")
    file.write_text(
        f'[server]\nhost = "127.0.0.1"\nport = {port}\nworkers = {workers}\nrun_dir = "{run_dir}"\n'
        f'state_dir = "{place / "state"}"\n'
        "max_concurrent_requests = 100000\n"
        '[health_check]\nlisten = "off"\ninterval_seconds = 5\n[logging]\nlevel = "warn"\n'
        f'[[backends]]\nname = "up"\nurl = "http://127.0.0.1:{upstream}"\ntype = "vllm"\n{backend}'
        f"{sections}"
    )
    command = [str(python), "-m", module, "serve", "-c", str(file)]
    running = start(name, command, port, directory, core=core, ready="/readyz", **environ)
    running.left = run_dir
    return running


def vllm_router(directory: Path, upstream: int, *, policy: str | None = None) -> Running:
    """The Rust router that vLLM publishes, with one worker. `policy` None leaves it at its
    default, `cache_aware`."""
    program = peer("vllm-router", "vllm-router==0.1.17")
    return _router(
        "vllm-router",
        [str(program)],
        directory,
        upstream,
        policy,
        "--max-concurrent-requests",
        "100000",
    )


def sglang_router(directory: Path, upstream: int, *, policy: str | None = None) -> Running:
    """The Rust router that SGLang publishes. `policy` None leaves it at its default,
    `cache_aware`."""
    program = peer("sglang-router", "sglang-router==0.3.2")
    launch = [str(program.parent / "python"), "-m", "sglang_router.launch_router"]
    return _router("sglang-router", launch, directory, upstream, policy)


def _router(
    name: str, launch: list[str], directory: Path, upstream: int, policy: str | None, *options: str
) -> Running:
    port = free_port()
    log_level = "warning" if name == "vllm-router" else "warn"
    command = [
        *launch, "--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"http://127.0.0.1:{upstream}",
        "--log-level", log_level, "--prometheus-port", str(free_port()), *options,
        *(("--policy", policy) if policy else ()),
    ]  # fmt: skip
    return start(
        f"{name}-{policy or 'default'}",
        command,
        port,
        directory,
        core=GATEWAY_CORE,
        ready="/health",
    )


def nginx_proxy(directory: Path, upstream: int) -> Running:
    """nginx as a plain reverse proxy, on one core."""
    port = free_port()
    return _nginx(
        "nginx-proxy",
        directory,
        port,
        GATEWAY_CORE,
        f"upstream up {{ server 127.0.0.1:{upstream}; keepalive 2048; keepalive_requests "
        f"10000000; }}\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://up; "
        f"proxy_http_version 1.1;"
        ' proxy_set_header Connection ""; proxy_buffering off; } }',
    )


def nginx_static(directory: Path, answer: str) -> Running:
    """A backend that gives the same answer to every request, and a model list."""
    port = free_port()
    models = (
        '{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"x",'
        '"max_model_len":32768}]}'
    )
    return _nginx(
        "upstream",
        directory,
        port,
        LOAD_CORE,
        f"server {{ listen 127.0.0.1:{port}; default_type application/json;\n"
        f"location = /v1/models {{ return 200 '{models}'; }}\n"
        f"location / {{ return 200 '{answer}'; }} }}",
    )


def _nginx(name: str, directory: Path, port: int, core: str, server: str) -> Running:
    file = directory / f"{name}.conf"
    file.write_text(
        f"daemon off; master_process off; pid {directory}/{name}.pid; error_log "
        f"{directory}/{name}.err;\n"
        "events { worker_connections 16384; }\n"
        "http { access_log off; keepalive_requests 10000000; keepalive_timeout 65s;\n"
        f"client_body_temp_path {directory}/{name}-body; proxy_temp_path "
        f"{directory}/{name}-proxy;\n{server} }}\n"
    )
    return start(name, ["nginx", "-c", str(file)], port, directory, core=core)


def peer(name: str, *requirements: str) -> Path:
    """The program of a peer from the Python package index, fetched into an environment of its
    own."""
    place = PEERS / name
    program = place / "bin" / name
    if not (place / "installed").exists():
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run(
            [str(place / "bin" / "pip"), "install", "--quiet", *requirements], check=True
        )
        (place / "installed").touch()
    return program


def npm_peer(name: str, *requirements: str) -> Path:
    """The folder of programs of a peer from npm, fetched into a folder of its own; needs node."""
    place = PEERS / name
    if not (place / "installed").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        subprocess.run(
            ["npm", "install", "--silent", "--prefix", str(place), *requirements], check=True
        )
        (place / "installed").touch()
    return place / "node_modules" / ".bin"


def system_python() -> Path:
    """The distribution's Python.

    Raises RuntimeError if there is none, or if it is the Python that runs the benchmark.
    """
    system = Path("/usr/bin/python3")
    if not system.exists() or system.resolve() == Path(sys.executable).resolve():
        raise RuntimeError("this machine has no other Python of the distribution's")
    return system


def distribution_python() -> Path:
    """The distribution's Python in an environment of its own, with what `requirements.txt` pins.

    Raises RuntimeError as `system_python` does.
    """
    system = system_python()
    place = PEERS / "distribution-python"
    python, done = place / "bin" / "python", place / "installed"
    wanted = (ROOT / "requirements.txt").read_text()
    if not done.exists() or done.read_text() != wanted:
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([str(system), "-m", "venv", str(place)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "-q", "-r", str(ROOT / "requirements.txt")],
            check=True,
        )
        done.write_text(wanted)
    return python
