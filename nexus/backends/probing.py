"""What the kinds of backend share: fetching, and judging what came back."""

from __future__ import annotations

from typing import Any, Protocol


class BadAnswer(Exception):
    """A backend answered a probe with something that its kind does not say."""


class NotYet(BadAnswer):
    """A detail that is not known yet; it is fetched after the probe, and then the kind is asked again."""


class Fetch(Protocol):
    """Fetches a path of the backend and gives the JSON in its answer.

    With `body`, it posts that. Raises `BadAnswer` for a status other than 200 and for what is not JSON, and the
    transport's own error where there was no answer.

    `version` marks a detail: nothing that decides whether the backend is healthy. A detail is fetched outside of the
    probe's time limit; until then this raises `NotYet`. It is kept until its version is another one (a digest, say),
    for an hour at most if the version is empty.
    """

    def __call__(self, path: str, body: dict[str, Any] | None = None, *, version: str | None = None) -> Any: ...


def items(answer: Any, key: str) -> list[dict[str, Any]]:
    """The list of objects under `key`."""
    found = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(found, list):
        raise BadAnswer(f"the answer has no list `{key}`")
    return [item for item in found if isinstance(item, dict)]


def text(item: dict[str, Any], key: str) -> str | None:
    """A text that is worth showing: there, not empty, printable."""
    value = item.get(key)
    return value if isinstance(value, str) and value and value.isprintable() else None
