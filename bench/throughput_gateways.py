"""The gateways that `bench.throughput` compares, each on the gateway's core."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import rig
from nexus.access.keys import digest


def litellm(directory: Path, upstream: int) -> rig.Running:
    program = rig.peer("litellm", "litellm[proxy]==1.106.12")
    port = rig.free_port()
    file = directory / "litellm.yaml"
    file.write_text(
        "model_list:\n- model_name: m\n  litellm_params:\n    model: openai/m\n"
        f"    api_base: http://127.0.0.1:{upstream}/v1\n    api_key: x\n"
    )
    command = [
        str(program),
        "--config",
        str(file),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--num_workers",
        "1",
    ]
    key = f"sk-{secrets.token_hex(32)}"  # it does not start without one
    running = rig.start(
        "litellm",
        command,
        port,
        directory,
        core=rig.GATEWAY_CORE,
        ready="/health/liveliness",
        LITELLM_MASTER_KEY=key,
    )
    running.headers = {"authorization": f"Bearer {key}"}
    return running


def portkey(directory: Path, upstream: int) -> rig.Running:
    programs = rig.npm_peer("portkey", "@portkey-ai/gateway@1.15.2")
    port = rig.free_port()
    command = ["node", str(programs / "gateway"), f"--port={port}", "--headless"]
    running = rig.start("portkey", command, port, directory, core=rig.GATEWAY_CORE, ready="/")
    running.headers = {
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1",
    }
    return running


def haproxy(directory: Path, upstream: int) -> rig.Running:
    port = rig.free_port()
    file = directory / "haproxy.cfg"
    file.write_text(
        "global\n nbthread 1\n maxconn 4000\ndefaults\n mode http\n timeout connect 5s\n"
        " timeout client 60s\n"
        f" timeout server 60s\nlisten up\n bind 127.0.0.1:{port}\n server s 127.0.0.1:{upstream}\n"
    )
    return rig.start(
        "haproxy", ["haproxy", "-db", "-f", str(file)], port, directory, core=rig.GATEWAY_CORE
    )


def through_flask(directory: Path, upstream: int) -> rig.Running:
    return rig.nexus(directory, upstream, name="nexus-flask", NEXUS_WITHOUT_SHORT_WAY="1")


def under_the_distribution(directory: Path, upstream: int) -> rig.Running:
    return rig.nexus(
        directory, upstream, name="nexus-distribution", python=rig.distribution_python()
    )


def without_metrics(directory: Path, upstream: int) -> rig.Running:
    return rig.nexus(
        directory, upstream, name="nexus-without-metrics", module="bench.without_metrics"
    )


KEY = f"sk-{secrets.token_hex(24)}"
LIMITED = f"""
[auth]
mode = "keys"
[[keys]]
id = "k"
sha256 = ["{digest(KEY)}"]
[[limits]]
name = "requests"
each = ["key"]
requests = "1000000/s"
[[limits]]
name = "tokens"
each = ["key"]
tokens = "10M/s"
"""
BUDGETED = f"""{LIMITED}
[[costs.price]]
input = "1"
output = "10"
[[budgets]]
name = "all"
usd = "9000000"
each = ["key"]
reserve_output = 100
"""


def limited(directory: Path, upstream: int) -> rig.Running:
    return _with_key(directory, upstream, "nexus-limited", LIMITED)


def budgeted(directory: Path, upstream: int) -> rig.Running:
    return _with_key(directory, upstream, "nexus-budgeted", BUDGETED)


def _with_key(directory: Path, upstream: int, name: str, sections: str) -> rig.Running:
    running = rig.nexus(directory, upstream, name=name, sections=sections)
    running.headers = {"authorization": f"Bearer {KEY}"}
    return running


PLAIN, LIMITS = "Nexus", "Nexus, key, two limits"
DISTRIBUTION = "Nexus, distribution's Python"
BUDGET = "Nexus, key, two limits, budget"
GATEWAYS: dict[str, Callable[[Path, int], rig.Running]] = {
    "nginx": rig.nginx_proxy,
    "haproxy": haproxy,
    "vLLM router, round_robin": partial(rig.vllm_router, policy="round_robin"),
    "vLLM router, cache_aware": rig.vllm_router,
    "SGLang router, round_robin": partial(rig.sglang_router, policy="round_robin"),
    "SGLang router, cache_aware": rig.sglang_router,
    "LiteLLM": litellm,
    "Portkey": portkey,
    PLAIN: rig.nexus,
    DISTRIBUTION: under_the_distribution,
    LIMITS: limited,
    BUDGET: budgeted,
    "Nexus through Flask": through_flask,
    "Nexus without metrics": without_metrics,
}
