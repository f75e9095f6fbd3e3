"""The record of `[request_log]`: a line for each request, for audits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from nexus.config.fields import Section, doc

JOURNAL = "journal"
"""The `path` that stands for systemd's journal."""


class RequestLog(Section, frozen=True):
    """One JSON line for each finished request, for audits. It has no prompt and no response."""

    path: Annotated[
        str,
        doc('Absolute path of the file; "journal" for systemd\'s journal; empty: no request log.'),
    ] = ""
    rotate_bytes: Annotated[
        Annotated[int, Meta(ge=1024, le=1 << 40)],
        doc("Start a new file when the file has this size."),
    ] = 100 * 1024 * 1024
    rotate_hours: Annotated[
        Annotated[float, Meta(ge=0, le=8760)],
        doc("Start a new file at each multiple of this time; 24 is midnight in UTC. 0: never."),
    ] = 24.0
    keep_files: Annotated[
        Annotated[int, Meta(ge=0, le=100_000)],
        doc("Files to keep besides the current one; the oldest are deleted."),
    ] = 30


def request_log_conflicts(settings: RequestLog) -> Iterator[str]:
    """What is wrong with settings whose values all have the right form."""
    path = settings.path
    if path and path != JOURNAL and not Path(path).is_absolute():
        yield (
            f'[request_log] path = "{path}" is not allowed; it takes an absolute path, such as '
            '"/var/log/nexus/requests.jsonl", or "journal".'
        )
