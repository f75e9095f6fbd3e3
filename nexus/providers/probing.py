"""What the kinds of backend share: fetching, and reading what comes back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from nexus.fleet.records import Model


class BadProbeResponse(Exception):
    """A backend answered a probe with something that its kind does not say.

    `alive`: it may serve requests nevertheless, such as a backend that has no list of models.
    """

    def __init__(self, message: str, *, alive: bool = False) -> None:
        super().__init__(message)
        self.alive = alive


class NotYet(BadProbeResponse):
    """A detail that is not known yet; it is fetched after the probe, and then the kind is asked again."""


class Fetch(Protocol):
    """Fetches a path of the backend and gives the JSON in its answer.

    With `body`, it posts that. Raises `BadProbeResponse` for a status other than 200 and for what is not JSON, and the
    transport's own error where there was no answer.

    `version` marks a detail: nothing that decides whether the backend is healthy. A detail is fetched outside of the
    probe's time limit; until then this raises `NotYet`. It is kept until its version is another one (a digest, say),
    for an hour at most if the version is empty.
    """

    def __call__(
        self, path: str, body: dict[str, Any] | None = None, *, version: str | None = None
    ) -> Any: ...


class ProbeResult(NamedTuple):
    """What a probe found. `capacity`: how many requests the backend works on at once, if it says so."""

    models: list[Model]
    capacity: int | None = None


def fetch_if_there(fetch: Fetch, path: str, *, version: str | None = None) -> dict[str, Any]:
    """An object that not every version of a backend has; empty if this one does not."""
    try:
        answer = fetch(path, version=version)
    except BadProbeResponse:
        return {}
    return answer if isinstance(answer, dict) else {}


def items(answer: Any, key: str) -> list[dict[str, Any]]:
    """The list of objects under `key`."""
    found = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(found, list):
        raise BadProbeResponse(f"the answer has no list `{key}`", alive=True)
    return [item for item in found if isinstance(item, dict)]


def text(item: dict[str, Any], key: str) -> str | None:
    """A text that is worth showing: there, not empty, printable."""
    value = item.get(key)
    return value if isinstance(value, str) and value and value.isprintable() else None


def texts(value: Any) -> tuple[str, ...] | None:
    """A list of texts; None for anything else."""
    if not isinstance(value, list | tuple):
        return None
    return tuple(item for item in value if isinstance(item, str) and item and item.isprintable())


def at(item: Any, *keys: str) -> Any:
    """The value at the end of nested keys; None where one is missing."""
    for key in keys:
        item = item.get(key) if isinstance(item, dict) else None
    return item


def length(*values: Any) -> int | None:
    """The first of the values that can be a context length."""
    return next((value for value in values if type(value) is int and 0 < value < 1 << 40), None)


def flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


_TASKS = {
    "chat": "chat",
    "completion": "chat",
    "responses": "chat",
    "embed": "embeddings",
    "embedding": "embeddings",
    "embeddings": "embeddings",
    "rerank": "rerank",
    "classify": "classify",
    "image_generation": "images",
    "image": "images",
    "audio_transcription": "transcription",
    "transcribe": "transcription",
    "audio_speech": "speech",
}
"""Words in which backends say what a model is for → a task."""


def tasks(words: Iterable[str]) -> tuple[str, ...]:
    """The tasks that are meant; empty if a word is not known, since the list may then not be all."""
    found = [_TASKS.get(word) for word in words]
    return () if None in found else tuple(dict.fromkeys(task for task in found if task))
