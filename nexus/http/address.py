"""The address of a backend: where requests to it are sent."""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec

from nexus.config import BackendConfig
from nexus.providers import Provider, generic

_VERSION = re.compile(r"(?:^|/)v\d[^/]*(?:/.*)?$")
"""The end of a path, from its version segment on: `/v1`, `/v1beta/openai`, `/v4`."""
_Files = tuple[str | None, str | None, str | None]


class Address(msgspec.Struct, frozen=True, cache_hash=True, gc=False):
    """A backend's address. Connections are pooled by it.

    Attributes:
        host: Name or address, IPv6 without brackets.
        root: Path in front of the server's own endpoints, such as `/api/tags`.
        base: Path in front of OpenAI's endpoints, in place of `/v1`.
        query: Query that every request carries, without the `?`.
        host_header: Host and port as the url has them.
        files: The backend's `ca_file`, `client_cert_file` and `client_key_file`.
    """

    host: str
    port: int
    tls: bool
    root: str
    base: str
    query: str
    host_header: str
    files: _Files

    @classmethod
    def of_backend(cls, config: BackendConfig) -> Address:
        files = (config.ca_file, config.client_cert_file, config.client_key_file)
        return cls.of(config.url, config.provider, config.base_path, urlencode(config.query), files)

    @classmethod
    @lru_cache(maxsize=1024)
    def of(
        cls,
        url: str,
        provider: Provider = generic.PROVIDER,
        base_path: str | None = None,
        query: str = "",
        files: _Files = (None, None, None),
    ) -> Address:
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        path = parts.path.rstrip("/")
        root = _VERSION.sub("", path)
        if base_path is None:
            base = provider.base_path(path, root)
        else:
            base = f"/{base_path.strip('/')}".rstrip("/")
        return cls(
            host=(parts.hostname or "").replace("%25", "%"),
            port=parts.port or (443 if tls else 80),
            tls=tls,
            root=root,
            base=base,
            query=query,
            host_header=re.sub("%[^]]*", "", parts.netloc),
            files=files,
        )

    def target(self, path: str) -> str:
        """The request target for a path, which may carry a query.

        A path that starts with `/v1/` is one of OpenAI's endpoints. If both queries have a key, the
        configuration's value is sent.
        """
        path, _, query = path.partition("?")
        path = self.base + path[3:] if path.startswith("/v1/") else self.root + path
        if self.query and query:
            ours = dict(parse_qsl(self.query))
            theirs = [
                part
                for part in query.split("&")
                if not ours.keys() & dict(parse_qsl(part, True)).keys()
            ]
            query = "&".join((self.query, *theirs))
        query = query or self.query
        return f"{path}?{query}" if query else path
