"""What all requests to one backend have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import msgspec

from nexus.config import BackendConfig
from nexus.http.address import Address
from nexus.http.credentials import accepts_client_keys, backend_query, own_key, own_key_lines
from nexus.http.headers import RequestHeaders

_BETA = "anthropic-beta"
_BETA_LINE = re.compile(rf"^{_BETA}: (.*)\r\n", re.MULTILINE)


class RequestTemplate(msgspec.Struct, frozen=True, kw_only=True):
    """Renders the request headers for one backend. Made once for each backend of a snapshot.

    Attributes:
        address: Where the requests go.
        key: The gateway's key for the backend.
        client_keys: Whether a client's own credentials are sent.
        key_lines: Header lines with that key.
        default_lines: Header name → line that is sent unless the client sends that header.
        paths: `Provider.paths`.
        drop_betas: Globs of the features in `anthropic-beta` that the backend does not get.
        via: The name of this gateway in Via headers (RFC 9110, section 7.6.3).
    """

    address: Address
    key: str | None
    client_keys: bool
    key_lines: str
    default_lines: dict[str, str]
    paths: Mapping[str, str]
    via: str
    drop_betas: Sequence[str] = ()
    _starts: dict[str, str] = {}

    @classmethod
    def of(
        cls, config: BackendConfig, address: Address, *, environ: Mapping[str, str], via: str
    ) -> RequestTemplate:
        """Raises `SecretError` if no header can carry the backend's key."""
        key = own_key(config, environ)
        return cls(
            address=address,
            key=key,
            client_keys=accepts_client_keys(config, key),
            key_lines=own_key_lines(config, key),
            default_lines={name: f"{name}: {value}\r\n" for name, value in config.provider.headers},
            paths=config.provider.paths,
            via=via,
            drop_betas=config.drop_betas,
        )

    def head(
        self,
        headers: RequestHeaders,
        *,
        path: str,
        request_id: str,
        length: int,
        query: str = "",
        client_keys: bool = True,
        method: str | None = None,
    ) -> bytes:
        """The head of a request: the client's end-to-end headers, our key, no compression.

        `path` is an endpoint's path as clients know it. `client_keys` says whether the client's
        credentials may be for a backend. `method` is that of a request whose path is its own; all
        others are POST.
        """
        client_keys = client_keys and self.client_keys
        if query:
            query = backend_query(query, client_keys=client_keys)
        if query or method is not None:  # Clients' queries and ids are unbounded: not cached.
            start = self._start(path, query, method or "POST")
        elif (start := self._starts.get(path, "")) == "":
            start = self._starts[path] = self._start(path)
        lines = headers.for_backend(client_keys=client_keys)
        if self.drop_betas and _BETA in headers.first:
            lines = _BETA_LINE.sub(self._without_betas, lines)
        if self.default_lines:
            sent = headers.first
            lines += "".join(
                [line for name, line in self.default_lines.items() if name not in sent]
            )
        return (
            f"{start}content-length: {length}\r\nx-request-id: {request_id}\r\n{lines}\r\n"
        ).encode("latin-1")

    def _without_betas(self, line: re.Match[str]) -> str:
        features = [feature.strip() for feature in line[1].split(",")]
        kept = [
            feature
            for feature in features
            if not any(fnmatchcase(feature, glob) for glob in self.drop_betas)
        ]
        return f"{_BETA}: {','.join(kept)}\r\n" if kept else ""

    def _start(self, path: str, query: str = "", method: str = "POST") -> str:
        path = self.paths.get(path, path)
        target = self.address.target(f"{path}?{query}" if query else path)
        return (
            f"{method} {target} HTTP/1.1\r\nhost: {self.address.host_header}\r\n"
            f"accept-encoding: identity\r\nvia: 1.1 {self.via}\r\n{self.key_lines}"
        )
