"""The names under which a backend knows the functions of namespaces."""

from __future__ import annotations

_LONGEST_NAME = 64
"""Characters that a function's name may have."""


class ToolNames:
    """Names each function of a request so that no two have the same name.

    Attributes:
        originals: The name at the backend → namespace and name, for functions of namespaces.
    """

    def __init__(self) -> None:
        self.originals: dict[str, tuple[str, str]] = {}
        self._names: dict[tuple[str, str], str] = {}

    def add(self, namespace: str, name: str) -> str:
        """The name at the backend of a function that the client offers."""
        given = plain = _joined(namespace, name)
        others, number = self._names.values(), 2
        while given in others:
            given = f"{plain[: _LONGEST_NAME - len(str(number)) - 1]}_{number}"
            number += 1
        self._names[namespace, name] = given
        if namespace:
            self.originals[given] = namespace, name
        return given

    def of(self, namespace: str, name: str) -> str:
        """The name at the backend of a function that was called before."""
        return self._names.get((namespace, name)) or _joined(namespace, name)


def _joined(namespace: str, name: str) -> str:
    return f"{namespace}__{name}"[:_LONGEST_NAME] if namespace else name
