"""The request log: one JSON line for each finished request, in a file or in the journal.

It names who asked for what, and what came of it. It has no prompt, no response, and no credential.
"""

from __future__ import annotations

import logging
import time
from _thread import RLock
from pathlib import Path

import msgspec

from nexus.access.prices import usd
from nexus.config.request_log_records import JOURNAL
from nexus.config.request_log_records import RequestLog as Settings
from nexus.fleet.history import RequestRecord
from nexus.fleet.outcome import Outcome
from nexus.metrics.recorder import Recorder
from nexus.runtime.journal import Journal
from nexus.runtime.line_file import LineFile
from nexus.runtime.text import printable, redact

log = logging.getLogger("nexus.proxy")

IDENTIFIER = "nexus-requests"
"""The identifier of the lines in the journal."""
_REPORT_S = 60.0
"""A failure is logged once in this time."""


class Attempt(msgspec.Struct):
    """One attempt of a request; `outcome` is the fault's code, or `success`."""

    backend: str
    model: str
    outcome: str
    ms: float


class Line(msgspec.Struct, kw_only=True):
    """A line of the request log.

    Attributes:
        time: When the request ended, in UTC.
        key: The id of the client's key; None without `[auth]`.
        requested_model: The model as the client named it.
        model: The model that served the request, or should have served it.
        error: The fault's code; None for a success.
        end: How a stream ended; None if the response was no stream.
        usage: The source of the tokens; None if no backend served the request.
        cost_usd: What the response cost; None without a price.
        duration_ms: From the first byte of the request to the last one of the response.
    """

    time: str
    id: str
    key: str | None
    team: str | None
    endpoint: str
    requested_model: str
    model: str
    backend: str | None
    status: int
    error: str | None
    end: str | None
    usage: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None
    cache_write_tokens: int | None
    cost_usd: str | None
    duration_ms: float
    ttft_ms: float | None
    attempts: list[Attempt]

    @classmethod
    def of(cls, outcome: Outcome) -> Line:
        """The line of a request that ends now."""
        record, stream, charge = RequestRecord.of(outcome), outcome.stream, outcome.charge
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.ended))
        return cls(
            time=f"{second}.{int(record.ended % 1 * 1000):03d}Z",
            id=record.id,
            key=outcome.key,
            team=outcome.team,
            endpoint=record.endpoint,
            requested_model=printable(record.requested_model),
            model=printable(record.model),
            backend=record.backend,
            status=record.status,
            error=record.fault,
            end=stream.end if stream is not None else None,
            usage=outcome.usage,
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
            cached_tokens=outcome.cached_tokens,
            reasoning_tokens=outcome.reasoning_tokens,
            cache_write_tokens=outcome.cache_write_tokens,
            cost_usd=None if charge is None or charge.unpriced else usd(charge.total),
            duration_ms=record.duration_ms,
            ttft_ms=record.ttft_ms,
            attempts=[
                Attempt(one.backend, printable(one.model), one.outcome, one.ms)
                for one in record.attempts
            ],
        )


_encode = msgspec.json.Encoder().encode


class RequestLog:
    """Writes the request log of one process. Safe from any greenlet or thread."""

    def __init__(self, settings: Settings, recorder: Recorder) -> None:
        """`settings` name a file or the journal."""
        self.settings = settings
        self._recorder = recorder
        recorder.request_log_opened()
        self._lock = RLock()
        self._lost, self._report_at = 0, 0.0
        if settings.path == JOURNAL:
            self._target: Journal | LineFile = Journal(IDENTIFIER)
        else:
            self._target = LineFile(
                Path(settings.path),
                max_bytes=settings.rotate_bytes,
                max_age_s=settings.rotate_hours * 3600,
                keep=settings.keep_files,
            )

    def record(self, outcome: Outcome) -> None:
        """Write the line of a request that ends now. A failure is counted and logged only."""
        line = redact(_encode(Line.of(outcome)).decode()).encode() + b"\n"
        with self._lock:
            try:
                self._target.write(line)
            except OSError as error:
                self._report(error)
            else:
                self._recorder.request_logged("written")

    def _report(self, error: OSError) -> None:
        self._recorder.request_logged("lost")
        self._lost += 1
        if (now := time.monotonic()) >= self._report_at:
            self._report_at = now + _REPORT_S
            path, lost, self._lost = self.settings.path, self._lost, 0
            extra = {"path": path, "why": error, "lines": lost}
            log.error("lines of the request log are lost", extra=extra)

    def close(self) -> None:
        with self._lock:
            self._target.close()
