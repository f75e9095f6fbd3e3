"""Where a request to a backend goes, and what its head says of us."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import urlsplit

import msgspec

from nexus.config import BackendConfig
from nexus.config.secrets import secret


class Address(msgspec.Struct, frozen=True, cache_hash=True, gc=False):
    """A backend's address taken apart; `prefix` is its path without a trailing `/v1`, which every call adds."""

    host: str
    port: int
    tls: bool
    prefix: str
    host_header: str

    @classmethod
    @lru_cache(maxsize=1024)
    def of(cls, url: str) -> Address:
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        return cls(
            host=parts.hostname or "",
            port=parts.port or (443 if tls else 80),
            tls=tls,
            prefix=parts.path.rstrip("/").removesuffix("/v1").rstrip("/"),
            host_header=parts.netloc,
        )

    def url(self, path: str) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host_header}{self.prefix}{path}"


def own_key(config: BackendConfig, environ: Mapping[str, str]) -> str | None:
    """The key that we send to this backend, the secret that its `api_key_env` names."""
    return secret(config.api_key_env, environ)


def forwards_authorization(config: BackendConfig) -> bool:
    """Whether the client's own Authorization goes to this backend."""
    if config.forward_authorization is not None:
        return config.forward_authorization
    return config.type == "openai" and config.api_key_env is None
