"""The records of `[endpoints]`: settings of single endpoints, and endpoints of the operators."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from nexus.config.access_records import ENDPOINTS
from nexus.config.fields import ModelName, Section, Text, doc
from nexus.runtime.text import suggest

BACKEND = "backend:"
"""Precedes the name of a backend in `model`."""
MAX_CUSTOM = 32
PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/v2/rerank",
    "/v1/score", "/v1/moderations", "/v1/images/generations", "/v1/images/edits",
    "/v1/images/variations", "/v1/audio/speech", "/v1/audio/transcriptions",
    "/v1/audio/translations", "/v1/messages", "/v1/messages/count_tokens", "/v1/stats",
    "/v1/problems", "/v1/history", "/v1/live", "/v1/key", "/metrics", "/health", "/livez",
    "/readyz", "/openapi.json",
)  # fmt: skip
"""Paths of the gateway."""
RESERVED = (
    "/v1/responses", "/v1/files", "/v1/batches", "/v1/models", "/assets", "/my-key", "/admin",
    "/openai",
)  # fmt: skip
"""Paths that are the gateway's with all that is below them."""
_PATH = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


class CustomEndpoint(Section, frozen=True):
    """An endpoint of the operators' own, whose requests go to the backends as they come."""

    path: Annotated[
        str, Meta(max_length=200), doc('Its path, such as "/v1/audio/voices" or "/tokenize".')
    ]
    name: Annotated[
        str | None,
        doc(
            "Its name in metrics, limits, and endpoints of keys: lower case letters, digits, "
            "and _; unset: made of the path."
        ),
    ] = None
    body: Annotated[
        Literal["json", "multipart", "none"],
        doc("The form of its requests. With none, it takes GET; else POST."),
    ] = "json"
    model: Annotated[
        str,
        doc(
            'What decides the backend: the field model of a JSON body ("body.model") or of a form '
            '("form:model"), or a backend that gets all requests ("backend:NAME").'
        ),
    ] = "body.model"
    streams: Annotated[
        bool,
        doc(
            "Whether responses pass piece by piece. If false, only event streams do, and others "
            "are limited by [server] max_answer_bytes."
        ),
    ] = False

    @property
    def label(self) -> str:
        """Its name, given or made of the path."""
        if self.name is not None:
            return self.name
        return re.sub(r"[^a-z0-9]+", "_", self.path.lower().removeprefix("/v1/")).strip("_")

    @property
    def backend(self) -> str:
        """The backend that gets all its requests; empty if their model decides."""
        return self.model.removeprefix(BACKEND) if self.model.startswith(BACKEND) else ""


class DefaultModels(Section, frozen=True):
    """The models of requests that name none, as clients may omit it."""

    images: Annotated[
        ModelName | None,
        doc("Model of /v1/images/generations; unset: a request without a model gets 400."),
    ] = None
    moderations: Annotated[
        ModelName | None,
        doc("Model of /v1/moderations; unset: a request without a model gets 400."),
    ] = None


class Endpoints(Section, frozen=True):
    """Settings of single endpoints."""

    files: Annotated[
        Text | None,
        doc(
            "Name of the backend that gets all requests to /v1/files and /v1/batches; unset: "
            "they get 404."
        ),
    ] = None
    default_models: DefaultModels = DefaultModels()
    custom: list[CustomEndpoint] = msgspec.field(default_factory=list)


def endpoint_conflicts(endpoints: Endpoints, backends: Sequence[str]) -> Iterator[str]:
    """What is wrong with `[endpoints]`, given the names of the backends."""
    if (files := endpoints.files) is not None and files not in backends:
        hint = suggest(files, backends) or "name one of [[backends]], or remove it."
        yield f'[endpoints] files = "{files}" does not exist; {hint}'
    custom = endpoints.custom
    if len(custom) > MAX_CUSTOM:
        yield f"[[endpoints.custom]] has {len(custom)} entries; at most {MAX_CUSTOM} are allowed."
    for number, one in enumerate(custom):
        before = custom[:number]
        problem = _path_problem(one, before) or _model_problem(one, backends)
        if problem := problem or _name_problem(one, before):
            yield f"[[endpoints.custom]] {problem}"


def _path_problem(one: CustomEndpoint, before: Sequence[CustomEndpoint]) -> str:
    path = one.path
    if not _PATH.fullmatch(path):
        return (
            f'path = "{path}" is not allowed; it takes a slash and segments of letters, digits, '
            "and . _ ~ -, such as /v1/audio/voices."
        )
    short = _short(path)
    taken = any(short == _short(known) for known in PATHS)
    if taken or any(f"{short}/".startswith(f"{_short(known)}/") for known in RESERVED):
        return f'path = "{path}" belongs to the gateway; choose another path.'
    if any(short == _short(other.path) for other in before):
        return f'path = "{path}" is used twice, with /v1 or without; remove one of the two.'
    return ""


def _model_problem(one: CustomEndpoint, backends: Sequence[str]) -> str:
    where = f'"{one.path}" model = "{one.model}"'
    if (name := one.backend) and name not in backends:
        hint = suggest(name, backends) or "name one of [[backends]]."
        return f"{where} does not exist; {hint}"
    needs = {"body.model": "json", "form:model": "multipart"}.get(one.model)
    if needs is None and not name:
        return f'{where} is not allowed; it takes "body.model", "form:model", or "backend:NAME".'
    if needs is not None and one.body != needs:
        return f'{where} needs body = "{needs}"; set that, or name a backend ("backend:NAME").'
    return ""


def _name_problem(one: CustomEndpoint, before: Sequence[CustomEndpoint]) -> str:
    name = one.label
    if not _NAME.fullmatch(name):
        return (
            f'"{one.path}" name = "{name}" is not allowed; set one of at most 40 lower case '
            "letters, digits, and _, which begins with a letter."
        )
    if name in ENDPOINTS or any(name == other.label for other in before):
        return f'"{one.path}" name = "{name}" is used already; set another one.'
    return ""


def _short(path: str) -> str:
    """A path without the `/v1` that may be missing."""
    return path.removeprefix("/v1")
