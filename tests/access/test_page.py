"""docs/keys.md, followed step by step."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, Demo, Gateway, backend_toml, clean_environ

pytestmark = pytest.mark.e2e

PAGE = (ROOT / "docs" / "keys.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def shell(command: str, gateway: Gateway, **environ: str) -> str:
    """Run a command of the page, in the gateway's directory and for its port."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = command.replace("127.0.0.1:8000", f"127.0.0.1:{gateway.port}")
    return subprocess.run(
        ["sh", "-c", command], cwd=gateway.directory, env=clean_environ(PATH=path, **environ),
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip


def test_the_page_works_as_written(module_dir: Path):
    reload, make, try_it = blocks("sh")
    [settings] = blocks("toml")
    state = {"XDG_STATE_HOME": str(module_dir / "state")}
    with (
        Demo(module_dir, models=["demo-small", "qwen"], pace=0) as demo,
        Gateway(module_dir, backend_toml(demo), workers=1, environ=state) as gateway,
    ):
        with gateway.file.open("a") as file:
            file.write(f"\n{settings}\n")
        shell(reload, gateway)
        made = shell(make, gateway)
        key = re.search(r"sk-nx-\S+", made)[0]
        assert f"export OPENAI_BASE_URL={gateway.base}/v1" in made
        assert f'base_url = "{gateway.base}/v1"\n    env_key = "OPENAI_API_KEY"' in made
        assert '"finish_reason"' in shell(try_it, gateway, KEY=key)
        assert '"invalid_api_key"' in shell(try_it, gateway, KEY="sk-of-nobody")
        denied = shell(try_it.replace("demo-small", "qwen"), gateway, KEY=key)
        assert '"model_not_allowed"' in denied
        listed = shell("nexus keys list", gateway)
        assert re.search(r"ci +research +active +demo-\*, llama\* +all +added", listed)
        assert (module_dir / "state" / "nexus" / str(gateway.port) / "keys.json").exists()
        assert key not in gateway.file.read_text() + gateway.output() + listed
