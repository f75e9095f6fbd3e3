"""The form of client keys: `sk-nx-`, the key's id, `-`, and a secret of 256 random bits.

Only the SHA-256 of a whole key is stored. A lookup by digest compares no secret, so it leaks no
time.
"""

from __future__ import annotations

import base64
import hashlib
import secrets

PREFIX = "sk-nx-"
_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_ID_LENGTH = 12
MIN_LENGTH = 20
"""Shorter keys are not accepted from elsewhere: they can be guessed."""


def new_key(id_: str | None = None) -> tuple[str, str]:
    """A new key: its id, unless that is given, and the key itself."""
    id_ = id_ or "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))
    secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
    return id_, f"{PREFIX}{id_}-{secret}"


def digest(key: str) -> str:
    """The SHA-256 of a key in hexadecimal, as the configuration has it."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
