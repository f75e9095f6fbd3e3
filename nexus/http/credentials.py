"""Which headers carry a client's key, and whether a backend gets that key or the gateway's.

All headers and query parameters with a client's credentials are treated alike. They reach a backend
only if it may have them, and never beside the gateway's key.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote, unquote_plus

from nexus.config import BackendConfig
from nexus.config.secrets import secret
from nexus.providers import PROVIDERS

CREDENTIALS = frozenset(
    {
        "authorization", "x-api-key", "api-key", "x-goog-api-key", "ocp-apim-subscription-key",
        "x-litellm-api-key", "x-amz-security-token", "x-auth-token", "x-access-token",
        "x-functions-key", "openai-organization", "openai-project", "x-goog-user-project",
        *(provider.key_header for provider in PROVIDERS.values()),
    }
)  # fmt: skip
"""Headers that carry a client's key, or name the account of that key, in lower case."""
_KEY_PARAMETERS = frozenset(
    {"key", "api_key", "api-key", "apikey", "access_token", "token", "auth", "subscription-key"}
)
_SAFE_IN_QUERIES = "!$&'()*+,-./:;=?@_~%[]"
"""RFC 3986, section 3.4, and the brackets that many clients do not encode."""


def own_key(config: BackendConfig, environ: Mapping[str, str]) -> str | None:
    """The gateway's key for this backend. Raises `SecretError` if no header can carry it."""
    return secret(config.api_key_env, environ)


def own_key_lines(config: BackendConfig, key: str | None) -> str:
    """The header line with the gateway's key; empty without a key."""
    if key is None:
        return ""
    header, prefix = config.provider.key_header, config.provider.key_prefix
    if config.auth_header is not None:
        header = config.auth_header
        prefix = "Bearer " if header == "authorization" else ""
    return f"{header}: {prefix}{key}\r\n"


def accepts_client_keys(config: BackendConfig, key: str | None) -> bool:
    """Whether a client's own credentials are sent to a backend; `key` is the gateway's for it."""
    return key is None and (
        bool(config.forward_authorization) or config.accepts_client_keys_by_default
    )


@lru_cache(maxsize=256)
def backend_query(query: str, *, client_keys: bool) -> str:
    """A client's query as a backend gets it: printable, and with keys only if it may have them."""
    parameters = query.split("&")
    if not client_keys:
        parameters = [
            parameter
            for parameter in parameters
            if unquote_plus(parameter.partition("=")[0]).lower() not in _KEY_PARAMETERS
        ]
    return quote("&".join(parameters), safe=_SAFE_IN_QUERIES, encoding="latin-1", errors="replace")
