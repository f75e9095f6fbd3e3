"""Probing one backend over the connections that the proxy uses, so that both see the same names, TLS and answers."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from nexus import __version__
from nexus.config import BackendConfig
from nexus.config.secrets import SecretError
from nexus.errors import RequestFailed
from nexus.fleet.records import Model
from nexus.health.model_list import probe
from nexus.http.address import Address
from nexus.http.client_watch import DisconnectWatch
from nexus.http.connect_errors import reason
from nexus.http.connection_pool import Connection, ConnectionPool
from nexus.http.credentials import own_key, own_key_lines
from nexus.http.response_parser import MalformedResponse, ResponseParser
from nexus.providers.probing import BadProbeResponse, NotFetchedYet
from nexus.runtime.text import redact

log = logging.getLogger("nexus.health")

_MOST_BYTES = 16 * 1024 * 1024
_KEPT_S = 3600.0
"""How long a detail without a version is kept."""
_FAILED_KEPT_S = 300.0
"""How long a detail that could not be had is not asked for again."""
_AT_ONCE = 64
"""Details that are fetched before the models are published again."""
_NOT_READY = (502, 503, 504)
_NOBODY = DisconnectWatch(None)


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """What a probe came to. `latency_s` is that of its first answer, also of a bad one; None where there was none."""

    models: tuple[Model, ...] | None
    latency_s: float | None
    error: str | None = None
    capacity: int | None = None

    @property
    def success(self) -> bool:
        return self.models is not None


_Question = tuple[str, str]
"""A path and the JSON that is posted there, empty for a GET."""


@dataclass(frozen=True, slots=True)
class _Detail:
    """What a backend said to one question; an error where it said nothing that can be used."""

    version: str
    until: float
    answer: Any = None
    error: str | None = None


class Prober:
    """Probes one backend, and keeps what it said of its models until that changes."""

    def __init__(
        self,
        config: BackendConfig,
        environ: Mapping[str, str],
        connections: ConnectionPool | None = None,
    ) -> None:
        self.config = config
        self._environ = environ
        self._address = Address.of_backend(config)
        self._connections = connections or ConnectionPool(time.monotonic)
        self._answers: dict[_Question, Any] = {}
        self._details: dict[_Question, _Detail] = {}
        self._wanted: dict[_Question, str] = {}

    def probe(self, timeout_s: float) -> ProbeOutcome:
        """Ask the backend how it is and what it has. Never raises; takes at most `timeout_s`.

        Only what is asked without a version counts here; details follow with `more_details`.
        """
        deadline = time.monotonic() + timeout_s
        latency_s: float | None = None
        answers: dict[_Question, Any] = {}

        def ask(question: _Question) -> Any:
            nonlocal latency_s
            try:
                answer, content, took_s = self._ask(question, deadline)
                latency_s = took_s if latency_s is None else latency_s
                answers[question] = found = self._decoded(question[0], answer, content)
            except BadProbeResponse as error:
                answers[question] = error
                raise
            return found

        try:
            models, capacity, wanted = self._read(ask)
        except TimeoutError:
            error = f"no answer within {timeout_s:g} s"
        except (BadProbeResponse, OSError, RequestFailed) as failure:
            error = self._plain(failure, timeout_s)
        except Exception as failure:
            log.exception(
                "probe failed inside the health process", extra={"backend": self.config.name}
            )
            error = f"the probe failed ({type(failure).__name__}); the log has the trace"
        else:
            self._answers, self._wanted = answers, wanted
            return ProbeOutcome(models, latency_s, capacity=capacity)
        # Another server may listen there when it comes back.
        self._details = {
            question: detail for question, detail in self._details.items() if detail.version
        }
        self._wanted = {}
        return ProbeOutcome(None, latency_s, redact(error))

    def more_details(self, timeout_s: float) -> ProbeOutcome | None:
        """Fetch some of the details that the last probe lacked, and read its models again; None if there are none.

        Each question may take `timeout_s`. A backend that cannot be reached is not asked on.
        """
        if not self._wanted:
            return None
        reached = True
        for question, version in list(self._wanted.items())[:_AT_ONCE]:
            now = time.monotonic()
            try:
                answer, content, _ = self._ask(question, now + timeout_s)
                found = self._decoded(question[0], answer, content)
                self._details[question] = _Detail(
                    version, float("inf") if version else now + _KEPT_S, found
                )
            except BadProbeResponse as error:
                self._details[question] = _Detail(version, now + _FAILED_KEPT_S, error=str(error))
            except (OSError, RequestFailed):
                reached = False
                break
        models, capacity, wanted = self._read(self._answered)
        self._wanted = wanted if reached else {}
        return ProbeOutcome(models, None, capacity=capacity)

    def close(self) -> None:
        """Close the connections that are kept; others who share them open new ones."""
        self._connections.close()

    def _read(
        self, ask: Callable[[_Question], Any]
    ) -> tuple[tuple[Model, ...], int | None, dict[_Question, str]]:
        """The models and the capacity, and the details that are lacking, each with its version."""
        wanted: dict[_Question, str] = {}

        def fetch(
            path: str, body: dict[str, Any] | None = None, *, version: str | None = None
        ) -> Any:
            question = path, "" if body is None else json.dumps(body)
            if version is None:
                return ask(question)
            kept = self._details.get(question)
            if kept is None or kept.version != version or kept.until <= time.monotonic():
                wanted[question] = version
                raise NotFetchedYet(f"{path} was not fetched yet")
            if kept.error is not None:
                raise BadProbeResponse(kept.error)
            return kept.answer

        found = probe(self.config, fetch)
        return tuple(found.models), found.capacity, wanted

    def _answered(self, question: _Question) -> Any:
        """What the last probe was answered."""
        answer = self._answers[question]
        if isinstance(answer, BadProbeResponse):
            raise answer
        return answer

    def _decoded(self, path: str, answer: ResponseParser, content: bytes) -> Any:
        status = answer.status
        if 300 <= status < 400:
            place = ascii(answer.header("location") or "nowhere")
            raise BadProbeResponse(
                f"{path} answered {status}, a redirect to {place}; put the new address into url"
            )
        if status == 404 and path.startswith("/v1/"):
            target = self._address.target(path)
            raise BadProbeResponse(
                f"{target} answered 404; a path in url is used as written (base_path replaces it), and models of a "
                "server without this list go into [[backends.models]]",
                alive=True,
            )
        if status != 200:
            raise BadProbeResponse(f"{path} answered {status}", alive=status not in _NOT_READY)
        try:
            return json.loads(content)
        except ValueError as error:
            raise BadProbeResponse(f"{path} answered what is not JSON", alive=True) from error
        except RecursionError as error:
            raise BadProbeResponse(f"{path} answered JSON that is nested too deeply") from error

    def _ask(self, question: _Question, deadline: float) -> tuple[ResponseParser, bytes, float]:
        """The answer, its body, and how long it took in seconds.

        Asks over a kept connection; if that one has died meanwhile, once more over a new one.
        """
        path, body = question[0], question[1].encode()
        for fresh in (False, True):
            within = replace(
                self.config, connect_timeout_seconds=max(0.001, deadline - time.monotonic())
            )
            connection = self._connections.acquire(
                self._address, within, watch=_NOBODY, fresh=fresh
            )
            started = time.monotonic()
            try:
                content = self._exchange(connection, self._head(path, body), body, deadline)
            except (ConnectionError, MalformedResponse) as error:
                answered = connection.response.head_complete
                connection.close()
                if connection.reused and not answered and not fresh:
                    continue
                raise BadProbeResponse(self._broken(path, error)) from error
            except BaseException:
                connection.close()
                raise
            self._connections.release(self._address, connection, self.config.keepalive_seconds)
            return connection.response, content, time.monotonic() - started
        raise AssertionError("the second connection is a new one")

    def _head(self, path: str, body: bytes) -> bytes:
        lines = [
            f"{'POST' if body else 'GET'} {self._address.target(path)} HTTP/1.1",
            f"host: {self._address.host_header}",
            f"user-agent: nexus/{__version__}",
            "accept: application/json",
            "accept-encoding: identity",
        ]
        if body:
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in self.config.provider.headers]
        try:
            key_line = own_key_lines(self.config, own_key(self.config, self._environ))
        except SecretError as error:
            raise BadProbeResponse(str(error)) from None
        return ("\r\n".join(lines) + f"\r\n{key_line}\r\n").encode("latin-1")

    def _exchange(self, connection: Connection, head: bytes, body: bytes, deadline: float) -> bytes:
        answer = connection.response = ResponseParser()
        try:
            connection.send(
                head, body, _NOBODY, idle_s=max(0.0, deadline - time.monotonic()), deadline=deadline
            )
        except TimeoutError:
            raise
        except OSError:
            pass  # it closed; what it said before, such as a TLS alert, is still to be read
        pieces, size = [], 0
        while not answer.complete:
            data = connection.receive(_NOBODY, max(0.0, deadline - time.monotonic()))
            answer.feed(data)
            if not data and not answer.complete:
                raise ConnectionResetError(
                    "it closed the connection before its answer was complete"
                )
            pieces.append(answer.body())
            size += len(pieces[-1])
            if size > _MOST_BYTES:
                raise BadProbeResponse(f"the answer is over {_MOST_BYTES} bytes")
        return b"".join(pieces)

    def _plain(self, failure: Exception, timeout_s: float) -> str:
        """A failure in words for a log line, without a library's nesting."""
        if isinstance(failure, BadProbeResponse):
            return str(failure)
        cause = failure.__cause__ if isinstance(failure, RequestFailed) else failure
        if isinstance(cause, TimeoutError):
            return f"{reason(cause, self._address)} (no answer within {timeout_s:g} s)"
        return reason(cause, self._address)

    def _broken(self, path: str, error: Exception) -> str:
        if isinstance(error, MalformedResponse):
            return f"{path} answered what is not HTTP that can be trusted: {error}"
        hint = (
            "; does it ask for a client certificate (client_cert_file)?"
            if self._address.tls
            else ""
        )
        return f"{path}: it closed the connection before its answer was complete{hint}"
