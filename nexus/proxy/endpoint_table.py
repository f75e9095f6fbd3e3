"""An endpoint, and the table of all of them: which requests go to which endpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import msgspec

from nexus.dialects.base import Dialect, IdReader, RequestForm, UnitReader


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A proxied path.

    Attributes:
        name: Its label value in metrics, and its name in logs.
        path: The canonical path, which begins with `/v1` unless the endpoint is `custom`. `{id}`
            stands for the id of what a backend stores.
        dialect: The protocol that its clients speak.
        form: The form of its requests, and the task that their model must have.
        summary: What it does, for OpenAPI.
        other_paths: Further paths for the same, beside those that `EndpointTable.canonical` knows.
        streams: Its response may be a stream.
        methods: Other methods get 405.
        content_types: Other media types get 415; empty for all.
        body: How a body is read. A form names its model in a field. Of any other body nothing is
            read; it may be missing.
        binary: Its response may be of any media type. Then it passes piece by piece.
        units: Counts what it serves beside tokens; None for nothing.
        counts: It counts the tokens of a prompt, which the gateway can estimate. Its requests take
            no capacity, and wait for none.
        strip: Leaves out of a body what a client adds for its vendor; None if there is no such
            thing. Some backends do not get it.
        strip_made: Leaves out of a body what a translation has made of earlier responses; None if
            there is no such thing. No backend that speaks the dialect gets it.
        strip_plain: Leaves reasoning as a text out of a body; None if there is no such thing.
            Providers that have it only encrypted do not get it.
        ids: Reads the ids under which backends store its responses; None if they store none.
        backend_key: The key of `[endpoints]` that names the backend of all its requests.
        backend: The backend of all its requests, if a custom endpoint names one.
        custom: The operators added it in `[[endpoints.custom]]`. Its responses may have any form.
        by_model: Its requests name a model, which decides their backend.
        takes_tokens: A request to it can cost something.
    """

    name: str
    path: str
    dialect: Dialect
    form: RequestForm
    summary: str
    other_paths: tuple[str, ...] = ()
    streams: bool = False
    methods: tuple[str, ...] = ("POST",)
    content_types: tuple[str, ...] = ("application/json",)
    body: Literal["json", "multipart", "any", "none"] = "json"
    binary: bool = False
    units: UnitReader | None = None
    counts: bool = False
    strip: Callable[[bytes], bytes] | None = None
    strip_made: Callable[[bytes], bytes] | None = None
    strip_plain: Callable[[bytes], bytes] | None = None
    ids: IdReader | None = None
    backend_key: str = ""
    backend: str = ""
    custom: bool = False
    by_model: bool = field(init=False)
    takes_tokens: bool = field(init=False)

    def __post_init__(self) -> None:
        pinned = bool(self.backend_key or self.backend)
        by_model = self.body in ("json", "multipart") and not pinned
        object.__setattr__(self, "by_model", by_model)
        object.__setattr__(self, "takes_tokens", by_model and not self.counts)

    @property
    def makes_images(self) -> bool:
        """Whether its units are images."""
        return self.units is not None and self.units.name == "images"


class Target(msgspec.Struct, frozen=True, gc=False):
    """What the first line of a request to a proxied endpoint names.

    Attributes:
        query: The query without its `?`.
        deployment: The model that an Azure path names. It replaces that of the body.
        stored_id: The id that stands in the path.
    """

    endpoint: Endpoint
    query: str = ""
    deployment: str | None = None
    stored_id: str = ""

    @property
    def path(self) -> str:
        """The canonical path, with the id in it."""
        return self.endpoint.path.replace(_ID, self.stored_id)


_ID = "{id}"
STORED_ID = re.compile(r"[\w-][\w.-]*", re.ASCII)
"""The ids in paths: no backend reads them as anything but one segment."""
_BASE = "/v1"
_OTHER_BASES = ("/openai/v1", "/openai", "")
_DEPLOYMENTS = "/openai/deployments/"
_LINE = re.compile(r"POST (/[\x21-\x7e]*) HTTP/1\.1")


