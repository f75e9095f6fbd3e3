"""The records of `[auth]`, `[[teams]]` and `[[keys]]`: who may use the gateway."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from nexus.config.fields import Section, Text, doc
from nexus.config.limit_records import OwnLimits

RESERVED_KEYS = frozenset({"none", "unknown", "other", "retired", "user"})
"""Values that metrics have instead of a key's id."""
KEY_HEADERS = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
"""Headers that clients carry a key in, in the order in which they are read."""
Priority = Literal["normal", "high"]
ENDPOINTS = (
    "chat_completions", "completions", "embeddings", "rerank", "score", "moderations", "images",
    "speech", "transcriptions", "translations", "image_edits", "image_variations", "messages",
    "count_tokens", "responses", "files", "batches",
)  # fmt: skip
"""The names of the endpoints that a key or a team can be restricted to."""
_Name = Annotated[str, Meta(min_length=1, max_length=100)]
_Models = Annotated[list[Text] | None, doc("Globs on the model's name as requested; unset: all.")]
_Endpoints = Annotated[
    list[str] | None,
    doc('Names of endpoints, such as "chat_completions"; unset: all.'),
]


_HeaderName = Annotated[
    str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9-]*$", max_length=100, title="the name of a header")
]


class Identity(Section, frozen=True, rename={"peers": "from"}):
    """Users whom a proxy in front of the gateway has signed in. Off unless `from` is set."""

    peers: Annotated[
        list[str],
        doc(
            "Addresses of the proxies whose headers are believed, such as 127.0.0.1/32. The "
            "headers are ignored if anybody else sends them, and never reach a backend."
        ),
    ] = msgspec.field(default_factory=list)
    user: Annotated[_HeaderName, doc("Header with the user's name.")] = "X-Forwarded-User"
    teams: Annotated[
        _HeaderName,
        doc("Header with the user's groups; the first that names one of [[teams]] counts."),
    ] = "X-Forwarded-Groups"


class Auth(Section, frozen=True):
    """Whether clients need a key."""

    mode: Annotated[
        Literal["off", "optional", "keys"],
        doc(
            "off: clients need no key. keys: a request needs a key of [[keys]]. optional: "
            "a request without one is served, one with a key is held to what the key may use."
        ),
    ] = "off"
    header: Annotated[
        str,
        Meta(
            pattern=r"^[Xx]-[Nn]exus-[A-Za-z0-9-]+$",
            title="the name of a header that begins with X-Nexus-",
        ),
        doc(
            "Header that may carry the key besides Authorization, x-api-key, api-key and "
            "x-goog-api-key. Its name begins with X-Nexus-, so that it never reaches a backend."
        ),
    ] = "X-Nexus-Key"
    identity: Identity = Identity()


class Team(Section, frozen=True):
    """Keys that belong together, and what they may use."""

    name: Annotated[_Name, doc("Its name, which keys refer to.")]
    models: _Models = None
    endpoints: _Endpoints = None
    weight: Annotated[
        Annotated[float, Meta(ge=0.01, le=100)],
        doc("Share of each of its keys in the queue: 2 is twice as much as 1."),
    ] = 1.0
    limits: Annotated[
        OwnLimits | None,
        doc('What its keys may use together, such as { requests = "600/min", parallel = 20 }.'),
    ] = None


class Key(Section, frozen=True):
    """A client's key, by its digest. `nexus keys new` makes one for the configuration."""

    id: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$", title="1 to 64 letters, digits, _ and -"),
        doc("Its id, which metrics, logs and messages name."),
    ]
    sha256: Annotated[
        list[Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]],
        Meta(
            min_length=1,
            max_length=2,
            title="a list of one or two, each of 64 hexadecimal digits in lower case",
        ),
        doc("SHA-256 of the key in hexadecimal; two while a key is replaced by a new one."),
    ]
    grace_until: Annotated[
        Annotated[datetime, Meta(tz=True)] | None,
        doc(
            "When the first of two sha256 stops being accepted, such as 2027-06-30T12:00:00Z; "
            "unset: never."
        ),
    ] = None
    name: Annotated[str, doc("A name for people.")] = ""
    team: Annotated[str, doc("Its team in [[teams]]; empty: none.")] = ""
    expires: Annotated[date | None, doc("The last day, in UTC, on which it is accepted.")] = None
    blocked: Annotated[
        bool | Literal["now"],
        doc('Refuse its requests. "now": also end those in progress.'),
    ] = False
    models: _Models = None
    endpoints: _Endpoints = None
    priority: Annotated[
        Priority,
        doc("The highest X-Nexus-Priority that its requests may have; a higher one has no effect."),
    ] = "normal"
    limits: Annotated[
        OwnLimits | None,
        doc('What it may use, such as { requests = "60/min", tokens = "200k/min" }.'),
    ] = None
