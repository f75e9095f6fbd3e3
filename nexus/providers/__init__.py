"""Kinds of backend: how each is probed, how its models are read, how a request is addressed to it.

A kind is a module with `probe(fetch) -> ProbeResult`. It does no I/O itself but through `fetch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from nexus.config import BackendConfig
from nexus.config.records import ModelConfig
from nexus.fleet.records import Model
from nexus.providers import llamacpp, lmstudio, ollama, openai, vllm
from nexus.providers.probing import BadProbeResponse, Fetch, ProbeResult

__all__ = ["BadProbeResponse", "Fetch", "ProbeResult", "probe", "with_configured"]

MOST_MODELS = 10_000
"""The longest list of models that a backend may have."""
LONGEST_NAME = 256
"""The most characters of a model's name."""

_PROBES: dict[str, Callable[[Fetch], ProbeResult]] = {
    "ollama": ollama.probe,
    "vllm": vllm.probe,
    "llamacpp": llamacpp.probe,
    "lmstudio": lmstudio.probe,
    "exo": openai.probe,
    "openai": openai.probe,
    "generic": openai.probe,
}


def probe(config: BackendConfig, fetch: Fetch) -> ProbeResult:
    """Ask a backend what it has, and apply what the configuration says of its models.

    A backend whose models the configuration lists needs no list of its own: any answer shows that it is alive. Raises
    `BadProbeResponse`.
    """
    try:
        found = _PROBES[config.type](fetch)
    except BadProbeResponse as error:
        if not (config.models and error.alive):
            raise
        found = ProbeResult([])
    _check(found.models)
    return ProbeResult(with_configured(found.models, config), found.capacity)


def with_configured(models: Iterable[Model], config: BackendConfig) -> list[Model]:
    """The models of a backend, each once, with what the configuration says of them; what it states wins."""
    found = {model.name: model for model in models} if config.discover_models else {}
    for stated in config.models:
        known = found.get(stated.name) or Model(name=stated.name)
        found[stated.name] = msgspec.structs.replace(known, **_stated(stated))
    return list(found.values())


def _stated(model: ModelConfig) -> dict[str, object]:
    fields = msgspec.structs.asdict(model)
    return {
        name: tuple(v) if isinstance(v, list) else v
        for name, v in fields.items()
        if v not in (None, [])
    }


def _check(models: list[Model]) -> None:
    """Refuse lists that would flood labels and memory."""
    if len(models) > MOST_MODELS:
        raise BadProbeResponse(f"it lists {len(models)} models; at most {MOST_MODELS} are taken")
    longest = max(
        (len(name) for model in models for name in (model.name, *model.aliases)), default=0
    )
    if longest > LONGEST_NAME:
        raise BadProbeResponse(
            f"it lists a model whose name has {longest} characters; at most {LONGEST_NAME} are taken"
        )
