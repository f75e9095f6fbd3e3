"""Secrets by name: the configuration holds a secret's name, never the secret."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from nexus.runtime.text import remember_secret

_CREDENTIALS = "CREDENTIALS_DIRECTORY"


class SecretError(Exception):
    """A secret cannot be sent in a header. The message names its variable, not its value."""


def secret(name: str | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The secret of this name: the environment variable, else systemd's credential.

    A credential is what `LoadCredential=NAME:…` provides. White space around the value is removed.
    None if neither exists or the value is empty. Raises `SecretError`.
    """
    if not name:
        return None
    if value := environ.get(name):
        return _checked(name, value)
    directory = environ.get(_CREDENTIALS)
    if not directory or "/" in name:
        return None
    try:
        return _checked(name, Path(directory, name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


@lru_cache(maxsize=1024)
def _checked(name: str, value: str) -> str | None:
    """The value without white space around it; None if that is empty."""
    value = value.strip()
    remember_secret(value)
    if not (value.isascii() and value.isprintable()):
        raise SecretError(
            f"The value of ${displayable_name(name)} has a character that no header can carry, "
            "such as a line end or a typographic quote; set it again without that character."
        )
    return value or None


def displayable_name(name: str) -> str:
    """The name of a secret for a message; `***` if it could be the secret itself."""
    is_name = name.replace("-", "_").replace(".", "_").isidentifier() and len(name) <= 64
    is_random = len(name) >= 16 and name != name.upper() and any(map(str.isdigit, name))
    return name if is_name and not is_random else "***"
