"""The models of a backend: its own list, with what the configuration states about them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nexus.config import BackendConfig
from nexus.config.backend_records import ModelConfig
from nexus.providers.probing import BadProbeResponse, Fetch, Model, ProbeResult

MAX_MODELS = 10_000
"""Models that one backend may list, and names, their aliases included."""
MAX_NAME_LENGTH = 256
"""Characters of a model's name."""


def probe(config: BackendConfig, fetch: Fetch) -> ProbeResult:
    """Probe a backend as its kind is probed, and apply `[[backends.models]]`.

    A backend whose models are configured needs no list: any response shows that it is alive. Raises
    `BadProbeResponse`.
    """
    if not config.lists_models:
        return ProbeResult(with_configured([], config))
    try:
        result = config.provider.probe(fetch)
    except BadProbeResponse as error:
        if not (config.models and error.alive):
            raise
        result = ProbeResult([])
    _check_bounds(result.models)
    return ProbeResult(with_configured(result.models, config), result.capacity)


def with_configured(models: Iterable[Model], config: BackendConfig) -> list[Model]:
    """Each model once; what the configuration states replaces what the backend says."""
    by_name = {model.name: model for model in models} if config.discover_models else {}
    for stated in config.models:
        listed = by_name.get(stated.name) or Model(name=stated.name)
        if stated.upstream is not None:
            listed = by_name.pop(stated.upstream, listed)
        by_name[stated.name] = msgspec.structs.replace(listed, **_stated_fields(stated))
    return list(by_name.values())


def _stated_fields(model: ModelConfig) -> dict[str, object]:
    fields = msgspec.structs.asdict(model)
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in fields.items()
        if value not in (None, [])
    }


def _check_bounds(models: list[Model]) -> None:
    """Refuse a list that would flood metric labels and memory."""
    if len(models) > MAX_MODELS:
        raise BadProbeResponse(f"it lists {len(models)} models; the limit is {MAX_MODELS}")
    names = [name for model in models for name in (model.name, *model.aliases)]
    if len(names) > MAX_MODELS:
        raise BadProbeResponse(
            f"it lists {len(names)} models and aliases; the limit is {MAX_MODELS}"
        )
    longest = max(map(len, names), default=0)
    if longest > MAX_NAME_LENGTH:
        raise BadProbeResponse(
            f"it lists a model whose name has {longest} characters; the limit is {MAX_NAME_LENGTH}"
        )
