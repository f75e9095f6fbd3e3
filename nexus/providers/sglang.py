"""SGLang: its list of models has vLLM's form."""

from nexus.providers.base import DIALECTS, Provider
from nexus.providers.vllm import probe

PROVIDER = Provider(
    name="sglang",
    probe=probe,
    dialects=DIALECTS,
    self_hosted=True,
    takes=frozenset({"top_k", "reasoning_effort"}),
)
