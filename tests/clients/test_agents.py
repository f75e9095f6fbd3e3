"""Claude Code and Codex as their users run them, headless, through the gateway: each makes a file.

The backend speaks the client's API, or only chat completions. The key may send one request at a
time.

`make check-clients` fetches them from npm into `bench/.peers`: 650 MB.
"""

import json
import subprocess
from pathlib import Path

import pytest

from bench.rig import npm_peer
from nexus.access.keys import digest
from tests.access.limited import key_of, keys_toml
from tests.clients.scripted import CONTENT, FILE, MODEL, Asked, ScriptedBackend
from tests.support.metrics import Scrape
from tests.support.processes import Gateway, clean_environ

pytestmark = pytest.mark.real

AGENTS = "@anthropic-ai/claude-code@2.1.197", "@openai/codex@0.171.0"
CHAT = "/v1/chat/completions"
ASK = f"Write the file {FILE}."


@pytest.fixture(scope="module")
def programs() -> Path:
    return npm_peer("agents", *AGENTS)


@pytest.fixture(params=[None, ["openai"]], ids=["native", "translated"])
def run(request, tmp_path: Path, programs: Path):
    """Runs an agent in a directory and a home of its own before a backend."""
    home, work = tmp_path / "home", tmp_path / "work"
    for directory in (home, work):
        directory.mkdir()
    with ScriptedBackend() as backend:
        config = (
            f'[[backends]]\nname = "up"\nurl = "{backend.url}"\ntype = "vllm"\n'
            + "strip_attribution = false\n"
            + (f"dialects = {json.dumps(request.param)}\n" if request.param else "")
            + f'[routing.aliases]\nhaiku = "{MODEL}"\n[auth]\nmode = "keys"\n'
            + keys_toml("agent")
            + "limits = { parallel = 1 }\n"
        )
        with Gateway(tmp_path, config, workers=2) as gateway:

            def run(*command: str, **environ: str) -> tuple[list[Asked], Scrape]:
                done = subprocess.run(
                    [str(programs / command[0]), *command[1:]],
                    cwd=work, timeout=240, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                    env=clean_environ(
                        HOME=str(home),
                        CODEX_HOME=str(home),
                        NEXUS_API_KEY=key_of("agent"),
                        **environ,
                    ),
                )  # fmt: skip
                assert done.returncode == 0, done.stdout + done.stderr
                assert (work / FILE).read_text() == CONTENT, done.stdout + done.stderr
                return backend.asked, gateway.settled()

            run.base = gateway.base  # type: ignore[attr-defined]
            run.translated = request.param is not None  # type: ignore[attr-defined]
            yield run


def tokens(found: Scrape, kind: str) -> float:
    return found.value(
        "nexus_tokens_total_sum", model=MODEL, backend="up", type=kind
    )  # fmt: skip


def check_translated(found: Scrape, name: str, count: int) -> None:
    assert found.value("nexus_translated_requests_total", translation=name, backend="up") == count
    assert found.total("nexus_stream_ends_total", reason="complete") == count
    assert (
        found.value("nexus_token_details_total", model=MODEL, backend="up", type="cached")
        == 20 * count
    )


def test_claude_code(run):
    asked, found = run(
        "claude", "-p", ASK, "--model", MODEL, "--allowedTools", "Write",
        ANTHROPIC_BASE_URL=run.base, ANTHROPIC_AUTH_TOKEN=key_of("agent"),
        ANTHROPIC_DEFAULT_HAIKU_MODEL="haiku", CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
    )  # fmt: skip
    turns = [one for one in asked if one.body.get("tools")]
    assert len(turns) >= 2
    for turn in turns:
        if run.translated:
            assert turn.target == CHAT
            assert turn.body["messages"][0]["role"] == "system"
            assert "x-anthropic-billing-header" not in turn.raw.decode()
            continue
        assert turn.target == "/v1/messages?beta=true"
        assert "anthropic-beta" in turn.headers
        assert turn.body["system"][0]["text"].startswith("x-anthropic-billing-header:")
        assert "authorization" not in turn.headers, "the gateway's token is not the backend's"
    if run.translated:
        check_translated(found, "messages-to-chat", len(asked))
    assert tokens(found, "prompt") == (100 if run.translated else 120) * len(asked)
    assert tokens(found, "completion") == 7 * len(asked)
    served = found.total("nexus_requests_total", status="200")
    assert served >= len(asked)
    refused = found.total("nexus_key_refusals_total", key="agent", reason="parallel")
    assert found.total("nexus_requests_total") == served + refused


def test_codex(run):
    provider = (
        f'{{name="Nexus", base_url="{run.base}/v1", wire_api="responses", '
        'supports_websockets=false, env_key="NEXUS_API_KEY"}'
    )
    asked, found = run(
        "codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox",
        "--model", MODEL, "-c", "model_provider=nexus", "-c", f"model_providers.nexus={provider}",
        ASK,
    )  # fmt: skip
    assert len(asked) == 2
    for turn in asked:
        if run.translated:
            assert turn.target == CHAT
            names = [tool["function"]["name"] for tool in turn.body["tools"]]
            assert any("__" in name for name in names), "functions of a namespace"
            continue
        assert turn.target == "/v1/responses"
        assert turn.body["store"] is False
    assert tokens(found, "prompt") == 100 * 2
    assert tokens(found, "completion") == 7 * 2
    assert found.total("nexus_requests_started_total", endpoint="responses") >= 2
    if run.translated:
        check_translated(found, "responses-to-chat", 2)
        return
    assert found.value("nexus_sticky_ids", state="used") == len({len(one.raw) for one in asked})


def test_claude_code_shows_why_a_budget_refuses(tmp_path, programs):
    for directory in ("home", "work"):
        (tmp_path / directory).mkdir()
    key = "sk-nx-of-a-test-of-agents"
    with ScriptedBackend() as backend:
        config = f"""
[auth]
mode = "keys"
[[keys]]
id = "agent"
sha256 = ["{digest(key)}"]
[[costs.price]]
output = "10"
[[budgets]]
name = "for agents"
each = ["key"]
usd = "0.000001"
[[backends]]
name = "up"
url = "{backend.url}"
type = "vllm"
"""
        with Gateway(
            tmp_path, config, workers=1, server=f'state_dir = "{tmp_path}/state"'
        ) as gateway:
            done = subprocess.run(
                [str(programs / "claude"), "-p", ASK, "--model", MODEL],
                cwd=tmp_path / "work", timeout=240, capture_output=True, text=True,
                stdin=subprocess.DEVNULL, check=False,
                env=clean_environ(
                    HOME=str(tmp_path / "home"), ANTHROPIC_BASE_URL=gateway.base,
                    ANTHROPIC_AUTH_TOKEN=key, CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
                ),
            )  # fmt: skip
            assert done.returncode != 0
            assert "Budget 'for agents' of key agent: 0.000001 USD a month; 0 spent" in done.stdout
            assert backend.asked == []
