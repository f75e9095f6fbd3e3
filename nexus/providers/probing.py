"""What probes find, how they fetch it, and helpers that read JSON of uncertain shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import msgspec


class Model(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A model as one backend offers it. What is not known is None, or empty.

    Attributes:
        name: The name that the backend lists.
        context_length: In tokens.
        max_output_tokens: The most tokens that a response may have.
        vision: Whether it takes images.
        tools: Whether it takes tools.
        json_mode: Whether it takes `response_format`.
        tasks: What it is for, if the list is exhaustive: `chat`, `embeddings`, `rerank` …
        aliases: Other names that the backend takes for it.
        upstream: Its name at the backend, if clients use another.
    """

    name: str
    context_length: int | None = None
    max_output_tokens: int | None = None
    vision: bool | None = None
    tools: bool | None = None
    json_mode: bool | None = None
    tasks: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    upstream: str | None = None


class ProbeResult(NamedTuple):
    """Models, and how many requests the backend works on at once (None if it does not say)."""

    models: list[Model]
    capacity: int | None = None


class BadProbeResponse(Exception):
    """The response to a probe is not one that a healthy backend of this kind gives.

    `alive`: the backend may serve requests nevertheless; it may only lack a list of models.
    """

    def __init__(self, message: str, *, alive: bool = False) -> None:
        super().__init__(message)
        self.alive = alive


class NotFetchedYet(BadProbeResponse):
    """A detail is not known yet. It is fetched after the probe, and `Provider.probe` runs again."""


class Fetch(Protocol):
    """Fetches a path of the backend and returns the JSON of the response.

    With `body` it sends a POST. It raises `BadProbeResponse` for a status other than 200 and for a
    body that is not JSON, and the transport's error if there is no response.

    `version` marks a detail: it does not decide whether the backend is healthy. Details are fetched
    outside of the probe's time limit; until then `NotFetchedYet` is raised. A detail is kept until
    `version` (a digest, for instance) changes; with an empty version, for at most an hour.
    """

    def __call__(
        self, path: str, body: dict[str, Any] | None = None, *, version: str | None = None
    ) -> Any: ...


def fetch_optional(fetch: Fetch, path: str, *, version: str | None = None) -> dict[str, Any]:
    """An object that not every version of a server has; empty if this one does not."""
    try:
        response = fetch(path, version=version)
    except BadProbeResponse:
        return {}
    return response if isinstance(response, dict) else {}


def objects(response: Any, key: str) -> list[dict[str, Any]]:
    """The objects in the list under `key`. Raises `BadProbeResponse` if there is no list."""
    items = response.get(key) if isinstance(response, dict) else None
    if not isinstance(items, list):
        raise BadProbeResponse(f"the response has no list `{key}`", alive=True)
    return dicts(items)


def dicts(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; none if `value` is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text(item: dict[str, Any], key: str) -> str | None:
    """The string under `key` if it is printable and not empty."""
    value = item.get(key)
    return value if isinstance(value, str) and value and value.isprintable() else None


def texts(value: Any) -> tuple[str, ...] | None:
    """The printable strings of a list; None if `value` is no list."""
    if not isinstance(value, list | tuple):
        return None
    return tuple(item for item in value if isinstance(item, str) and item and item.isprintable())


def value_at(item: Any, *keys: str) -> Any:
    """The value under nested keys; None if one is missing."""
    for key in keys:
        item = item.get(key) if isinstance(item, dict) else None
    return item


def first_length(*values: Any) -> int | None:
    """The first value that can be a number of tokens."""
    return next((value for value in values if type(value) is int and 0 < value < 1 << 40), None)


def flag(value: Any) -> bool | None:
    """`value` if it is a boolean."""
    return value if isinstance(value, bool) else None


_TASKS = {
    "chat": "chat",
    "completion": "chat",
    "responses": "chat",
    "embed": "embeddings",
    "embedding": "embeddings",
    "embeddings": "embeddings",
    "rerank": "rerank",
    "moderation": "moderation",
    "moderations": "moderation",
    "classify": "classify",
    "image_generation": "images",
    "image": "images",
    "audio_transcription": "transcription",
    "transcribe": "transcription",
    "audio_speech": "speech",
}
"""Words of backends → tasks as the configuration names them."""


def tasks(words: Iterable[str]) -> tuple[str, ...]:
    """The tasks that these words mean; empty if one is unknown, since then the list is not
    complete."""
    known = [_TASKS.get(word) for word in words]
    return () if None in known else tuple(dict.fromkeys(task for task in known if task))
