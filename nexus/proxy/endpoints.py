"""The proxied endpoints, and the several ways in which clients write their paths."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import msgspec


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A proxied path.

    `required`: fields of the body that hold the prompt; one of them must be there. `task`: what a
    model must be able to do, as `Model.tasks` names it. `streams`: whether its response may be a
    stream.
    """

    name: str
    path: str
    required: tuple[str, ...]
    task: str
    streams: bool = True


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("chat_completions", "/v1/chat/completions", ("messages",), "chat"),
    Endpoint("completions", "/v1/completions", ("prompt", "prompt_embeds"), "chat"),
    Endpoint("embeddings", "/v1/embeddings", ("input", "messages"), "embeddings", streams=False),
)


class Target(msgspec.Struct, frozen=True, gc=False):
    """What the first line of a request to a proxied endpoint names.

    `query` is without its `?`; `deployment` is the model that an Azure path names, which replaces
    that of the body.
    """

    endpoint: Endpoint
    query: str = ""
    deployment: str | None = None


_BASE = "/v1"
_OTHER_BASES = ("/openai/v1", "/openai", "")
_DEPLOYMENTS = "/openai/deployments/"
BY_PATH = {endpoint.path: endpoint for endpoint in ENDPOINTS}
"""Each endpoint by its canonical path."""
_TARGETS = {f"POST {endpoint.path} HTTP/1.1": Target(endpoint) for endpoint in ENDPOINTS}
_LINE = re.compile(r"POST (/[\x21-\x7e]*) HTTP/1\.1")


def canonical(path: str) -> tuple[str, str | None]:
    """The path as our routes have it, and the deployment that it names.

    Doubled and trailing slashes do not count, `/v1` may be missing, and Azure's paths are
    understood.
    """
    path = re.sub("//+", "/", path)
    path = path.rstrip("/") or "/"
    if path.startswith(_DEPLOYMENTS):
        for endpoint in ENDPOINTS:
            tail = endpoint.path.removeprefix(_BASE)
            if path.endswith(tail) and (name := path[len(_DEPLOYMENTS) : -len(tail)]):
                return endpoint.path, name
        return path, None
    for base in _OTHER_BASES:
        known = _BASE + path[len(base) :]
        if path.startswith(f"{base}/") and (
            known in BY_PATH or f"{known}/".startswith("/v1/models/")
        ):
            return known, None
    return path, None


def target_of(line: str) -> Target | None:
    """What a request's first line names; None if it is not a plain POST to a proxied endpoint."""
    return _TARGETS.get(line) or _less_usual(line)


@lru_cache(maxsize=256)
def _less_usual(line: str) -> Target | None:
    found = _LINE.fullmatch(line)
    if found is None or "#" in found[1]:
        return None
    path, _, query = found[1].partition("?")
    if "%" in path:
        return None
    path, deployment = canonical(path)
    endpoint = BY_PATH.get(path)
    return None if endpoint is None else Target(endpoint, query, deployment)
