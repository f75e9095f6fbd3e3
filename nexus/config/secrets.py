"""Secrets by name: the configuration holds a secret's name, never the secret."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_CREDENTIALS = "CREDENTIALS_DIRECTORY"


def secret(name: str | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The secret of this name: the environment variable, else systemd's credential (`LoadCredential=NAME:…`).

    None where neither has it, or it is empty. Line ends around a credential are not part of it.
    """
    if not name:
        return None
    if value := environ.get(name):
        return value
    directory = environ.get(_CREDENTIALS)
    if not directory or "/" in name:
        return None
    try:
        return Path(directory, name).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
