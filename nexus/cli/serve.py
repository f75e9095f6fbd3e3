"""Implements `nexus serve`: starts the supervisor, and shows the first screen."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nexus
from nexus.cli.output import counted
from nexus.config import Config, ConfigError, LoadedConfig, load
from nexus.config.addresses import bracketed, is_loopback, listen_address, url_to
from nexus.fleet.run_directory import RunDirectory, RunDirectoryError
from nexus.fleet.snapshot import SnapshotReader
from nexus.routing.listing import is_pattern
from nexus.runtime import log as logs
from nexus.runtime import stderr
from nexus.runtime.host import raise_descriptor_limit
from nexus.server.child import Child
from nexus.server.supervisor import Supervisor

_DEMO_FLEET = {"demo-1": ("demo-small", "demo-large"), "demo-2": ("demo-small",)}


def serve(config: str | None, overrides: Mapping[str, Any]) -> int:
    """Run until TERM or INT; returns the exit status. Raises `ConfigError`."""
    stderr.make_nonblocking()
    raise_descriptor_limit()
    loaded = load(config, overrides=overrides)
    settings = loaded.config
    logs.configure(
        level=settings.logging.level,
        kind=settings.logging.format,
        component_levels=settings.logging.component_levels,
    )
    run_dir = RunDirectory.of(settings)
    try:
        run_dir.prepare()
    except RunDirectoryError as error:
        raise ConfigError(str(error)) from error
    supervisor = Supervisor(loaded, run_dir)
    demo = loaded.path is None and not settings.backends
    try:
        if demo:
            _start_demo_fleet(supervisor, run_dir)
        return supervisor.run(lambda ready: _first_screen(loaded, run_dir, demo=demo, ready=ready))
    finally:
        for child in supervisor.helpers:
            child.stop(1.0)


def _start_demo_fleet(supervisor: Supervisor, run_dir: RunDirectory) -> None:
    """Start two demo backends, and write a configuration that names them."""
    for name, models in _DEMO_FLEET.items():
        options = [word for model in models for word in ("--model", model)]
        command = ["-m", "nexus", "demo-backend", "--name", name, *options]
        supervisor.helpers.append(Child(name, command, supervisor.environ, capture=True))
    tables = []
    for child in supervisor.helpers:
        assert child.process.stdout is not None
        address = child.process.stdout.readline().strip()
        if not address:
            raise ConfigError(f"The demo backend {child.name} did not start.")
        child.pin(*listen_address(address.removeprefix("http://")))
        tables.append(f'[[backends]]\nname = "{child.name}"\nurl = "{address}"\ntype = "vllm"\n')
    file = run_dir.path / "demo.toml"
    try:
        file.write_text("\n".join(tables))
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}).") from error
    supervisor.environ["NEXUS_CONFIG"] = str(file.absolute())


def _model_to_try(run_dir: RunDirectory, dialect: str) -> str | None:
    """The first published model that may chat, at a backend with this dialect; None without one."""
    snapshot = SnapshotReader(run_dir.path).read()
    for backend in snapshot.backends if snapshot else ():
        for model in backend.models if backend.usable and dialect in backend.spoken else ():
            if (not model.tasks or "chat" in model.tasks) and not is_pattern(model.name):
                return model.name
    return None


def _backends(loaded: LoadedConfig) -> str:
    count = counted(len(loaded.config.backends), "backend")
    return f"{count} from {loaded.path or 'the defaults'}"


def _who_may_use_it(config: Config) -> tuple[str, list[str]]:
    """Who may use the gateway, and how to open it if only this machine can."""
    host = bracketed(config.server.host)
    if config.auth.mode == "keys":
        return f"(listens on {host}; clients need a key)", []
    if not is_loopback(config.server.host):
        return f"(listens on {host}, without keys: whoever reaches it may use it)", []
    opening = [
        "  It is for this machine alone. To let others use it, make a key (`nexus keys add`)",
        '  and set [auth] mode = "keys".',
        "",
    ]
    return f"(listens on {host})", opening


def _clients(run_dir: RunDirectory, base: str, chats: str, *, keys: bool) -> list[str]:
    """How to start OpenAI's client with a model that `chats`, and agents whose APIs are spoken."""
    key = "" if keys else " OPENAI_API_KEY=unused"
    script = (
        "import openai; print(openai.OpenAI().chat.completions.create("
        f'model={json.dumps(chats)}, messages=[{{"role": "user", "content": "Hello!"}}]'
        ").choices[0].message.content)"
    )
    lines = [f"    OPENAI_BASE_URL={base}/v1{key} python3 -c {shlex.quote(script)}", ""]
    if (model := _model_to_try(run_dir, "anthropic")) is not None:
        token = "$OPENAI_API_KEY" if keys else "unused"
        settings = f"ANTHROPIC_BASE_URL={base} ANTHROPIC_AUTH_TOKEN={token}"
        lines += [f"    {settings} claude --model {shlex.quote(model)}", ""]
    if (model := _model_to_try(run_dir, "responses")) is not None:
        key = ', env_key="OPENAI_API_KEY"' if keys else ""
        provider = (
            f'{{name="Nexus", base_url="{base}/v1", wire_api="responses"{key}, '
            "supports_websockets=false}"
        )
        options = f"-c model_provider=nexus -c 'model_providers.nexus={provider}'"
        lines += [f"    codex --model {shlex.quote(model)} {options}", ""]
    return lines


