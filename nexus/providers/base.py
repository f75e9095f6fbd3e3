"""What a kind of backend is.

A kind is one module of this package. It fills in a `Provider`, and `nexus/providers/__init__.py`
registers it. Nothing else in the gateway knows a kind by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nexus.providers.model_list import read_model_list
from nexus.providers.probing import Fetch, ProbeResult

OPENAI = frozenset({"openai"})
OPENAI_CLOUD = OPENAI | {"responses"}
DIALECTS = frozenset({"openai", "anthropic", "responses"})
"""Every dialect that clients can speak."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Provider:
    """A kind of backend. The defaults describe a server that is compatible with OpenAI's API.

    Requests pass through: a client's request reaches the backend as the client wrote it, except for
    the path and the headers that are described here.

    Attributes:
        name: Value of `type` in the configuration.
        probe: Reads models and capacity. It does no I/O except through the `Fetch` that it is
            given. It raises `BadProbeResponse` for a response that a server of this kind would not
            give.
        recognizes: Whether a successful probe shows that the server is of this kind. Used to find
            out the type of a backend that is added without one. None if a probe cannot show it.
        canonical_name: Maps a model's name to one form that is the same for all names that the
            server takes for that model. None if it takes only the names that it lists.
        cloud: Whether it runs at a vendor. A local kind counts as restricted if it has no zone.
        self_hosted: Whether requests cost nothing unless the operator states a price.
        key_header: Header that carries the key of the backend, in lower case.
        key_prefix: What stands before the key in that header.
        headers: Names (in lower case) and values that every request carries. A client's header of
            the same name takes precedence.
        accepts_client_keys: Whether a client's own credentials reach a backend that has no
            `api_key_env` and no `forward_authorization`.
        own_api: Whether it serves an API of its own beside `/v1`. A path in the backend's url that
            has no version segment is then in front of both.
        paths: Path of an endpoint as clients know it (`/v1/…`) → its path at the server. A path
            that starts with `/v1/` is below the base path; any other is below the root.
        dialects: Names of the dialects in which clients' requests can be sent to it as they are,
            as long as the backend does not show others.
        takes: Fields of chat requests beyond the common ones. Only translated requests use them:
            `max_completion_tokens` instead of `max_tokens`, `top_k`, `reasoning_effort`, and
            `thought_signature` in calls of tools.
        encrypts_reasoning: Its responses have reasoning only encrypted, and it takes no other.
        version: A path that shows the version of the server, and the field that has it. It is read
            after each probe. None if there is none.
        base: Path of its endpoints in OpenAI's form, below a url without a version segment.
    """

    name: str
    probe: Callable[[Fetch], ProbeResult] = read_model_list
    recognizes: Callable[[ProbeResult], bool] | None = None
    canonical_name: Callable[[str], str] | None = None
    cloud: bool = False
    self_hosted: bool = False
    key_header: str = "authorization"
    key_prefix: str = "Bearer "
    headers: tuple[tuple[str, str], ...] = ()
    accepts_client_keys: bool = False
    own_api: bool = False
    paths: Mapping[str, str] = field(default_factory=dict)
    dialects: frozenset[str] = OPENAI
    takes: frozenset[str] = frozenset()
    encrypts_reasoning: bool = False
    version: tuple[str, str] | None = None
    base: str = "/v1"

    def base_path(self, path: str, root: str) -> str:
        """The path in front of OpenAI's endpoints if the backend's url has the path `path`.

        `root` is `path` up to its version segment.
        """
        return f"{path}{self.base}" if not path or (self.own_api and path == root) else path