class EndpointTable:
    """All endpoints of a process.

    Attributes:
        by_path: Each endpoint by its canonical path.
    """

    def __init__(self, rows: Iterable[Endpoint]) -> None:
        self.by_path: dict[str, Endpoint] = {}
        self._other_paths: dict[str, str] = {}
        self._targets: dict[str, Target] = {}
        self._patterns: list[tuple[re.Pattern[str], Endpoint]] = []
        self._parse = lru_cache(maxsize=256)(self._parse_line)
        for row in rows:
            self.add(row)

    def add(self, endpoint: Endpoint) -> None:
        """Add a row, before the process serves."""
        if not (endpoint.custom or endpoint.path.startswith(f"{_BASE}/")):
            raise ValueError(f"{endpoint.path} does not begin with {_BASE}/")
        self.by_path[endpoint.path] = endpoint
        self._other_paths |= dict.fromkeys(endpoint.other_paths, endpoint.path)
        if _ID in endpoint.path:
            pattern = re.escape(endpoint.path).replace(re.escape(_ID), STORED_ID.pattern)
            self._patterns.append((re.compile(pattern), endpoint))
        elif endpoint.body == "json" and "POST" in endpoint.methods:
            self._targets[f"POST {endpoint.path} HTTP/1.1"] = Target(endpoint)
        self._parse.cache_clear()

    @property
    def custom(self) -> tuple[Endpoint, ...]:
        """The custom endpoints."""
        return tuple(row for row in self if row.custom)

    def replace_custom(self, rows: tuple[Endpoint, ...]) -> None:
        """Replace the custom endpoints, while the process serves."""
        if rows == self.custom:
            return
        table = EndpointTable((*(row for row in self if not row.custom), *rows))
        self.by_path, self._other_paths = table.by_path, table._other_paths
        self._targets, self._patterns = table._targets, table._patterns
        self._parse.cache_clear()

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self.by_path.values())

    def __len__(self) -> int:
        return len(self.by_path)

    @property
    def names(self) -> frozenset[str]:
        """The label values of all endpoints. Several may share one."""
        return frozenset(row.name for row in self)

    def at(self, path: str) -> Endpoint | None:
        """The endpoint at a canonical path."""
        for pattern, endpoint in self._patterns:
            if pattern.fullmatch(path):
                return endpoint
        return self.by_path.get(path)

    def for_fields(self, fields: Iterable[str]) -> Endpoint:
        """The first endpoint whose prompt is in these fields of a body; else the first of all."""
        names = frozenset(fields)
        return next((row for row in self if row.form.fits(names)), next(iter(self)))

    def canonical(self, path: str) -> tuple[str, str | None]:
        """The canonical path, and the deployment that the path names.

        Doubled and trailing slashes are ignored, `/v1` may be missing, and Azure's paths are
        accepted.
        """
        path = re.sub("//+", "/", path)
        path = path.rstrip("/") or "/"
        if path.startswith(_DEPLOYMENTS):
            for known in self.by_path:
                tail = known.removeprefix(_BASE)
                if path.endswith(tail) and (name := path[len(_DEPLOYMENTS) : -len(tail)]):
                    return known, name
            return path, None
        if path in self._other_paths:
            return self._other_paths[path], None
        for base in _OTHER_BASES:
            known = _BASE + path[len(base) :]
            if path.startswith(f"{base}/") and (
                self.at(known) is not None or f"{known}/".startswith("/v1/models/")
            ):
                return known, None
        return path, None

    def target_of(self, line: str) -> Target | None:
        """The target of a request's first line; None unless it is a plain POST to an endpoint."""
        return self._targets.get(line) or self._parse(line)

    def _parse_line(self, line: str) -> Target | None:
        match = _LINE.fullmatch(line)
        if match is None or "#" in match[1]:
            return None
        path, _, query = match[1].partition("?")
        if "%" in path:
            return None
        path, deployment = self.canonical(path)
        endpoint = self.by_path.get(path)
        if endpoint is None or endpoint.body != "json" or "POST" not in endpoint.methods:
            return None
        return Target(endpoint, query, deployment)