def _configuration(loaded: LoadedConfig) -> str:
    """The option of a command that names the configuration, if it does not find it by itself."""
    if loaded.path is None or loaded.path.resolve() == Path("nexus.toml").resolve():
        return ""
    return f" -c {shlex.quote(str(loaded.path))}"


def _first_screen(loaded: LoadedConfig, run_dir: RunDirectory, *, demo: bool, ready: bool) -> None:
    """Print what runs, where it listens, how to try it, and where its metrics are."""
    server, listen = loaded.config.server, loaded.config.health_check.listen
    base = url_to(server.host, server.port)
    messages = [{"role": "user", "content": "Hello!"}]
    model = _model_to_try(run_dir, "openai") or "YOUR-MODEL"
    body = {"model": model, "messages": messages}
    request = shlex.quote(json.dumps(body, ensure_ascii=False))
    keys = loaded.config.auth.mode == "keys"
    key = ' -H "authorization: Bearer $OPENAI_API_KEY"' if keys else ""
    json_type = "-H 'content-type: application/json'"
    steps = ["  Try it:", ""]
    if keys:
        steps = ["  Make a key, export what the command prints, and try it:", ""]
        steps += [f"    nexus keys add --name me{_configuration(loaded)}", ""]
    backends = "two demo backends that make up text" if demo else _backends(loaded)
    verb, hint = "ready" if ready else "running", []
    if not ready:
        hint = [f"  (no backend can be used yet; see the log above and {base}/readyz?verbose)"]
    elif demo:
        hint = ["  (no nexus.toml and no backend given; `nexus config init` writes one)"]
    admin = "operations port off"
    if listen != "off":
        url = url_to(*listen_address(listen))
        admin = f"operations {url}/metrics, also when every worker is busy"
    listens, opening = _who_may_use_it(loaded.config)
    lines = [
        "",
        f"  Nexus {nexus.__version__} is {verb}, in front of {backends}.",
        *hint,
        "",
        f"    endpoint   {base}/v1        {listens}",
        f"    dashboard  {base}/",
        f"    metrics    {base}/metrics   {base}/v1/stats",
        f"    {admin}",
        f"    state      {run_dir.path}",
        "",
        *steps,
        f"    curl {base}/v1/chat/completions{key} {json_type} -d {request}",
        "",
        *_clients(run_dir, base, model, keys=keys),
        *opening,
        "  Ctrl-C stops it.",
        "",
        "",
    ]
    stderr.NonBlockingText(1).write("\n".join(lines))
