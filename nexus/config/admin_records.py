"""Records of the sections about who may see and change the gateway."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from nexus.config.fields import Section, Text, doc


class Dashboard(Section, frozen=True):
    """The dashboard, and where it is served."""

    enabled: Annotated[
        bool, doc("Serve the dashboard at /, and its data at /v1/history and /v1/live.")
    ] = True
    operations_only: Annotated[
        bool,
        doc("Serve it only at the health process's address ([health_check] listen)."),
    ] = False


class Admin(Section, frozen=True):
    """Who may see and change the gateway; by default, who has the run directory's token."""

    token_env: Annotated[
        Text,
        doc("Environment variable or systemd credential that holds the admin token."),
    ] = "NEXUS_ADMIN_TOKEN"
    protect: Annotated[
        list[Literal["dashboard", "metrics"]],
        doc(
            "What requires the token, if one is set. dashboard: also /v1/history and /v1/live; "
            "metrics: /metrics, /v1/stats and /v1/problems. Changes always do."
        ),
    ] = msgspec.field(default_factory=lambda: ["dashboard"])
    hosts: Annotated[
        list[str],
        doc(
            "Further names of the operations port, such as that of a proxy in front of it. IP "
            "addresses, localhost and the machine's own names are always accepted."
        ),
    ] = msgspec.field(default_factory=list)
    api_key_envs: Annotated[
        list[str],
        doc(
            "Values that api_key_env may have in backends added to the running gateway, besides "
            "those in the file."
        ),
    ] = msgspec.field(default_factory=list)


class Cors(Section, frozen=True):
    """Which web pages may use the gateway from a browser; others get 403."""

    origins: Annotated[
        list[str],
        doc(
            'Origins whose pages may send requests, such as "https://chat.example.com"; "*" for '
            "every page."
        ),
    ] = msgspec.field(default_factory=list)
    max_age_seconds: Annotated[
        Annotated[int, Meta(ge=0, le=86400)],
        doc("How long a browser may cache that an origin is allowed."),
    ] = 600
